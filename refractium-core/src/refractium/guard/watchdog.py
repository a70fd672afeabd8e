"""The watchdog: a thread that names the plugin whose code blocks the event loop.

The thread looks at the stack of the event loop's thread every 10 ms while the loop works. A call of a plugin
lasts as long as the thread finds the same frame on the stack. So a call costs nothing, and the thread also
finds a call that never returns. While the loop is idle, the thread sleeps.

The looks alone do not measure a call, because a look can be late. Moments before and after bound a call in
which a look has come. The call began after the last look without this call, after the last `Watchdog.notice`
and after the last batch of events began. The call ended before the next look without this call, and before
the event loop ran the callback that the look sent.
"""

from __future__ import annotations

import faulthandler
import logging
import math
import os
import sys
import threading
import time
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from refractium.guard.origins import plugin_of
from refractium.throttle import Throttled
from refractium.wire.text import printable

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Iterator
    from types import FrameType

log = logging.getLogger(__name__)

_LOOK: Final = 0.01
"""Seconds between two looks at the stack."""
_QUIET: Final = 10
"""Looks without work of the event loop after which the thread sleeps."""
_SLOW: Final = 0.045
"""Seconds between the two moments that bound a call, without the time for which other programs have used the
processor, after which the call is slow. Each call of 50 ms is slow."""
_SURE: Final = 0.04
"""Seconds that a slow call has lasted at least, if no look was late."""
_HANGING: Final = 1.0
"""Seconds after which the log contains the stack of a call."""
_DUMP: Final = 5.0
"""Seconds without a look after which Python writes all stacks to stderr: C code may hold the lock of Python
(GIL), so that no other thread runs. A supervisor replaces a worker after 8 s."""
_REARM: Final = 1.0
"""Minimum seconds between two postponements of the dump of all stacks."""
_STDERR: Final = 2

_Moment: TypeAlias = tuple[float, float]
"""A monotonic time (s), and the time (s) for which the watched thread had waited for a processor until then.
"""


class Batches(Protocol):
    """An object that handles events in batches, such as a reactor."""

    @property
    def turned(self) -> float:
        """Monotonic time (s) at which the current or last batch began."""


