"""The checker, which runs the health checks of all backends and reports the results to backend states."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import random
import socket
import ssl
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from refractium.backends.state import Availability
from refractium.contract import Endpoint
from refractium.contract.words import shown
from refractium.guard.faults import Faults, is_ours, text_of
from refractium.guard.origins import origin_of
from refractium.guard.watchdog import WATCHDOG
from refractium.sockets.descriptors import LOCAL_ERRORS
from refractium.throttle import Throttled
from refractium.wire import proxy_protocol
from refractium.wire.text import brief

if TYPE_CHECKING:
    from collections.abc import Iterable

    from refractium.backends.backend import Backend
    from refractium.backends.state import BackendState
    from refractium.contract import HealthCheck, SocketAddress, Transport

log = logging.getLogger(__name__)

_JITTER: Final = 0.1
"""Largest fraction by which the checker shortens a pause, so that checks that began together drift apart."""
_SHORTEST: Final = 0.005
"""Minimum pause (s) between two checks of one backend."""
_GRACE: Final = 0.05
"""Seconds that a check has to end after its timeout. The next check waits for a check that takes longer."""
_STOPPING: Final = 1.0
"""Seconds for which a checker that stops waits for the checks that it has cancelled."""

_EFFECT: Final = "the backend fails this check"
"""The consequence of a fault, for the log."""

CHECKING: Final[ContextVar[tuple[object, ...] | None]] = ContextVar("CHECKING", default=None)
"""The health check that runs in a task, and the address that it checks; None in other tasks."""

LEFT_BEHIND: Final[set[asyncio.Task[Any]]] = set()
"""Tasks of checks that ignore their cancellation, so that the event loop ends without these tasks. This set
keeps the tasks alive: the end of a coroutine that also ignores `GeneratorExit` may never come."""


class Checker:
    """A runner of health checks. Backends that share a state are checked as one backend.

    Args:
        transport: transport over which clients reach the backends.
        backends: backends to check; backends without a health check are ignored.
        faults: counts of the faults of health checks; a new counter by default.
    """

    def __init__(
        self, transport: Transport, backends: Iterable[Backend], faults: Faults | None = None
    ) -> None:
        self._transport = transport
        self._faults = Faults() if faults is None else faults
        self._watches: list[_Watch] = []
        self._backends = {backend.state: backend for backend in backends if backend.state.is_checked}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start to check every backend. Return when all backends of unknown status have been checked.

        The wait lasts at most a little longer than the longest timeout of the checks of these backends.
        A second call does nothing.
        """
        if self._tasks:
            return
        watches = self._watches = [
            _Watch(self._transport, backend, self._faults) for backend in self._backends.values()
        ]
        new = [state for state in self._backends if state.availability is Availability.UNKNOWN]
        self._tasks = [asyncio.create_task(watch.run()) for watch in watches]
        longest = max((state.health.timeout_ms / 1000 for state in new), default=0.0)
        with contextlib.suppress(TimeoutError):  # a plugin's health check may exceed its timeout
            async with asyncio.timeout(longest + _GRACE):
                await asyncio.gather(*(watch.asked.wait() for watch in watches if watch.state in new))

    async def stop(self) -> None:
        """Stop all checks. After a second, leave the checks behind that ignore their cancellation."""
        for task in self._tasks:
            task.cancel()
        running = {check: watch for watch in self._watches for check in watch.running.values()}
        self._watches.clear()
        left = set(running)
        try:
            await asyncio.gather(*self._tasks, return_exceptions=True)
            if running:
                _, left = await asyncio.wait(running, timeout=_STOPPING)
                for check in left:
                    running[check].note_left_behind()
        finally:  # the end of the program may cancel this method
            self._tasks.clear()
            for check in left:
                leave_behind(check)


