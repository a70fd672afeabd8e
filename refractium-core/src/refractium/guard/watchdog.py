"""The watchdog: a thread that names the plugin whose code blocks the event loop.

The thread looks at the stack of the event loop's thread every 10 ms while the loop works. A call of a plugin
lasts as long as the thread finds the same frame on the stack. So a call costs nothing, and the thread also
finds a call that never returns. While the loop is idle, the thread sleeps.
"""

from __future__ import annotations

import faulthandler
import logging
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final

from refractium.guard.origins import plugin_of
from refractium.throttle import Throttled
from refractium.wire.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

log = logging.getLogger(__name__)

_LOOK: Final = 0.01
"""Seconds between two looks at the stack."""
_QUIET: Final = 10
"""Looks without work of the event loop after which the thread sleeps."""
_SLOW: Final = 0.04
"""Seconds after which a call is slow, from the first look that finds the call. This look comes up to `_LOOK`
after the start of the call, so each call of 50 ms is slow."""
_HANGING: Final = 1.0
"""Seconds after which the log contains the stack of a call."""
_DUMP: Final = 5.0
"""Seconds without a look after which Python writes all stacks to stderr: C code may hold the lock of Python
(GIL), so that no other thread runs. A supervisor replaces a worker after 8 s."""
_REARM: Final = 1.0
"""Minimum seconds between two postponements of the dump of all stacks."""
_STDERR: Final = 2


class Watchdog:
    """A watcher of the thread that runs the event loop of this process.

    Attributes:
        wants_notice: whether the event loop must call `notice` before it runs the code of a plugin.
    """

    def __init__(self) -> None:
        self.wants_notice = False
        self._is_asleep = False
        self._is_stopped = False
        self._wake_ups: SimpleQueue[None] = SimpleQueue()
        self._watched = 0
        self._clock = 0
        self._delays = Path()
        self._busy = 0.0
        self._armed = 0.0
        self._call: FrameType | None = None
        self._plugin = ""
        self._since = 0.0
        self._delay = 0.0
        self._told = 0.0
        self._slow: dict[str, Throttled] = {}

    def start(self) -> None:
        """Watch the calling thread, which runs the event loop."""
        self._watched = threading.get_ident()
        self._clock = time.pthread_getcpuclockid(self._watched)
        self._delays = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
        self._is_stopped = False
        with suppress(RuntimeError):  # the limit on threads is reached
            threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """Stop watching."""
        self._is_stopped = True
        self.wants_notice = False
        self._wake_ups.put(None)
        faulthandler.cancel_dump_traceback_later()

    def notice(self) -> None:
        """Note that the event loop works, and wake the thread if it sleeps."""
        self.wants_notice = False
        if self._is_asleep:
            self._busy = time.thread_time()
            # Arm the dump now: the next call may take the lock of Python before the thread runs.
            self._arm(time.monotonic())
            self._wake_ups.put(None)

    def _arm(self, now: float) -> None:
        self._armed = now
        with suppress(RuntimeError):  # the limit on threads is reached
            faulthandler.dump_traceback_later(_DUMP, file=_STDERR)

    # In the thread of the watchdog

    def _run(self) -> None:
        quiet = _QUIET
        while not self._is_stopped:
            if quiet >= _QUIET:
                self._sleep()
            else:
                time.sleep(_LOOK)
            works, self.wants_notice = not self.wants_notice, True
            quiet = 0 if self._look() or works else quiet + 1

    def _sleep(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._armed = 0.0
        self.wants_notice = True
        self._is_asleep = True
        # After this assignment, `notice` wakes the thread. An earlier `notice` has reset the flag.
        if self.wants_notice:
            self._wake_ups.get()
        self._is_asleep = False

    def _look(self) -> bool:
        """Look at the stack once; return whether a plugin runs."""
        now = time.monotonic()
        if now - self._armed > _REARM:
            self._arm(now)
        before, self._busy = self._busy, time.clock_gettime(self._clock)
        stack = list(_frames(sys._current_frames().get(self._watched)))  # noqa: SLF001 - documented
        named = ((frame, plugin_of(frame.f_globals.get("__name__", ""))) for frame in reversed(stack))
        call, plugin = next((one for one in named if one[1]), (None, ""))
        if call is None:
            self._call = None
            return False
        if call is not self._call:
            # While C code holds the lock of Python, this thread cannot look. The next look is late by the
            # processor time of this code.
            late = max(0.0, self._busy - before - _LOOK)
            self._call, self._plugin, self._since, self._told = call, plugin, now - late, 0.0
            self._delay = self._delayed()
        self._tell(stack[: stack.index(call) + 1], now - self._since)
        return True

    def _tell(self, stack: list[FrameType], seconds: float) -> None:
        """Log a call that has taken too long. The stack begins with the innermost frame."""
        limit = _HANGING if self._told else _SLOW
        if self._told == _HANGING or seconds < limit:
            return
        if limit == _SLOW and seconds - (self._delayed() - self._delay) < limit:
            return  # other programs have used the processor
        self._told = limit
        places = [f"{one.f_code.co_qualname} ({one.f_code.co_filename}:{one.f_lineno})" for one in stack]
        if limit == _SLOW:
            throttled = self._slow.setdefault(self._plugin, Throttled(log))
            throttled.warning(
                "%s has blocked the event loop for more than %d ms: %s",
                printable(self._plugin),
                _SLOW * 1000,
                printable(places[-1]),
            )
        else:
            log.error(
                "%s has blocked the event loop for more than %d s, so that no client is served: %s",
                printable(self._plugin),
                _HANGING,
                printable(", ".join(places)),
            )

    def _delayed(self) -> float:
        """Return the seconds for which the watched thread has waited for a processor (proc(5), schedstat)."""
        with suppress(OSError, IndexError, ValueError):
            return int(self._delays.read_bytes().split()[1]) / 1e9
        return 0.0


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


WATCHDOG: Final = Watchdog()
"""The watchdog of this process. It watches only while the program runs its event loop."""
