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
"""The default address of backends; `support.paths` may set it."""


class UdpBackend:
    """A backend that answers every datagram with the datagrams that `answer` returns.

    Args:
        answer: a function that returns the answers to a datagram.
        host: the address to listen on, instead of `HOST`.
        port: the port; 0 for any free port.

    Attributes:
        address: the address in the notation of a route.
        clients: the addresses of clients, in the order of their first datagrams.
        seen: number of datagrams received.
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
        """Send an unrequested datagram to the client that came last."""
        self._sock.sendto(datagram, list(self.clients)[-1])

    def _serve(self) -> None:
        while True:
            datagram, client = self._sock.recvfrom(65_536)
            if not datagram and client is None:
                return
            self.seen += 1
            self.clients[client] = None
            for answer in self._answer(datagram):
                with suppress(BrokenPipeError):  # the block has ended in the meantime
                    self._sock.sendto(answer, client)


def echo(datagram: bytes) -> list[bytes]:
    """Answer a datagram with itself."""
    return [datagram]


def client(address: tuple[str, int], *, source: str | None = None) -> socket.socket:
    """Return a connected UDP socket, which receives datagrams from that address only."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.settimeout(PATIENCE)
    if source is not None:
        sock.bind((source, 0))
    sock.connect(address)
    return sock


def ask(address: tuple[str, int], datagram: bytes, *, source: str | None = None) -> bytes:
    """Send a datagram from a new client, and return the answer."""
    with client(address, source=source) as sock:
        sock.send(datagram)
        return sock.recv(65_536)


def query(number: int) -> bytes:
    """Return a DNS query for the address of ``a.example`` whose id is `number`."""
    return number.to_bytes(2, "big") + b"\x01\0\0\x01\0\0\0\0\0\0\x01a\x07example\0\0\x01\0\x01"


def look_up(address: tuple[str, int], count: int) -> int:
    """Send DNS queries one after the other, each from a new port, and return the number of answers."""
    answered = 0
    for number in range(count):
        with client(address) as sock:
            sock.settimeout(2)
            sock.send(query(number))
            with suppress(TimeoutError):
                answered += sock.recv(100) == query(number)
    return answered
