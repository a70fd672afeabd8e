"""UDP clients and backends: blocking sockets with a time limit."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from support.clients import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

HOST = "127.0.0.1"
"""Where backends listen that are not told; `support.paths` may set it."""


class UdpBackend:
    """Answers every datagram with what `answer` makes of it, if that is anything.

    Args:
        answer: from a datagram to the answers to it.
        host: the address to listen on, instead of `HOST`.
        port: 0 takes a free one.

    Attributes:
        address: as a route names it.
        clients: the addresses that datagrams came from, in the order of their first.
        seen: how many datagrams came.
    """

    def __init__(
        self, answer: Callable[[bytes], list[bytes]], *, host: str | None = None, port: int = 0
    ) -> None:
        self._answer = answer
        host = host or HOST
        self._sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._sock.bind((host, port))
        self.port = self._sock.getsockname()[1]
        self.address = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
        self.clients: dict[tuple[str, int], None] = {}
        self.seen = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # wakes the thread, although no peer is connected
            self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE)
        self._sock.close()

    def push(self, datagram: bytes) -> None:
        """Send a datagram that nobody asked for to the latest client."""
        self._sock.sendto(datagram, list(self.clients)[-1])

    def _serve(self) -> None:
        while True:
            datagram, client = self._sock.recvfrom(65_536)
            if not datagram and client is None:
                return
            self.seen += 1
            self.clients[client] = None
            for answer in self._answer(datagram):
                with suppress(BrokenPipeError):  # the block has ended meanwhile
                    self._sock.sendto(answer, client)


def echo(datagram: bytes) -> list[bytes]:
    """What came, sent back."""
    return [datagram]


def client(address: tuple[str, int], *, source: str | None = None) -> socket.socket:
    """A connected socket: it takes answers from that address only."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.settimeout(PATIENCE)
    if source is not None:
        sock.bind((source, 0))
    sock.connect(address)
    return sock


def ask(address: tuple[str, int], datagram: bytes, *, source: str | None = None) -> bytes:
    """One question by a client of its own, and the answer."""
    with client(address, source=source) as sock:
        sock.send(datagram)
        return sock.recv(65_536)
