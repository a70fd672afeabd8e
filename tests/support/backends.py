"""Real backends with blocking sockets: a thread for each connection runs the handler of the backend."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import queue
import socket
import threading
from typing import TYPE_CHECKING, Any

from support.clients import MIB, PATIENCE, Received, receive_all, sending

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Self

    Handler = Callable[[socket.socket], Any]

HOST = "127.0.0.1"
"""The default address of backends; `support.paths` may set it."""
FOLDER: Path | None = None
"""The folder for unix sockets of backends; None for backends with TCP sockets."""
_NUMBERS = itertools.count()


class Backend:
    """A backend that accepts until the block ends, gives each connection to `handler`, and then closes it.

    Args:
        handler: the function that serves a connection, and may close the socket itself. A connection error
            ends the handler without a report; the end of the block raises any other error.
        host: the address to listen on, instead of `HOST` or a unix socket in `FOLDER`.
        port: the port; 0 for any free port.
        path: the path of a unix socket, instead of host and port.
        backlog: the number of clients that may wait to be accepted.
        receive_buffer: bytes that the kernel accepts unread; 0 for the default of the kernel.

    Attributes:
        address: the address in the notation of a route.
        results: the values that the handler has returned, in the order of their return.
        accepted: number of accepted connections.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        host: str | None = None,
        port: int = 0,
        path: Path | None = None,
        backlog: int = 1024,
        receive_buffer: int = 0,
    ) -> None:
        self._handler = handler
        if FOLDER is not None and host is None and not port:
            path = path or FOLDER / f"backend-{next(_NUMBERS)}"
        host = host or HOST
        if path is not None:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(path))
            self._listener.listen(backlog)
            self.address = f"unix:{path}"
        else:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._listener = socket.create_server((host, port), family=family, backlog=backlog)
            self.port = self._listener.getsockname()[1]
            self.address = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
        if receive_buffer:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.accepted = 0
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(PATIENCE)
        self._listener.close()
        with self._lock:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a backend hangs"
        if self._errors:
            raise self._errors[0]

    def result(self) -> Any:
        """Wait for the handler of the next connection to end, and return its value."""
        return self.results.get(timeout=PATIENCE)

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.settimeout(PATIENCE)
            with self._lock:
                self._open.add(sock)
                self.accepted += 1
            self._start(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        try:
            self.results.put(self._handler(sock))
        except BaseException as error:  # noqa: BLE001 - raised where the block ends
            # ENOTCONN: the peer has reset the connection before a call of shutdown(2).
            if not isinstance(error, ConnectionError) and getattr(error, "errno", 0) != errno.ENOTCONN:
                self._errors.append(error)
        finally:
            with self._lock:
                self._open.discard(sock)
                sock.close()


def echo(sock: socket.socket) -> int:
    """Send everything back, and return the number of bytes."""
    count = 0
    while data := sock.recv(MIB):
        sock.sendall(data)
        count += len(data)
    return count


def sink(sock: socket.socket) -> Received:
    """Receive everything; after an orderly end, answer with the `digest` of the bytes."""
    received = receive_all(sock)
    if received.end == "eof":
        sock.sendall(digest(received.data))
    return received


def digest(data: bytes) -> bytes:
    """Return the length and the SHA-256 of bytes."""
    return f"{len(data)} {hashlib.sha256(data).hexdigest()}".encode()


def source(data: bytes) -> Handler:
    """Return a handler that sends `data`, ends its sending side, and then receives everything."""

    def handle(sock: socket.socket) -> Received:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        return receive_all(sock)

    return handle


def duplex(data: bytes) -> Handler:
    """Return a handler that sends `data` and receives everything at the same time."""

    def handle(sock: socket.socket) -> Received:
        with sending(sock, data):
            return receive_all(sock)

    return handle


def named(name: str) -> Handler:
    """Return a handler that sends its name to every client, then echoes."""

    def handle(sock: socket.socket) -> int:
        sock.sendall(name.encode())
        return echo(sock)

    return handle


@contextlib.contextmanager
def refusing() -> Iterator[str]:
    """Yield the address of a port that is bound, but on which nothing listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{sock.getsockname()[1]}"


@contextlib.contextmanager
def hanging() -> Iterator[str]:
    """Yield an address that does not answer: its accept queue is full, so the kernel drops new clients."""
    with socket.socket() as server, contextlib.ExitStack() as fillers:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(2):
            filler = fillers.enter_context(socket.socket())
            filler.setblocking(False)  # noqa: FBT003 - positional by its nature
            filler.connect_ex(server.getsockname())
        yield f"127.0.0.1:{server.getsockname()[1]}"


class FullUnixQueue:
    """A unix socket whose accept queue is full until `make_room` is called.

    Attributes:
        address: the address in the notation of a route.
    """

    def __init__(self, path: Path) -> None:
        self.address = f"unix:{path}"
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen(0)
        self._filler = socket.socket(socket.AF_UNIX)
        self._filler.connect(str(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._filler.close()
        self._server.close()

    def make_room(self) -> None:
        """Accept the client that fills the queue, and close its connection."""
        self._server.accept()[0].close()

    def accept(self) -> socket.socket:
        """Accept the next client, and return its socket."""
        self._server.settimeout(PATIENCE)
        sock, _ = self._server.accept()
        sock.settimeout(PATIENCE)
        return sock
