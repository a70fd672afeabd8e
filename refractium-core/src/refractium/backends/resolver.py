"""Lookups of the host names of backends, outside of the data path."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from refractium.sockets import names

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from refractium.backends.backend import Backend
    from refractium.sockets.names import HostName

_REFRESH: Final = 10.0
"""Seconds between lookups of a name, because getaddrinfo does not return the lifetime of its answers."""


class Resolver:
    """A resolver that keeps `Backend.socket_addresses` up to date for backends with host names.

    An answer replaces the addresses. A lookup that fails or hangs leaves the last good addresses unchanged.
    The resolvers of a process share their answers. So a new configuration begins with the answers that the
    old configuration received.

    Args:
        backends: backends to look up; backends with an IP address or a path are ignored.
    """

    def __init__(self, backends: Iterable[Backend]) -> None:
        self._by_host: dict[str, list[Backend]] = {}
        for backend in backends:
            if backend.address.is_name:
                self._by_host.setdefault(backend.address.host, []).append(backend)
        self._names: list[HostName] = []
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def names(self) -> Sequence[HostName]:
        """The names of the backends; empty before the start and after the stop."""
        return self._names

    async def start(self, timeout_ms: int) -> None:
        """Look up every name. Return when each name has its first result or its timeout has passed.

        Args:
            timeout_ms: timeout of each name (ms), from the first request for the name in this process.
        """
        firsts: dict[asyncio.Future[None], float] = {}
        for host, backends in self._by_host.items():
            name = names.name(host)
            self._names.append(name)
            _use(name, backends)
            first = asyncio.get_running_loop().create_future()
            if name.looked_up == float("-inf"):
                firsts[first] = name.asked
            self._tasks.append(asyncio.create_task(_keep_fresh(name, backends, first)))
        # After the last of all deadlines, the timeout of every name has passed.
        deadline = max(firsts.values(), default=0.0) + timeout_ms / 1000
        if firsts and (seconds := deadline - time.monotonic()) > 0:
            await asyncio.wait(firsts, timeout=seconds)

    async def stop(self) -> None:
        """Stop all lookups."""
        tasks, self._tasks = self._tasks, []
        self._names.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _keep_fresh(name: HostName, backends: Sequence[Backend], first: asyncio.Future[None]) -> None:
    what = f"backend {', '.join(dict.fromkeys(str(backend.address) for backend in backends))}"
    while True:
        _use(name, backends)
        if (pause := name.looked_up + _REFRESH - time.monotonic()) > 0:
            await asyncio.sleep(pause)
            continue  # another resolver may have looked the name up meanwhile
        try:
            await name.look_up(what)
        except OSError as error:
            # Log the text of the error: the traceback of the error would keep `name` alive if a log handler
            # keeps the record.
            name.failures.warning("%s: the name cannot be resolved: %s", what, str(error))
        if not first.done():
            first.set_result(None)


def _use(name: HostName, backends: Iterable[Backend]) -> None:
    if name.found:
        for backend in backends:
            backend.socket_addresses = names.at(backend.address.port, name.found)