class _Watch:
    """A task that checks one backend repeatedly.

    Attributes:
        state: state of the backend.
        asked: event that is set after the first check of the backend.
        running: checks that have not ended, by the address that each of them checks.
    """

    def __init__(self, transport: Transport, backend: Backend, faults: Faults) -> None:
        self._transport = transport
        self._faults = faults
        self.running: dict[SocketAddress, asyncio.Task[str | OSError | None]] = {}
        self._backend = backend
        self.state = backend.state
        self._settings = backend.state.health.settings
        version = backend.state.proxy_protocol
        self._preface = proxy_protocol.build(version, transport, None, None, {}) if version else b""
        self._changed = asyncio.Event()
        self._troubles = Throttled(log)
        self.asked = asyncio.Event()
        self.state.watch(self)

    def refresh(self) -> None:
        """Recompute the pause before the next check, because the state has changed."""
        self._changed.set()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            begun = loop.time()
            await self._ask(self.state)
            self.asked.set()
            share = random.uniform(1 - _JITTER, 1)  # noqa: S311 - spreads load
            await asyncio.sleep(_SHORTEST)
            while (left := begun + self.state.pause * share - loop.time()) > 0:
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._changed.wait()

    async def _ask(self, state: BackendState) -> None:
        """Check every current address of the backend once. If one address passes, the backend passes."""
        check = state.health.check
        assert check is not None  # noqa: S101 - `Checker` has left out backends without a check
        targets = self._backend.socket_addresses
        found = await asyncio.gather(*(self._ask_one(check, target) for target in targets))
        reasons = [one for one in found if isinstance(one, str)]
        if None in found:
            state.check_passed()
        elif len(reasons) == len(found):
            state.check_failed(f"{check.name} check: {reasons[0] if reasons else 'its name has no address'}")

    async def _ask_one(self, check: HealthCheck[Any], target: SocketAddress) -> str | OSError | None:
        """Check one address.

        Returns:
            None if the check passed, the reason if the check failed, or the error if this machine lacks the
            resources for a check.
        """
        health = self.state.health
        timeout = health.timeout_ms / 1000
        if (former := self.running.get(target)) is not None:
            await asyncio.wait((former,), timeout=timeout)
            if not former.done():
                error = TimeoutError("the check still runs after its timeout and its cancellation")
                self._note(check, error, "the backend fails its checks until this check ends")
                return f"check {check.name} still runs after its timeout"
        task = asyncio.create_task(self._guard(check, Endpoint(self._transport, target, self._preface)))
        self.running[target] = task
        task.add_done_callback(lambda _: self.running.pop(target, None))
        try:
            await asyncio.wait((task,), timeout=timeout)
            if task.cancelled():  # nobody else has cancelled it
                self._note(check, asyncio.CancelledError("it has cancelled itself"), _EFFECT)
                return f"check {check.name} has cancelled itself"
            if task.done():
                return task.result()
        finally:
            task.cancel()
        await asyncio.wait((task,), timeout=_GRACE)
        return f"no answer within {health.timeout_ms} ms"

    async def _guard(self, check: HealthCheck[Any], endpoint: Endpoint) -> str | OSError | None:
        """Run one check, and return its result as `_ask_one` does. No fault of the check leaves this method.

        Raises:
            CancelledError: the checker has cancelled the check.
        """
        health = self.state.health
        CHECKING.set((check.name, self._transport, endpoint.target))
        # A check can block after it has waited, so the watchdog must not sleep during the check of a plugin.
        watch = WATCHDOG.kept_awake() if origin_of(check) else contextlib.nullcontext()
        try:
            with watch:
                result: object = await check.check(endpoint, self._settings, health.timeout_ms / 1000)
            if result is None:
                return None
            if isinstance(result, str):
                return brief(str.__str__(result))
            problem = f"check {check.name} returned {shown(result)}, not str or None"
        except BaseException as error:
            # A task must not end with SystemExit or KeyboardInterrupt: the event loop would end, too.
            if is_ours(error):
                raise
            return self._failure(check, error)
        self._note(check, TypeError(problem), _EFFECT)
        return problem

    def _failure(self, check: HealthCheck[Any], error: BaseException) -> str | OSError:
        """Return the result of a check that has raised an exception, as `_ask_one` does."""
        try:
            if isinstance(error, OSError):
                return self._failure_of_system(error)
            if isinstance(error, EOFError):  # `asyncio.IncompleteReadError`
                return brief(text_of(error))
        except BaseException as second:  # noqa: BLE001 - the attributes of an exception can be any objects
            error = second
        self._note(check, error, _EFFECT)
        return brief(text_of(error))

    def _failure_of_system(self, error: OSError) -> str | OSError:
        number = _system_error(error)
        reason = brief(os.strerror(number) if number else str(error) or text_of(error))
        if number in LOCAL_ERRORS:
            self._troubles.warning("backend %s cannot be checked now: %s", self._backend.address, reason)
            return error
        if isinstance(error, TimeoutError) and not number:
            return f"no answer within {self.state.health.timeout_ms} ms"
        return reason

    def note_left_behind(self) -> None:
        """Count the fault of a check that has ignored its cancellation."""
        check = self.state.health.check
        assert check is not None  # noqa: S101 - a task runs this check
        error = TimeoutError(f"the check still runs {_STOPPING:g} s after its cancellation")
        self._note(check, error, "Refractium stops without waiting for the check")

    def _note(self, check: HealthCheck[Any], error: BaseException, effect: str) -> None:
        self._faults.note(f"check {check.name}", check, error, effect)


def leave_behind(task: asyncio.Task[Any]) -> None:
    """Let the event loop end without a task of a health check that ignores its cancellation."""
    if task.done():
        return
    # `asyncio.run` waits for all registered tasks. The manual ("Extending") names the function.
    asyncio.tasks._unregister_task(task)  # noqa: SLF001
    task._log_destroy_pending = False  # type: ignore[attr-defined] # noqa: SLF001
    LEFT_BEHIND.add(task)
    task.add_done_callback(LEFT_BEHIND.discard)


_OTHER_NUMBERS: Final = (ssl.SSLError, socket.gaierror, socket.herror)
"""The subclasses of `OSError` whose errno is not a number of the system."""


def _system_error(error: OSError) -> int:
    """Return the system's number of an error, from which the caller makes the system's text.

    Event loops put texts of their own into errors. The result is 0 if the error has no number of the system:
    a plugin may raise ``OSError("refused", "web.example")``.
    """
    number: object = error.errno
    if isinstance(number, int) and number in errno.errorcode and not isinstance(error, _OTHER_NUMBERS):
        return number
    return 0