class Watchdog:
    """A watcher of the thread that runs the event loop of this process.

    Attributes:
        wants_notice: whether the event loop must call `notice` before it runs the code of a plugin.
    """

    _loop: AbstractEventLoop
    _batches: Batches | None = None

    def __init__(self) -> None:
        self.wants_notice = False
        self._is_asleep = False
        self._kept_awake = 0
        self._is_stopped = False
        self._wake_ups: SimpleQueue[None] = SimpleQueue()
        self._watched = 0
        self._base: FrameType | None = None
        self._delays = -1
        self._armed = 0.0
        self._call: _Call | None = None
        self._before = (0.0, 0.0)
        self._slow: dict[str, Throttled] = {}

    def start(self, loop: AbstractEventLoop) -> None:
        """Watch the calling thread, which runs the event loop."""
        self._loop = loop
        self._watched = threading.get_ident()
        self._base = sys._getframe(1)  # noqa: SLF001 - documented
        with suppress(OSError):  # a kernel without CONFIG_SCHED_INFO
            self._delays = os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY)
        self._is_stopped = False
        with suppress(RuntimeError):  # the limit on threads is reached
            threading.Thread(target=self._run, args=(self._delays,), name="watchdog", daemon=True).start()

    def follow(self, batches: Batches) -> None:
        """Note which object in the event loop handles the batches of events that call plugins.

        Without `start`, this method does nothing: a program that embeds Refractium may make many engines.
        """
        if self._watched:
            self._batches = batches

    def stop(self) -> None:
        """Stop watching."""
        self._is_stopped = True
        self.wants_notice = False
        self._wake_ups.put(None)
        faulthandler.cancel_dump_traceback_later()
        self._base = None

    def notice(self) -> None:
        """Note that the event loop works, and wake the thread if it sleeps."""
        self.wants_notice = False
        self._before = self._now()
        if self._is_asleep:
            # Arm the dump now: the next call may take the lock of Python before the thread runs.
            self._arm(self._before[0])
            self._wake_ups.put(None)

    @contextmanager
    def kept_awake(self) -> Iterator[None]:
        """Keep the thread awake during a ``with`` block, although the event loop may have no work."""
        self._kept_awake += 1
        if self.wants_notice:
            self.notice()
        try:
            yield
        finally:
            self._kept_awake -= 1

    def _arm(self, now: float) -> None:
        self._armed = now
        with suppress(RuntimeError):  # the limit on threads is reached
            faulthandler.dump_traceback_later(_DUMP, file=_STDERR)

    # In the thread of the watchdog

    def _run(self, delays: int) -> None:
        quiet = _QUIET
        while not self._is_stopped:
            if quiet >= _QUIET and not self._kept_awake:
                self._sleep()
            else:
                time.sleep(_LOOK)
            works, self.wants_notice = not self.wants_notice, True
            quiet = 0 if self._look() or works else quiet + 1
        with suppress(OSError):
            os.close(delays)

    def _sleep(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._armed = 0.0
        self.wants_notice = True
        self._is_asleep = True
        # After this assignment, `notice` wakes the thread. An earlier `notice` has reset the flag.
        if self.wants_notice and not self._kept_awake:
            self._wake_ups.get()
        self._is_asleep = False

    def _look(self) -> bool:
        """Look at the stack once; return whether a plugin runs."""
        # The order of these lines counts: the event loop may go on at any time.
        before, now, former = self._before, time.monotonic(), self._call
        turned = 0.0 if self._batches is None else self._batches.turned
        stack = list(self._frames())
        if self._before is before:
            self._before = now, self._delayed()
        if now - self._armed > _REARM:
            self._arm(now)
        named = ((frame, plugin_of(frame.f_globals.get("__name__", ""))) for frame in reversed(stack))
        frame, plugin = next((one for one in named if one[1]), (None, ""))
        if former is not None and former.frame is not frame:
            former.gone = now
            self._call = former = None
        if frame is None:
            return False
        call = former
        if call is None:
            slow = self._slow.setdefault(plugin, Throttled(log))
            call = self._call = _Call(frame, plugin, before, turned, slow)
            with suppress(RuntimeError):  # the event loop has ended
                self._loop.call_soon_threadsafe(self._ended, call)
        call.line = frame.f_lineno
        call.tell_if_hanging(now, stack[: stack.index(frame) + 1])
        return True

    def _frames(self) -> Iterator[FrameType]:
        """Yield the frames from the innermost frame to the event loop. No frame below calls a plugin."""
        frame, base = sys._current_frames().get(self._watched), self._base  # noqa: SLF001 - documented
        while frame is not None and frame is not base:
            yield frame
            frame = frame.f_back

    def _ended(self, call: _Call) -> None:
        """Note in the event loop that a call has ended."""
        if self._call is call:
            self._call = None
        call.tell_if_slow(self._now())

    def _now(self) -> _Moment:
        return time.monotonic(), self._delayed()

    def _delayed(self) -> float:
        """Return the seconds for which the watched thread has waited for a processor (proc(5), schedstat)."""
        with suppress(OSError, IndexError, ValueError):
            return int(os.pread(self._delays, 64, 0).split()[1]) / 1e9
        return 0.0


class _Call:
    """A call of a plugin in which a look has come.

    Args:
        frame: the outermost frame of the plugin.
        plugin: the plugin.
        before: a moment before the call.
        turned: another monotonic time (s) before the call.
        slow: the log of slow calls of the plugin.

    Attributes:
        frame: the outermost frame of the plugin.
        line: the line of `frame` at the last look.
        gone: monotonic time (s) of the next look, if this look has not found the call.
    """

    def __init__(
        self, frame: FrameType, plugin: str, before: _Moment, turned: float, slow: Throttled
    ) -> None:
        self.frame = frame
        self.line = 0
        self.gone = math.inf
        self._plugin = printable(plugin)
        self._before = before
        self._turned = turned
        self._slow = slow
        self._is_hanging = False

    def tell_if_slow(self, after: _Moment) -> None:
        """Log the call if it was slow. `after` is a moment after the call.

        Only the event loop may call this method: while its thread waits for a processor, the kernel has not
        yet counted this wait.
        """
        # Two upper bounds of the time that the call has taken without other programs.
        own = after[0] - self._before[0] - (after[1] - self._before[1])
        wall = min(after[0], self.gone) - max(self._before[0], self._turned)
        if not self._is_hanging and min(own, wall) >= _SLOW:
            self._tell()

    def _tell(self) -> None:
        message = "%s has blocked the event loop for more than %d ms: %s"
        self._slow.warning(message, self._plugin, _SURE * 1000, printable(_place(self.frame, self.line)))

    def tell_if_hanging(self, now: float, stack: list[FrameType]) -> None:
        """Log a call that goes on for a long time. The stack begins with the innermost frame."""
        if not self._is_hanging and now - self._before[0] >= _HANGING:
            self._tell()
            self._is_hanging = True
            log.error(
                "%s has blocked the event loop for more than %d s, so that no client is served: %s",
                self._plugin,
                _HANGING,
                printable(", ".join(_place(one, one.f_lineno) for one in stack)),
            )


def _place(frame: FrameType, line: int) -> str:
    return f"{frame.f_code.co_qualname} ({frame.f_code.co_filename}:{line})"


WATCHDOG: Final = Watchdog()
"""The watchdog of this process. It watches only while the program runs its event loop."""
