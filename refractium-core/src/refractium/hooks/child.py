"""The program of a hook's process: ``python -m refractium.hooks.child EVENTS RECEIPTS``.

EVENTS and RECEIPTS are the file descriptors of two pipes. The process delivers all events in the events pipe
to the hook. The process ends at the end of this pipe, after the proxy has closed the pipe or has died. The
process ignores SIGINT, SIGTERM and SIGHUP. A service manager sends these signals to all processes at a
reload, or while the proxy drains.
"""

from __future__ import annotations

import gc
import importlib
import logging
import operator
import os
import select
import signal
import sys
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import msgspec

from refractium.guard.faults import text_of
from refractium.hooks.counters import HookCounters
from refractium.hooks.delivery import Delivery
from refractium.hooks.frames import HURRY, Frames, Receipt
from refractium.hooks.memory import keep_freed_memory
from refractium.logs import install
from refractium.logs.prints import log_what_is_printed
from refractium.system import oom
from refractium.system.modules import make

if TYPE_CHECKING:
    from refractium.hooks.delivery import Item
    from refractium.hooks.frames import Start

_CHUNK: Final = 262_144
_RECEIPT_SECONDS: Final = 0.2
"""Least time between two receipts, and longest delay of a receipt (s)."""


_COLLECT_AFTER: Final = 50_000
"""Number of new objects after which Python collects garbage."""
_NICENESS: Final = 19
"""The lowest priority, so that the work of a hook does not delay the data path. Measured on two processors
that also ran client and backend, with a hook that copies streams to files. With the lowest priority, the
proxy forwards a quarter more small requests, and the hook misses no packet."""


class ReceiptSender:
    """The sender of receipts. A receipt tells the proxy the numbers of deliveries and failures.

    Args:
        fd: writing end of the receipts pipe.
        counters: deliveries and failures since the last receipt. Each receipt resets these counts to zero.
    """

    def __init__(self, fd: int, counters: HookCounters) -> None:
        self._fd = fd
        self._counters = counters
        self._due = 0.0

    @property
    def wait_ms(self) -> int | None:
        """Milliseconds until a receipt is due; None if there is nothing to send."""
        if self._counters == HookCounters():
            return None
        return max(0, int((self._due - time.monotonic()) * 1000) + 1)

    def send_if_due(self) -> None:
        """Send a receipt if the last receipt is at least `_RECEIPT_SECONDS` old."""
        if time.monotonic() >= self._due:
            self.send()

    def send(self, detached: str = "") -> None:
        """Send a receipt now.

        Args:
            detached: reason why the hook is detached; else empty.
        """
        counters = self._counters
        inbound, outbound = counters.inbound, counters.outbound
        receipt = Receipt(
            inbound=(inbound.delivered, inbound.delivered_bytes),
            outbound=(outbound.delivered, outbound.delivered_bytes),
            failures=counters.failures,
            detached=detached,
        )
        inbound.delivered = inbound.delivered_bytes = outbound.delivered = outbound.delivered_bytes = 0
        counters.failures = 0
        self._due = time.monotonic() + _RECEIPT_SECONDS
        with suppress(OSError):  # the proxy has died, but the hook still gets all events
            os.write(self._fd, msgspec.json.encode(receipt) + b"\n")


def main() -> None:
    """Deliver events until the events pipe ends or the hook is detached."""
    oom.volunteer(oom.HOOK)
    events_fd, receipts_fd = map(int, sys.argv[1:])
    for fd in (events_fd, receipts_fd):
        # Programs that the hook starts must not keep the pipes open.
        os.set_inheritable(fd, False)  # noqa: FBT003 - takes no keyword
    # A handler that does nothing, because programs that the hook starts would inherit SIG_IGN.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _ignore)
    frames = Frames()
    start = None
    while start is None:
        chunk = os.read(events_fd, _CHUNK)
        if not chunk:
            return
        start = frames.start(chunk)
    counters = HookCounters()
    receipts = ReceiptSender(receipts_fd, counters)
    try:
        delivery = _load(start, counters)
    except BaseException as error:  # noqa: BLE001 - the import of a module may raise anything
        receipts.send(f"its process cannot import the hook: {text_of(error)}")
        return
    # One read of the pipe returns thousands of events. A garbage collection before their delivery is in vain.
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)
    keep_freed_memory()
    with suppress(OSError):  # a sandbox may forbid this call
        os.setpriority(os.PRIO_PROCESS, 0, _NICENESS)
    delivery.start()
    if not delivery.detached:
        _deliver(events_fd, frames, delivery, receipts)
    receipts.send(delivery.detached)
    delivery.stop()
    os.close(receipts_fd)


def _deliver(fd: int, frames: Frames, delivery: Delivery, receipts: ReceiptSender) -> None:
    events: deque[Item] = deque()
    is_hurried = False

    def hurry(*_: object) -> None:
        nonlocal is_hurried
        is_hurried = True
        events.clear()

    signal.signal(HURRY, hurry)
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    chunk = b""
    while True:
        frames.feed(chunk, events)
        while events:
            if is_hurried or delivery.detached:
                return
            delivery.take(events)
            receipts.send_if_due()
        while not poll.poll(receipts.wait_ms):
            receipts.send()
        chunk = os.read(fd, _CHUNK)
        if not chunk or is_hurried:
            return


def _load(start: Start, counters: HookCounters) -> Delivery:
    sys.path[:] = start.path
    # The process writes each log line at once, so that a crash loses no line.
    log_what_is_printed(install(start.style, gather=0))
    for name, level in start.levels.items():
        logging.getLogger(name).setLevel(level)
    module = make(start.module, start.source) if start.source else importlib.import_module(start.module)
    hook: Any = operator.attrgetter(start.qualname)(module)
    settings = msgspec.msgpack.decode(start.settings, type=hook.settings_type)
    return Delivery(hook, settings, counters)


def _ignore(*_: object) -> None:
    """Ignore a signal."""


if __name__ == "__main__":
    main()
