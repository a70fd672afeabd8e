"""The contract of health checks. Each kind has a name, settings, and a method that checks one backend."""

from __future__ import annotations

import errno
import inspect
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, TypeAlias, TypeVar

from refractium.contract.protocol import Transport, problems_of_name, problems_of_settings
from refractium.contract.words import kind_of, shown

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter
    from collections.abc import Iterable, Iterator
    from socket import AddressFamily, socket

    from msgspec import Struct

SocketAddress: TypeAlias = "tuple[AddressFamily, str | tuple[str, int] | tuple[str, int, int, int]]"
"""The address family, and the address as `socket.connect` accepts it."""

S = TypeVar("S", bound="Struct")

SHARED_KEYS: Final = frozenset({"kind", "interval_ms", "timeout_ms", "rise", "fall"})
"""The keys that every kind of health check has. The settings of a kind must use other names."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The present address of a backend, with its host name resolved.

    Attributes:
        transport: the transport over which clients reach the backend.
        target: the address family, and the address as `socket.connect` accepts it.
        preface: the PROXY header that the backend expects, or no bytes. `connect` sends this header. A check
            with a socket of its own must send the header before its first bytes. Over UDP, header and first
            bytes form one datagram.
    """

    transport: Transport
    target: SocketAddress
    preface: bytes = b""

    async def connect(self) -> tuple[StreamReader, StreamWriter]:
        """Connect to the backend over TCP or a unix socket, and send the PROXY header, if there is one.

        Returns:
            The streams of the connection, as `asyncio.open_connection` returns them. Close the writer.

        Raises:
            OSError: the backend cannot be reached.
            ValueError: the transport is UDP.
        """
        import asyncio  # noqa: PLC0415 - most plugins need no event loop, and the import is slow

        sock = await self.open_socket()
        try:
            if isinstance(self.target[1], str):
                return await asyncio.open_unix_connection(sock=sock)
            return await asyncio.open_connection(sock=sock)
        except BaseException:
            sock.close()
            raise

    async def open_socket(self) -> socket:
        """Connect as `connect` does, but return a non-blocking socket, for `asyncio.loop.sock_recv`.

        Raises:
            OSError: the backend cannot be reached.
            ValueError: the transport is UDP.
        """
        import asyncio  # noqa: PLC0415 - as in `connect`
        import socket  # noqa: PLC0415

        if self.transport is Transport.UDP:
            raise ValueError("a connection needs the transport TCP, not UDP")
        family, address = self.target
        loop = asyncio.get_running_loop()
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            if family == socket.AF_UNIX:
                # This connect returns at once. If the queue of a unix socket is full, connect fails with
                # EAGAIN, which `sock_connect` would mistake for a connection in progress.
                sock.connect(address)
            else:
                await loop.sock_connect(sock, address)
                # TCP can connect a socket to itself if the port of a dead backend is an ephemeral port.
                if sock.getsockname() == sock.getpeername():
                    raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))  # noqa: TRY301
            if self.preface:
                await loop.sock_sendall(sock, self.preface)
        except BaseException:
            sock.close()
            raise
        return sock


class HealthCheck(ABC, Generic[S]):
    """The base class of health checks.

    A health check keeps no state, because one object checks every backend that uses this kind of check.
    """

    name: str
    """Value of the setting `kind`: lower-case letters, digits, ``_`` and ``-``, starting with a letter."""
    transports: frozenset[Transport] = frozenset({Transport.TCP})
    """The transports over which this kind of health check can check a backend."""
    settings: type[S]
    """Frozen Struct of the kind's settings, without `SHARED_KEYS`. The Struct forbids unknown fields."""
    summary: str = ""
    """One-line description."""

    @abstractmethod
    async def check(self, endpoint: Endpoint, settings: S, timeout: float) -> str | None:  # noqa: ASYNC109 - for checks in a thread
        """Check whether one backend is healthy.

        Refractium cancels the check after `timeout`. The check must then close the sockets that it opened. An
        `OSError` that shows a shortage on this machine (`EMFILE`, `EADDRNOTAVAIL` ...) counts neither as a
        success nor as a failure.

        Args:
            endpoint: the backend's present address.
            settings: the settings of the route's health check.
            timeout: time for the check (s).

        Returns:
            None if the backend is healthy, else the reason in a few words.

        Raises:
            OSError: the backend is not healthy; the text of the exception is the reason.
            EOFError: same as `OSError`, for example `asyncio.IncompleteReadError`.
            Exception: same as `OSError`; Refractium also counts a fault of the plugin.
        """

    def problems(self, settings: S) -> Iterable[tuple[str, str]]:
        """Return the mistakes in settings whose types are valid, each as a pair of key and message."""
        del settings
        return ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


def problems_of_health_check(check: object) -> Iterator[str]:
    """Yield each violation of the contract in an object that a plugin returns as a health check."""
    if not isinstance(check, HealthCheck):
        yield f"{shown(check)} is not a HealthCheck"
        return
    name = getattr(check, "name", None)
    if invalid := list(problems_of_name(name)):
        yield from invalid
        return
    given: object = check.transports
    if not (
        isinstance(given, set | frozenset) and given and all(isinstance(one, Transport) for one in given)
    ):
        yield f"{name}: transports is {kind_of(given)}, not a set of Transport"
    settings = getattr(check, "settings", None)
    yield from problems_of_settings(f"{name}: settings", settings)
    if not inspect.iscoroutinefunction(check.check):
        yield f"{name}: check is not async: write async def"
    if taken := SHARED_KEYS.intersection(getattr(settings, "__struct_fields__", ())):
        yield f"{name}: settings has {', '.join(sorted(taken))}, which every health check has already"
