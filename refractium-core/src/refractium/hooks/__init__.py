"""Delivery of events to packet hooks, beside the data path and never on it.

::

    Taps ---open---> Tap ---+--> Feed --> ThreadRunner  --queue--> thread:  Delivery --> PacketHook
    (a route)     (a session)   (one hook)
                            +--> Feed --> ProcessRunner --queue--> pipe --> child: Delivery --> PacketHook

- ``taps``: the side of the data path, with `Taps` of a route and a `Tap` for each of its sessions.
- ``runner``: `Runner` takes the events of one hook, counts them and bounds their queue. It has a `Feed` for
  each session. ``thread`` and ``process`` have the two kinds of runner.
- ``delivery`` hands events to the hook, in its thread or process, and counts the exceptions of the hook.
- ``frames`` and ``child``: the format of events and reports between the proxy and the process of a hook, and
  that process.

`PacketHook.overflow` says which packets a hook that is too slow does not get. For each hook and direction
``seen == delivered + dropped + queued`` holds, whatever the hook does.
"""

from refractium.hooks.registry import Hooks, HookSet, HookUse, UsedHook, against_several, merged, used
from refractium.hooks.runner import Runner
from refractium.hooks.taps import Tap, Taps

__all__ = [
    "HookSet",
    "HookUse",
    "Hooks",
    "Runner",
    "Tap",
    "Taps",
    "UsedHook",
    "against_several",
    "merged",
    "used",
]
