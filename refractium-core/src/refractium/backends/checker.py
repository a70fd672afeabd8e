"""The checker, which runs the health checks of all backends and reports the results to backend states."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
from typing import TYPE_CHECKING, Any, Final

from refractium.backends.state import Availability
from refractium.contract import Endpoint
from refractium.sockets.descriptors import LOCAL_ERRORS
from refractium.throttle import Throttled
from refractium.wire import proxy_protocol

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
"""Seconds that `Checker.start` waits beyond the longest timeout, so that the last checks can report."""


class Checker:
    """A runner of health checks. Backends that share a state are checked as one backend.

    Args:
        transport: transport over which clients reach the backends.
        backends: backends to check; backends without a health check are ignored.
    """

    def __init__(self, transport: Transport, backends: Iterable[Backend]) -> None:
        self._transport = transport
        self._backends = {backend.state: backend for backend in backends if backend.state.is_checked}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start to check every backend. Return when all backends of unknown status have been checked.

        The wait lasts at most a little longer than the longest timeout of the checks of these backends.
        A second call does nothing.
        """
        if self._tasks:
            return
        watches = [_Watch(self._transport, backend) for backend in self._backends.values()]
        new = [state for state in self._backends if state.availability is Availability.UNKNOWN]
        self._tasks = [asyncio.create_task(watch.run()) for watch in watches]
        longest = max((state.health.timeout_ms / 1000 for state in new), default=0.0)
        with contextlib.suppress(TimeoutError):  # a plugin's health check may exceed its timeout
            async with asyncio.timeout(longest + _GRACE):
                await asyncio.gather(*(watch.asked.wait() for watch in watches if watch.state in new))

    async def stop(self) -> None:
        """Stop all checks."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()


class _Watch:
    """A task that checks one backend repeatedly.

    Attributes:
        state: state of the backend.
        asked: event that is set after the first check of the backend.
    """

    def __init__(self, transport: Transport, backend: Backend) -> None:
        self._transport = transport
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
        try:
            async with asyncio.timeout(timeout):
                endpoint = Endpoint(self._transport, target, self._preface)
                return await check.check(endpoint, self._settings, timeout)
        except TimeoutError as error:
            return _reason(error) if error.errno else f"no answer within {health.timeout_ms} ms"
        except OSError as error:
            if error.errno in LOCAL_ERRORS:
                self._troubles.warning(
                    "backend %s cannot be checked now: %s", self._backend.address, _reason(error)
                )
                return error
            return _reason(error)
        except Exception as error:
            # A mistake of the plugin counts as a failed check, too.
            log.debug("check %s of backend %s raised", check.name, self._backend.address, exc_info=error)
            return f"{type(error).__name__}: {error}"


def _reason(error: OSError) -> str:
    """Return the system's text for an error, because event loops use texts of their own."""
    return os.strerror(error.errno) if error.errno else str(error)
