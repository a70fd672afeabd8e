"""The process of a hook: ``python -m refractium.hooks.child EVENTS REPORTS``, two descriptors of pipes.

It ends when all events have been delivered that came before the end of the pipe, whether the proxy has closed
that or died. Signals do not end it before: a service manager sends them to all processes, while one drains or
is to reload.
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

from refractium.hooks.counters import Counters
from refractium.hooks.delivery import Delivery
from refractium.hooks.frames import HURRY, Frames, Report
from refractium.hooks.memory import keep_freed_memory
from refractium.logs import install
from refractium.logs.prints import log_what_is_printed
from refractium.system import oom

if TYPE_CHECKING:
    from refractium.hooks.delivery import Item
    from refractium.hooks.frames import Start

_CHUNK: Final = 262_144
_REPORT_SECONDS: Final = 0.2
"""Between reports, and from a delivery to its report."""


_COLLECT_AFTER: Final = 50_000
"""New objects after which garbage is looked for."""
_NICENESS: Final = 19
"""The lowest priority: what a hook has to do must not hold up what passes. Where they share two processors
with client and backend, a quarter more small requests pass that are mirrored to files; none is dropped."""


class Reporter:
    """Tells the proxy what has been delivered.

    Args:
        fd: of the pipe that takes the reports.
        counters: what has been delivered since the last report; a report sets them back.
    """

    def __init__(self, fd: int, counters: Counters) -> None:
        self._fd = fd
        self._counters = counters
        self._due = 0.0

    @property
    def wait_ms(self) -> int | None:
        """Milliseconds until a report is due; None while there is nothing to report."""
        if self._counters == Counters():
            return None
        return max(0, int((self._due - time.monotonic()) * 1000) + 1)

    def report_if_due(self) -> None:
        """Report, unless it has just been done."""
        if time.monotonic() >= self._due:
            self.report()

    def report(self, detached: str = "") -> None:
        """Report now."""
        counters = self._counters
        inbound, outbound = counters.inbound, counters.outbound
        report = Report(
            inbound=(inbound.delivered, inbound.delivered_bytes),
            outbound=(outbound.delivered, outbound.delivered_bytes),
            failures=counters.failures,
            detached=detached,
        )
        inbound.delivered = inbound.delivered_bytes = outbound.delivered = outbound.delivered_bytes = 0
        counters.failures = 0
        self._due = time.monotonic() + _REPORT_SECONDS
        with suppress(OSError):  # nobody reads them any more, and still the hook is to have all events
            os.write(self._fd, msgspec.json.encode(report) + b"\n")


def main() -> None:
    """Deliver events until they end, or the hook is detached."""
    oom.volunteer(oom.HOOK)
    events_fd, reports_fd = map(int, sys.argv[1:])
    for fd in (events_fd, reports_fd):
        os.set_inheritable(fd, False)  # noqa: FBT003 - takes it so; what a hook starts must not keep the pipes open
    # Not SIG_IGN, which what a hook starts would inherit.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _ignore)
    frames = Frames()
    start = None
    while start is None:
        chunk = os.read(events_fd, _CHUNK)
        if not chunk:
            return
        start = frames.start(chunk)
    counters = Counters()
    reporter = Reporter(reports_fd, counters)
    try:
        delivery = _load(start, counters)
    except BaseException as error:  # noqa: BLE001 - whatever a module does when it is imported
        reporter.report(f"its process cannot import it: {type(error).__name__}: {error}")
        return
    # A read brings thousands of events, none of which is garbage before it has been delivered.
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)
    keep_freed_memory()
    with suppress(OSError):  # of a sandbox that does not let it
        os.setpriority(os.PRIO_PROCESS, 0, _NICENESS)
    delivery.start()
    if not delivery.detached:
        _deliver(events_fd, frames, delivery, reporter)
    reporter.report(delivery.detached)
    delivery.stop()
    os.close(reports_fd)


def _deliver(fd: int, frames: Frames, delivery: Delivery, reporter: Reporter) -> None:
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
            reporter.report_if_due()
        while not poll.poll(reporter.wait_ms):
            reporter.report()
        chunk = os.read(fd, _CHUNK)
        if not chunk or is_hurried:
            return


def _load(start: Start, counters: Counters) -> Delivery:
    sys.path[:] = start.path
    # At once, so that a crash costs no line that came before it.
    log_what_is_printed(install(start.style, gather=0))
    for name, level in start.levels.items():
        logging.getLogger(name).setLevel(level)
    hook: Any = operator.attrgetter(start.qualname)(importlib.import_module(start.module))
    settings = msgspec.msgpack.decode(start.settings, type=hook.settings_type)
    return Delivery(hook, settings, counters)


def _ignore(*_: object) -> None:
    """Take no notice of a signal."""


if __name__ == "__main__":
    main()
