"""Packet hooks at work, beside the data path and never on it.

::

    Taps ---open---> Tap ---+--> Feed --> ThreadRunner  --queue--> thread:  Delivery --> PacketHook
    (a route)     (a session)   (one hook)
                            +--> Feed --> ProcessRunner --queue--> pipe --> child: Delivery --> PacketHook

taps
    The data path's side: `Taps` of a route, a `Tap` for each of its sessions.
runner
    What takes the events of one hook, counts them and bounds their queue: `Runner`, with a `Feed` for each
    session. `refractium.hooks.thread` and `refractium.hooks.process` are the two kinds.
delivery
    Hands events to the hook where it runs, and counts what it raises.
wire, child
    What goes between the proxy and the process of a hook, and that process.

Who is done without when a hook is too slow is its `PacketHook.overflow`; for each hook and direction holds
``seen == delivered + dropped + queued``, whatever the hook does.
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
