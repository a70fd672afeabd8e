"""Addresses of backends that are configured by name, looked up off the data path.

Each name has a thread while it is being looked up, because a lookup cannot be cancelled and one that hangs
must not hold up another. The thread is a daemon: a stop does not wait for it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from typing import TYPE_CHECKING, Final

from refractium.throttle import Throttled

if TYPE_CHECKING:
    from collections.abc import Iterable

    from refractium.routing import Backend, SocketAddress

log = logging.getLogger(__name__)

_REFRESH: Final = 10.0
"""Seconds between lookups of a name; getaddrinfo does not tell how long its answers are good for."""


class Resolver:
    """Keeps `Backend.socket_addresses` of named backends up to date.

    An answer replaces the addresses; a lookup that fails or hangs leaves the last good ones.

    Args:
        backends: those configured by an address are left alone.
    """

    def __init__(self, backends: Iterable[Backend]) -> None:
        self._by_name: dict[tuple[str, int], list[Backend]] = {}
        for backend in backends:
            if backend.address.is_name:
                self._by_name.setdefault((backend.address.host, backend.address.port), []).append(backend)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, timeout_ms: int) -> None:
        """Look every name up; returns when all have answered or the timeout has passed."""
        if not self._by_name:
            return
        firsts = []
        for host, port in self._by_name:
            first = asyncio.Event()
            self._tasks.append(asyncio.create_task(self._keep_fresh(host, port, first)))
            firsts.append(asyncio.create_task(first.wait()))
        _, late = await asyncio.wait(firsts, timeout=timeout_ms / 1000)
        for task in late:
            task.cancel()

    async def stop(self) -> None:
        """Look nothing up any more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    async def _keep_fresh(self, host: str, port: int, first: asyncio.Event) -> None:
        failures = Throttled(log)
        while True:
            try:
                found = await _look_up(host, port)
            except OSError as error:
                failures.warning("backend %s:%d: the name cannot be resolved: %s", host, port, error.strerror)
            else:
                for backend in self._by_name[host, port]:
                    backend.socket_addresses = found
            first.set()
            await asyncio.sleep(_REFRESH)


async def _look_up(host: str, port: int) -> tuple[SocketAddress, ...]:
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[tuple[SocketAddress, ...]] = loop.create_future()

    def deliver(found: tuple[SocketAddress, ...] | OSError) -> None:
        if answer.done():
            return
        if isinstance(found, OSError):
            answer.set_exception(found)
        else:
            answer.set_result(found)

    def run() -> None:
        found: tuple[SocketAddress, ...] | OSError
        try:
            answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found = tuple(dict.fromkeys((family, address) for family, *_, address in answers))  # type: ignore[misc]
        except OSError as error:
            found = error
        except UnicodeError as error:
            found = OSError(0, str(error))
        try:
            loop.call_soon_threadsafe(deliver, found)
        except RuntimeError:
            log.debug("the answer for %s came after the stop", host)

    threading.Thread(target=run, name=f"resolve {host}", daemon=True).start()
    return await answer
