"""Backends for tests: real sockets, which threads serve."""

from __future__ import annotations

import contextlib
import errno
import queue
import socket
import threading
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from refractium.contract import Transport
from refractium.testing.laws import show

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

PATIENCE: Final = 30.0
"""Seconds after which a test stops to wait for the other side."""
HOST: Final = "127.0.0.1"
_BUFFER: Final = 65_536

T = TypeVar("T")


class Backend(str):
    r"""A backend on a port of this machine. The text of the object is the address, as a route names it.

    ::

        with serve(Route(knock, Backend.named("green")), fallback_tcp=Backend.named("rest")) as proxy:
            assert proxy.ask(b"KNOCK\n") == b"green"

    `serve` and `run_check` start the backends that they receive, and stop these backends at the end. For any
    other use, the backend is a context manager. `echo`, `named` and `scripted` make backends that answer. A
    backend that ``Backend()`` makes leaves its connections to the test, which calls `accept`.

    Args:
        transport: the transport of the clients.
    """

    __slots__ = (
        "_accepted",
        "_ended",
        "_errors",
        "_listener",
        "_lock",
        "_open",
        "_serves",
        "_threads",
        "_transport",
    )

    _transport: Transport
    _serves: _Conversation | None
    _listener: socket.socket
    _ended: queue.SimpleQueue[bytes]
    _accepted: queue.SimpleQueue[socket.socket]
    _lock: threading.Lock
    _open: list[socket.socket]
    _threads: list[threading.Thread]
    _errors: list[Exception]

    def __new__(cls, transport: Transport = Transport.TCP) -> Self:
        return cls._of(None, transport)

    @classmethod
    def _of(cls, conversation: _Conversation | None, transport: Transport) -> Self:
        kind = socket.SOCK_STREAM if transport is Transport.TCP else socket.SOCK_DGRAM
        listener = socket.socket(socket.AF_INET, kind)
        listener.bind((HOST, 0))
        if transport is Transport.TCP:
            listener.listen()
        self = super().__new__(cls, f"{HOST}:{listener.getsockname()[1]}")
        self._transport = transport
        self._serves = conversation
        self._listener = listener
        self._ended = queue.SimpleQueue()
        self._accepted = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._open = []
        self._threads = []
        self._errors = []
        return self

    @classmethod
    def echo(cls, transport: Transport = Transport.TCP) -> Self:
        """Return a backend that sends everything back. A TCP connection ends when the client ends it."""
        return cls._of(_Echo(), transport)

    @classmethod
    def named(cls, name: str, transport: Transport = Transport.TCP) -> Self:
        """Return a backend whose only answer is its name.

        The backend sends the name to each TCP client at once, and as the answer to each datagram. A TCP
        connection ends when the client ends it.
        """
        return cls._of(_Named(name.encode()), transport)

    @classmethod
    def scripted(cls, *steps: tuple[bytes, bytes], transport: Transport = Transport.TCP) -> Self:
        r"""Return a backend that expects certain bytes, and sends certain answers.

        ::

            Backend.scripted((b"", b"220 ready\r\n"), (b"QUIT\r\n", b"221 bye\r\n"))

        Each TCP connection begins with the first step. After the last step, the backend ends its sending
        side. If other bytes come, the backend closes the connection, and the end of the block raises an
        `AssertionError` that names the step. Over UDP, the steps are the datagrams of all clients together.

        Args:
            steps: pairs of the bytes that the client must send and the answer. Without expected bytes, a TCP
                backend sends the answer at once.
            transport: the transport of the clients.
        """
        return cls._of(_Script(steps), transport)

    def accept(self) -> socket.socket:
        """Return the backend's side of the next connection; the end of the block closes the socket.

        Raises:
            TimeoutError: no client has connected within 30 seconds.
            TypeError: the backend itself serves its connections, or its transport is UDP.
        """
        if self._serves is not None or self.transport is Transport.UDP:
            raise TypeError(f"{self._described} serves its clients itself: accept is for Backend()")
        return _next(self._accepted, f"no client has connected to {self._described}")

    def received(self) -> bytes:
        """Wait for the end of the next connection, or for the next datagram, and return its bytes.

        Raises:
            TimeoutError: no connection has ended within 30 seconds.
            TypeError: the test itself serves the connections.
        """
        if self._serves is None and self.transport is Transport.TCP:
            raise TypeError(
                f"the test itself receives the bytes of {self._described}: use the socket from accept"
            )
        return _next(self._ended, f"no client of {self._described} has ended")

    @property
    def transport(self) -> Transport:
        """The transport of the clients."""
        return self._transport

    @property
    def is_running(self) -> bool:
        """Whether the backend runs: the block has begun, and has not ended."""
        return bool(self._threads)

    def __enter__(self) -> Self:
        if self._listener.fileno() < 0:
            raise RuntimeError(f"{self._described} has ended: make a new backend for each block")
        self._start(self._accept if self.transport is Transport.TCP else self._answer)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):  # it wakes the thread, although a UDP socket has no peer
            self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(PATIENCE)
        self._listener.close()
        with self._lock:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)
        self._threads.clear()
        for sock in self._open:
            sock.close()
        if self._errors and error is None:
            raise self._errors[0]
        for one in self._errors:
            error.add_note(str(one))  # type: ignore[union-attr]

    def __del__(self) -> None:
        self._listener.close()

    @property
    def _described(self) -> str:
        return f"<Backend {self._serves or 'of the test'} {self}>"

    def __repr__(self) -> str:
        return self._described

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, name=f"backend {self}", daemon=True)
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
                self._open.append(sock)
            if self._serves is None:
                self._accepted.put(sock)
            else:
                self._start(self._talk, self._serves, sock)

    def _talk(self, conversation: _Conversation, sock: socket.socket) -> None:
        connection = _Connection(sock)
        try:
            conversation.talk(connection)
        except OSError as error:
            # ENOTCONN: the client has reset the connection before a call of shutdown(2).
            if not isinstance(error, ConnectionError) and error.errno != errno.ENOTCONN:
                self._errors.append(error)
        except AssertionError as error:
            self._errors.append(AssertionError(f"{self._described}: {error}"))
        finally:
            with self._lock:
                self._open.remove(sock)
                sock.close()
            self._ended.put(bytes(connection.received))

    def _answer(self) -> None:
        while True:
            datagram, client = self._listener.recvfrom(_BUFFER)
            if not datagram and client is None:  # the listener was shut down
                return
            self._ended.put(datagram)
            try:
                answer = None if self._serves is None else self._serves.answer(datagram)
            except AssertionError as error:
                self._errors.append(AssertionError(f"{self._described}: {error}"))
                continue
            if answer is not None:
                with contextlib.suppress(OSError):
                    self._listener.sendto(answer, client)


