"""The event loop on which each process of Refractium runs."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

from refractium.backends.checker import CHECKING, LEFT_BEHIND, leave_behind
from refractium.guard.faults import is_interrupt, log_unraisable, text_of
from refractium.guard.origins import plugin_in
from refractium.guard.watchdog import WATCHDOG
from refractium.throttle import Throttled
from refractium.wire.text import brief, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

log = logging.getLogger(__name__)

_MOST_THREADS: Final = 1_000
"""Number of calls of `asyncio.to_thread` that can run at the same time: a reload must find a thread beside
health checks that block."""
_MOST_OF_A_CHECK: Final = 2
"""Number of calls of one health check for one backend that can run in threads at the same time."""
_COLLECT_AFTER: Final = 700
"""Number of new objects after which Python looks for garbage: the default of Python 3.11."""

_ENDING: Final = 1.0
"""Seconds within which a task must end after its cancellation."""


class _Threads(ThreadPoolExecutor):
    """The threads of `asyncio.to_thread`. The end of the event loop does not wait for these threads."""

    def __init__(self) -> None:
        super().__init__(_MOST_THREADS)
        self._calls: WeakSet[Future[Any]] = WeakSet()
        self._of_checks: dict[object, list[Future[Any]]] = {}

    def submit(self, *call: Any, **keywords: Any) -> Future[Any]:
        """Run a call in a thread.

        Raises:
            RuntimeError: earlier calls of the same health check still block threads.
        """
        check = CHECKING.get()
        running = [call for call in self._of_checks.get(check, ()) if not call.done()]
        if len(running) >= _MOST_OF_A_CHECK:
            raise RuntimeError("earlier calls of this check still block threads")
        submitted = super().submit(*call, **keywords)
        self._calls.add(submitted)
        if check is not None:
            self._of_checks[check] = [*running, submitted]
        return submitted

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - as inherited
        del wait, cancel_futures
        super().shutdown(wait=False, cancel_futures=True)

    @property
    def are_busy(self) -> bool:
        """Whether a call still runs."""
        return any(call.running() for call in self._calls)


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> bool:
    """Run a coroutine on uvloop, or on asyncio's own event loop where uvloop is not installed.

    A task or a callback of a plugin that raises `SystemExit` ends an event loop, and so does `loop.stop`. The
    event loop then goes on, because no other task has ended.

    Returns:
        Whether the interpreter can end: no health check still runs, neither as a task nor in a thread.
    """
    new_event_loop: Callable[[], asyncio.AbstractEventLoop]
    try:
        from uvloop import new_event_loop  # noqa: PLC0415 - optional, and slow to import
    except ImportError:
        new_event_loop = asyncio.new_event_loop
    # Loaded modules stay for the life of the process, so the garbage collector need not look at them.
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)
    threads = _Threads()
    sys.unraisablehook = log_unraisable

    def new_loop() -> asyncio.AbstractEventLoop:
        loop = new_event_loop()
        loop.set_default_executor(threads)
        return loop

    try:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            WATCHDOG.start(runner.get_loop())
            running = runner.get_loop().create_task(main())
            try:
                while not running.done():
                    try:
                        runner.run(_end_of(running))
                    except BaseException as error:
                        if is_interrupt(error):
                            raise
                        if not running.done():
                            _warn_of_end(error)
                running.result()
            finally:
                runner.run(_end_all_but(running))
    finally:
        WATCHDOG.stop()
    return not (threads.are_busy or LEFT_BEHIND)


async def _end_of(task: asyncio.Task[None]) -> None:
    await task


async def _end_all_but(main: asyncio.Task[None]) -> None:
    """Cancel all other tasks, and leave behind the tasks that ignore it: the runner would wait for them."""
    others = asyncio.all_tasks() - {asyncio.current_task(), main}
    for one in others:
        one.cancel()
    if others:
        _, left = await asyncio.wait(others, timeout=_ENDING)
        for one in left:
            leave_behind(one)


_ends: Final = Throttled(log)


def _warn_of_end(error: BaseException) -> None:
    """Log that a task or a callback of a plugin has ended the event loop, which ends nothing else."""
    plugin = plugin_in(error.__traceback__) or "a plugin"
    _ends.warning("%s has ended the event loop, which goes on: %s", printable(plugin), brief(text_of(error)))
