"""Plain blocking clients, and functions for both ends of a connection."""

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
"""Seconds after which a blocking call counts as hung; no test waits for this time to pass."""

MIB: Final = 1 << 20

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class Received(NamedTuple):
    """The bytes from a peer, and the way in which the peer ended."""

    data: bytes
    end: Literal["eof", "reset"]


def payload(seed: object, size: int) -> bytes:
    """Return `size` random bytes that depend on `seed`, so that a byte of another stream is noticed."""
    return random.Random(str(seed)).randbytes(size)  # noqa: S311 - test data


def connect(address: tuple[str, int], *, source: str | None = None, receive_buffer: int = 0) -> socket.socket:
    """Return a connected socket.

    Args:
        address: host and port.
        source: the local address; None for the default of the kernel.
        receive_buffer: bytes that the kernel accepts unread, small for a slow reader; 0 for the default.
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
    """Return exactly `size` bytes, or fewer if the peer ends before."""
    parts = []
    while size and (part := sock.recv(min(size, MIB))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def receive_all(sock: socket.socket) -> Received:
    """Return all bytes until the peer ends or resets the connection."""
    parts = []
    try:
        while part := sock.recv(MIB):
            parts.append(part)
    except ConnectionError:
        return Received(b"".join(parts), "reset")
    return Received(b"".join(parts), "eof")


def ask(address: tuple[str, int], request: bytes, *, source: str | None = None) -> Received:
    """Send a request, end the sending side, and return the whole answer."""
    try:
        sock = connect(address, source=source)
    except ConnectionResetError:  # the reset came so early that connect(2) has returned it
        return Received(b"", "reset")
    with sock:
        try:
            sock.sendall(request)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            return Received(receive_all(sock).data, "reset")
        return receive_all(sock)


def reset(sock: socket.socket) -> None:
    """Close a socket with a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    sock.close()


@contextlib.contextmanager
def sending(sock: socket.socket, data: bytes, *, shut: bool = True) -> Iterator[threading.Event]:
    """Send from a separate thread while the block runs, then end the sending side.

    Yields:
        An event that is set once the kernel has all bytes.
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
