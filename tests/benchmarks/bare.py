"""The least that a proxy in Python does: the system calls of Refractium in the same order, and nothing else.

python bare.py FILE

FILE is peers/bare.json. The first byte of a client selects its backend. This proxy identifies, limits, times,
counts and logs nothing, and survives no fault. So its figures are the least that any proxy in Python costs.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import sys
from pathlib import Path
from typing import Final

_TLS: Final = 0x16
_BUFFER: Final = 65_536
_EVENTS: Final = select.EPOLLIN | select.EPOLLET | select.EPOLLRDHUP | select.EPOLLPRI


class Flow:
    """One direction, from its socket to the socket of the opposite flow."""

    __slots__ = ("has_ended", "opposite", "sock")

    opposite: Flow

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.has_ended = False


class Bare:
    """A proxy that serves without an end.

    Args:
        listener: a non-blocking listening socket.
        http: the port of the backend for HTTP.
        streams: the port of the backend for streams that begin like TLS.
    """

    def __init__(self, listener: socket.socket, http: int, streams: int) -> None:
        self._listener = listener
        self._http = "127.0.0.1", http
        self._streams = "127.0.0.1", streams
        self._epoll = select.epoll()
        self._epoll.register(listener.fileno(), select.EPOLLIN)
        self._flows: dict[int, Flow] = {}
        self._silent: dict[int, socket.socket] = {}
        self._begun: list[tuple[socket.socket, bytes]] = []
        self._over: list[socket.socket] = []
        self._view = memoryview(bytearray(_BUFFER))

    def serve(self) -> None:
        while True:
            for fd, mask in self._epoll.poll(maxevents=256):
                flow = self._flows.get(fd)
                if flow is not None:
                    self._move(flow, mask)
                elif fd == self._listener.fileno():
                    self._accept()
                elif fd in self._silent:
                    self._begin(self._silent[fd])
            for sock, first in self._begun:
                self._connect(sock, first)
            self._begun.clear()
            for sock in self._over:
                sock.close()
            self._over.clear()

    def _accept(self) -> None:
        while True:
            try:
                fd, _ = self._listener._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                return
            sock = socket.SocketType(socket.AF_INET, socket.SOCK_STREAM, 0, fd)
            sock.setblocking(False)  # noqa: FBT003 - positional by its nature
            self._begin(sock)  # type: ignore[arg-type]

    def _begin(self, sock: socket.socket) -> None:
        fd = sock.fileno()
        try:
            first = sock.recv(16_384)
        except BlockingIOError:
            self._silent[fd] = sock
            self._epoll.register(fd, _EVENTS)
        except OSError:
            self._leave(sock)
        else:
            if first:
                self._begun.append((sock, first))
            else:
                self._leave(sock)

    def _leave(self, sock: socket.socket) -> None:
        self._silent.pop(sock.fileno(), None)
        self._over.append(sock)

    def _connect(self, sock: socket.socket, first: bytes) -> None:
        backend = socket.SocketType(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        backend.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        backend.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        backend.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        backend.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
        backend.connect_ex(self._streams if first[0] == _TLS else self._http)
        backend.send(first)
        up, down = Flow(sock), Flow(backend)  # type: ignore[arg-type]
        up.opposite, down.opposite = down, up
        for flow in (up, down):
            fd = flow.sock.fileno()
            self._flows[fd] = flow
            if self._silent.pop(fd, None) is None:
                self._epoll.register(fd, _EVENTS)

    def _move(self, flow: Flow, mask: int) -> None:
        view, sink = self._view, flow.opposite.sock
        more = socket.MSG_MORE if mask & select.EPOLLRDHUP else 0
        while not flow.has_ended:
            try:
                got = flow.sock.recv_into(view)
            except BlockingIOError:
                return
            except OSError:
                got = 0
            if not got:
                self._end(flow)
                return
            self._send(sink, got, more)
            if got < _BUFFER and not more:
                return

    def _send(self, sink: socket.socket, size: int, more: int) -> None:
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < size:
                try:
                    sent += sink.send(self._view[sent:size], more)
                except BlockingIOError:
                    select.select([], [sink], [])

    def _end(self, flow: Flow) -> None:
        flow.has_ended = True
        if not flow.opposite.has_ended:
            with contextlib.suppress(OSError):
                flow.opposite.sock.shutdown(socket.SHUT_WR)
            return
        for one in (flow, flow.opposite):
            del self._flows[one.sock.fileno()], one.opposite
            self._over.append(one.sock)


def main() -> None:
    ports = json.loads(Path(sys.argv[1]).read_text())
    with socket.create_server(("127.0.0.1", ports["port"]), backlog=4096) as listener:
        listener.setblocking(False)  # noqa: FBT003
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        Bare(listener, ports["http"], ports["streams"]).serve()


if __name__ == "__main__":
    main()
