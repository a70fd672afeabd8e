"""Plain blocking clients, and what both ends of a connection can see of each other."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE: Final = 60.0
"""Seconds after which a blocking call has hung; no test waits for it to pass."""

MIB: Final = 1 << 20

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class Received(NamedTuple):
    """What came until the peer had no more, and how it ended."""

    data: bytes
    end: Literal["eof", "reset"]


def payload(seed: object, size: int) -> bytes:
    """`size` bytes that belong to `seed`: a byte of another stream in them is noticed."""
    return random.Random(str(seed)).randbytes(size)  # noqa: S311 - test data


def connect(address: tuple[str, int], *, source: str | None = None, receive_buffer: int = 0) -> socket.socket:
    """A connected socket.

    Args:
        address: host and port.
        source: the address to come from, instead of the usual one.
        receive_buffer: bytes that its kernel takes unread; small for a slow reader.
    """
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family)
    try:
        sock.settimeout(PATIENCE)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if source is not None:
            sock.bind((source, 0))
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


def receive(sock: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes, or fewer if the peer ends before."""
    parts = []
    while size and (part := sock.recv(min(size, MIB))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def receive_all(sock: socket.socket) -> Received:
    """Everything until the peer ends or resets."""
    parts = []
    try:
        while part := sock.recv(MIB):
            parts.append(part)
    except ConnectionError:
        return Received(b"".join(parts), "reset")
    return Received(b"".join(parts), "eof")


def ask(address: tuple[str, int], request: bytes, *, source: str | None = None) -> Received:
    """Send a request, end the sending side, and take the whole answer."""
    try:
        sock = connect(address, source=source)
    except ConnectionResetError:  # so quickly that the connect has met it
        return Received(b"", "reset")
    with sock:
        try:
            sock.sendall(request)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            return Received(receive_all(sock).data, "reset")
        return receive_all(sock)


def reset(sock: socket.socket) -> None:
    """Close with a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    sock.close()


@contextlib.contextmanager
def sending(sock: socket.socket, data: bytes, *, shut: bool = True) -> Iterator[threading.Event]:
    """Send from a thread of its own while the block runs, then end the sending side.

    Yields:
        An event that says that all of it is in the kernel.
    """
    sent = threading.Event()

    def run() -> None:
        with contextlib.suppress(OSError):
            sock.sendall(data)
            sent.set()
            if shut:
                sock.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield sent
    finally:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "still sending"