def _next(waiting: queue.SimpleQueue[T], missing: str) -> T:
    try:
        return waiting.get(timeout=PATIENCE)
    except queue.Empty:
        raise TimeoutError(f"{missing} within {PATIENCE:g} s") from None


class _Connection:
    """A TCP connection of a backend, with all bytes that the client has sent.

    Attributes:
        received: the bytes.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.received = bytearray()

    def send(self, data: bytes) -> None:
        self._sock.sendall(data)

    def receive(self) -> bytes:
        """Return the next bytes; no bytes at the end of the stream."""
        data = self._sock.recv(_BUFFER)
        self.received += data
        return data

    def end(self) -> None:
        """End the sending side."""
        self._sock.shutdown(socket.SHUT_WR)


class _Conversation(Protocol):
    """The behaviour of a backend."""

    def talk(self, connection: _Connection) -> None:
        """Serve a TCP connection until the client ends it."""

    def answer(self, datagram: bytes) -> bytes | None:
        """Return the answer to a datagram; None for no answer."""


class _Echo:
    def talk(self, connection: _Connection) -> None:
        while data := connection.receive():
            connection.send(data)

    def answer(self, datagram: bytes) -> bytes | None:
        return datagram

    def __str__(self) -> str:
        return "echo"


class _Named:
    def __init__(self, name: bytes) -> None:
        self._name = name

    def talk(self, connection: _Connection) -> None:
        connection.send(self._name)
        while connection.receive():
            pass

    def answer(self, datagram: bytes) -> bytes | None:
        del datagram
        return self._name

    def __str__(self) -> str:
        return f'"{self._name.decode()}"'


class _Script:
    """Steps that each connection makes from the first step on, and that datagrams make together."""

    def __init__(self, steps: tuple[tuple[bytes, bytes], ...]) -> None:
        self._steps = steps
        self._datagrams = 0

    def talk(self, connection: _Connection) -> None:
        begin = 0
        for number, (expected, answer) in enumerate(self._steps, 1):
            end = begin + len(expected)
            while expected.startswith(got := bytes(connection.received[begin:end])) and got != expected:
                if not self._more(connection):
                    raise self._wrong(number, expected, got, "the client sends no more")
            if got != expected:
                raise self._wrong(number, expected, got, f"they differ at byte {_difference(expected, got)}")
            connection.send(answer)
            begin = end
        connection.end()
        while connection.receive():
            pass
        if extra := bytes(connection.received[begin:]):
            raise AssertionError(f"received {show(extra)} after the last step")

    @staticmethod
    def _more(connection: _Connection) -> bytes:
        try:
            return connection.receive()
        except TimeoutError:
            return b""

    def answer(self, datagram: bytes) -> bytes | None:
        self._datagrams += 1
        if self._datagrams > len(self._steps):
            raise AssertionError(f"received {show(datagram)} after the last step")
        expected, answer = self._steps[self._datagrams - 1]
        if datagram != expected:
            where = f"they differ at byte {_difference(expected, datagram)}"
            raise self._wrong(self._datagrams, expected, datagram, where)
        return answer

    def _wrong(self, number: int, expected: bytes, got: bytes, how: str) -> AssertionError:
        step = f"step {number} of {len(self._steps)}"
        return AssertionError(f"{step}: expected {show(expected)}, received {show(got)}: {how}")

    def __str__(self) -> str:
        return "script"


def _difference(expected: bytes, got: bytes) -> int:
    """Return the number of the first byte, from 0, in which two different texts differ."""
    pairs = enumerate(zip(expected, got, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(expected), len(got)))
