"""A backend that sends and receives bytes as quickly as it can.

python streams.py PORT

A client sends any bytes for the proxy to recognise, then `MARK` and a letter:

- D: the server sends bytes until the client leaves.
- U: the server receives bytes until the client ends.
- B: the server does both at once.
- M: the client sends sizes as big-endian numbers of eight bytes; the server sends that many bytes for each.
- N: the server sends `NAME`.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

MARK: Final = b"\nstreams, please: "
NAME: Final = b"the streams server\n"
PIECE: Final = 256 * 1024
"""Bytes of one system call. Larger pieces do not fit into the second-level cache; smaller ones cost calls."""


def send_all_the_time(sock: socket.socket, moved: Callable[[int], object] = lambda _: None) -> None:
    """Send until the peer leaves, and call `moved` with the number of bytes after each system call.

    The bytes come from memory, as in a program that makes them; sendfile from tmpfs, page by page, is slower.
    """
    data = memoryview(bytes(PIECE))
    with contextlib.suppress(OSError):
        while True:
            moved(sock.send(data))


def receive_all_the_time(sock: socket.socket, moved: Callable[[int], object] = lambda _: None) -> None:
    """Receive until the peer ends or leaves, and call `moved` with the number of bytes after each call."""
    buffer = bytearray(PIECE)
    with contextlib.suppress(OSError):
        while count := sock.recv_into(buffer):
            moved(count)


def _answer_sizes(sock: socket.socket, request: bytes) -> None:
    data = memoryview(bytes(PIECE))
    while len(request := request + sock.recv(8 - len(request), socket.MSG_WAITALL)) == 8:
        size, request = int.from_bytes(request), b""
        while size:
            size -= sock.send(data[:size])


def _serve(sock: socket.socket) -> None:
    with sock, contextlib.suppress(OSError):
        data = b""
        while not data.partition(MARK)[2]:
            if not (part := sock.recv(4096)):
                return
            data += part
        asked = data.partition(MARK)[2]
        match asked[:1]:
            case b"D":
                send_all_the_time(sock)
            case b"U":
                receive_all_the_time(sock)
            case b"B":
                threading.Thread(target=send_all_the_time, args=(sock,), daemon=True).start()
                receive_all_the_time(sock)
            case b"M":
                _answer_sizes(sock, asked[1:])
            case b"N":
                sock.sendall(NAME)


def main() -> None:
    with socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=4096) as listener:
        while True:
            sock, _ = listener.accept()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=_serve, args=(sock,), daemon=True).start()


if __name__ == "__main__":
    main()
