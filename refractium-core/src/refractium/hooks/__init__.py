"""Delivery of events to packet hooks, outside of the data path.

::

    RouteHooks -open-> Tap -+--> Feed --> ThreadRunner  --queue--> thread:  Delivery --> PacketHook
    (a route)     (a session)   (one hook)
                            +--> Feed --> ProcessRunner --queue--> pipe --> child: Delivery --> PacketHook

- ``tap``: the interface for the data path, with a `RouteHooks` for each route and one `Tap` for each session.
- ``runner``: a `Runner` queues the events of one hook, counts them and limits the size of the queue. A runner
  has one `Feed` for each session. ``thread_runner`` and ``process_runner`` define the two kinds of runner.
- ``delivery`` calls the hook with events, in the hook's thread or process, and counts the hook's exceptions.
- ``frames``: the format of the pipes between the proxy and the process of a hook.
- ``child``: the program of the process of a hook.

If a hook is too slow, `PacketHook.overflow` decides which packets Refractium drops. For each hook and
direction, ``seen == delivered + dropped + queued`` is always true.
"""

from refractium.hooks.registry import (
    Hooks,
    HookSet,
    HookUse,
    UsedHook,
    against_several,
    merged,
    takes_stdout,
    used,
    why_alone,
)
from refractium.hooks.runner import Runner
from refractium.hooks.tap import RouteHooks, Tap

__all__ = [
    "HookSet",
    "HookUse",
    "Hooks",
    "RouteHooks",
    "Runner",
    "Tap",
    "UsedHook",
    "against_several",
    "merged",
    "takes_stdout",
    "used",
    "why_alone",
]
