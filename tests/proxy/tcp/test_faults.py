"""Internal faults and errors of the kernel: each ends at most one connection, and everything is released."""

from __future__ import annotations

import errno
import socket
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from refractium.proxy import connection, dial, weld
from refractium.proxy.limiter import Limiter
from refractium.sockets import reactor, watching
from support.backends import Backend, FullUnixQueue, digest, echo, sink
from support.clients import PATIENCE, ask, receive, receive_all
from support.proxy import ProxyThread, eventually, quick
from support.welds import welded

if TYPE_CHECKING:
    import select
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("data_path")

FAILED = "everything else goes on"


def failing_once(original: Callable[..., Any], error: Exception) -> Callable[..., Any]:
    """Return a function that raises at its first call, and then calls the original."""
    armed = [error]

    def replacement(*args: Any, **kwargs: Any) -> Any:
        if armed:
            raise armed.pop()
        return original(*args, **kwargs)

    return replacement


@pytest.mark.parametrize(
    ("owner", "method"),
    [
        (weld.Flow, "run"),
        (weld.Flow, "on_event"),
        (weld.Weld, "begin"),
        (dial.Dial, "begin"),
        (dial.Dial, "_send_first"),
        (dial.Dial, "_arrive"),
        (connection.Connection, "receive"),
        (connection.Connection, "_follow"),
    ],
)
def test_a_fault_at_any_place_ends_only_its_connection(
    owner: type, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        Backend(echo) as backend,
        ProxyThread(fallback=backend.address, expected=[FAILED]) as proxy,
        proxy.connect() as other,
    ):
        other.sendall(b"?")
        assert other.recv(1) == b"?"
        monkeypatch.setattr(
            owner, method, failing_once(getattr(owner, method), RuntimeError("a fault of ours"))
        )
        assert ask(proxy.address, b"!") == (b"", "reset")
        assert proxy.next_end().ended == "internal error"
        assert ask(proxy.address, b"!") == (b"!", "eof")
        other.sendall(b"still here")
        assert receive(other, 10) == b"still here"
        assert len(proxy.warnings) == 1


def test_a_fault_after_a_wait_for_a_backend_ends_only_its_connection(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(weld.Weld, "begin", failing_once(weld.Weld.begin, RuntimeError("a fault of ours")))
    with (
        FullUnixQueue(tmp_path / "full") as full,
        ProxyThread(fallback=full.address, expected=["a fault of ours"]) as proxy,
        proxy.connect() as client,
    ):
        client.sendall(b"!")
        proxy.await_active(1)
        full.make_room()
        with full.accept() as sock:
            assert sock.recv(1) == b"!"
            assert sock.recv(1) == b""
        assert receive_all(client) == (b"", "reset")
        assert proxy.next_end().ended == "internal error"


class Scarce:
    """An epoll that refuses to register one socket, once, for lack of room."""

    def __init__(self, epoll: select.epoll, after: int) -> None:
        self._epoll = epoll
        self._left = after

    def register(self, fd: int, events: int) -> None:
        self._left -= 1
        if self._left == -1:
            raise OSError(errno.ENOSPC, "No space left on device")
        self._epoll.register(fd, events)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._epoll, name)


@pytest.mark.parametrize("after", [0, 1])
def test_a_full_epoll_ends_only_one_connection(after: int) -> None:
    with Backend(echo) as backend, ProxyThread(fallback=backend.address, expected=[FAILED]) as proxy:
        proxy.service.reactor._epoll = Scarce(proxy.service.reactor._epoll, after)  # type: ignore[assignment]
        try:
            client = proxy.connect()
        except ConnectionResetError:  # the reset came before the connect had returned
            assert not after
        else:
            with client:
                proxy.await_idle()
                if after:
                    client.sendall(b"?")
                assert receive_all(client).end == "reset"
        assert ask(proxy.address, b"!") == (b"!", "eof")


class Exhausted(socket.socket):
    """A listening socket whose accept fails for lack of descriptors while its event is set."""

    exhausted = threading.Event()

    def _accept(self) -> Any:
        if self.exhausted.is_set():
            raise OSError(errno.EMFILE, "Too many open files")
        return super()._accept()  # type: ignore[misc]


@pytest.fixture
def exhausted(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    monkeypatch.setattr(Exhausted, "exhausted", threading.Event())
    return Exhausted.exhausted


def replace_listener(proxy: ProxyThread) -> None:
    (one,) = proxy.service.listeners
    one._sock = one._watching._sock = exhausted = Exhausted(fileno=one._sock.detach())
    one._accept = exhausted._accept


def test_accepting_pauses_while_descriptors_are_exhausted_and_then_goes_on(
    exhausted: threading.Event,
) -> None:
    with (
        Backend(sink) as backend,
        ProxyThread(fallback=backend.address, expected=["cannot accept"]) as proxy,
    ):
        replace_listener(proxy)
        exhausted.set()
        with proxy.connect() as client:
            client.sendall(b"?")
            client.shutdown(socket.SHUT_WR)
            eventually(lambda: len(proxy.warnings) == 1, "the lack of descriptors is logged")
            proxy.await_idle(0.3)
            exhausted.clear()
            assert receive_all(client) == (digest(b"?"), "eof")
        assert len(proxy.warnings) == 1


def test_a_stop_while_accepting_pauses_leaves_no_timer(
    exhausted: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "PAUSE", 0.05)
    with ProxyThread(expected=["cannot accept"], settings=quick()) as proxy:
        replace_listener(proxy)
        exhausted.set()
        with proxy.connect():
            eventually(lambda: len(proxy.warnings) == 1, "the lack of descriptors is logged")
            proxy.call(proxy.engine.stop(0))
            proxy.await_idle(0.2)


class Forgetful:
    """An epoll that fails a given number of times to watch one socket, for lack of memory."""

    def __init__(self, epoll: select.epoll, fd: int, times: int) -> None:
        self._epoll = epoll
        self._fd = fd
        self.left = times

    def register(self, fd: int, events: int) -> None:
        if fd == self._fd and self.left:
            self.left -= 1
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        self._epoll.register(fd, events)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._epoll, name)


def test_a_listener_that_cannot_be_watched_again_is_logged_and_comes_back(
    exhausted: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "PAUSE", 0.02)
    with (
        Backend(sink) as backend,
        ProxyThread(fallback=backend.address, expected=["cannot accept", FAILED]) as proxy,
    ):
        replace_listener(proxy)
        (one,) = proxy.service.listeners
        epoll = Forgetful(proxy.service.reactor._epoll, one._sock.fileno(), 4)
        proxy.service.reactor._epoll = epoll  # type: ignore[assignment]
        exhausted.set()
        with proxy.connect() as client:
            client.sendall(b"?")
            client.shutdown(socket.SHUT_WR)
            eventually(
                lambda: proxy.status().listeners[0].paused == "Too many open files", "the listener pauses"
            )
            exhausted.clear()
            assert receive_all(client) == (digest(b"?"), "eof")
        assert epoll.left == 0
        assert proxy.status().listeners[0].paused == ""
        assert sum("Cannot allocate memory" in line for line in proxy.warnings) == 1


def test_a_client_whose_counting_fails_does_not_end_its_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    enter = Limiter.enter

    def failing(limiter: Limiter, origin: str | None) -> str | None:
        if origin == "127.0.0.66":
            raise ValueError("not an address")
        return enter(limiter, origin)

    monkeypatch.setattr(Limiter, "enter", failing)
    with (
        Backend(sink) as backend,
        ProxyThread(fallback=backend.address, host="127.0.0.1", expected=["failed with a client"]) as proxy,
        ExitStack() as stack,
    ):
        clients = []

        def arrive() -> None:
            """Make all clients wait for accept at the same time."""
            for number in range(12):
                source = "127.0.0.66" if number % 3 == 1 else None
                clients.append(stack.enter_context(proxy.connect(source=source)))

        proxy.block(arrive)
        for number, client in enumerate(clients):
            if number % 3 == 1:
                assert receive_all(client).data == b""
            else:
                client.sendall(b"?")
                client.shutdown(socket.SHUT_WR)
                assert receive_all(client) == (digest(b"?"), "eof")
        assert len(proxy.warnings) == 1
        # The four clients were never counted in, so the invariant accepted == finished + refused does not
        # hold.
        proxy.service.counters.accepted -= 4


def test_a_send_to_a_unix_backend_that_lacks_memory_ends_both_sides_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []

    def wait(sock: socket.socket) -> None:
        ended.append(receive_all(sock).end)

    with (
        Backend(wait, path=tmp_path / "backend") as backend,
        ProxyThread(fallback=backend.address) as proxy,
        proxy.connect() as client,
    ):
        client.sendall(b"?")
        eventually(lambda: bool(proxy.service.connections), "the connection is accepted")
        eventually(
            lambda: [one._weld for one in proxy.service.connections] != [None],
            "the connection is joined to its backend",
        )
        (connection,) = proxy.service.connections
        assert connection._weld is not None

        def failing(*_: object) -> int:
            raise OSError(errno.ENOBUFS, "no room")

        monkeypatch.setattr(connection._weld.up, "_send", failing)
        client.sendall(b"lost")
        assert receive_all(client).end == "reset"
        assert proxy.next_end().ended == "internal error"
        backend.result()
    assert ended == ["eof"]  # a unix socket has no reset


def test_a_unix_backend_that_stops_reading_can_still_send(tmp_path: Path) -> None:
    def deaf(sock: socket.socket) -> None:
        assert sock.recv(1) == b"?"
        sock.shutdown(socket.SHUT_RD)
        deafened.set()
        assert go_on.wait(PATIENCE)
        sock.sendall(b"last words")

    deafened, go_on = threading.Event(), threading.Event()
    with (
        Backend(deaf, path=tmp_path / "backend") as backend,
        ProxyThread(fallback=backend.address) as proxy,
        proxy.connect() as client,
    ):
        client.sendall(b"?")
        assert deafened.wait(PATIENCE)
        client.sendall(b"not read any more")

        def is_over() -> bool:
            return [one._weld.up.done for one in proxy.service.connections if one._weld] == [True]

        eventually(is_over, "nothing more is sent to the backend")
        go_on.set()
        assert receive_all(client).data == b"last words"


def test_an_end_that_cannot_be_passed_on_ends_both_sides_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise OSError(errno.ENOBUFS, "no room")

    with welded() as (weld_, far_client, far_backend, run):
        weld_.begin(b"", 0, client_ended=False)
        far_client.shutdown(socket.SHUT_WR)
        with monkeypatch.context() as patch:
            patch.setattr(socket.socket, "shutdown", failing)
            weld_.up.on_event(reactor.IN)
        assert run() == "internal error"
        assert receive_all(far_client).end == receive_all(far_backend).end == "reset"


@pytest.mark.parametrize("code", [errno.ENOBUFS, errno.ENOMEM])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_send_that_lacks_memory_ends_both_sides_at_once(code: int, direction: str) -> None:
    def failing(*_: object) -> int:
        raise OSError(code, "no room")

    with welded() as (weld_, far_client, far_backend, run):
        flow = weld_.up if direction == "up" else weld_.down
        flow._send = failing
        weld_.begin(b"", 0, client_ended=False)
        (far_client if direction == "up" else far_backend).sendall(b"lost")
        assert run() == "internal error"
        assert receive_all(far_client).end == receive_all(far_backend).end == "reset"


@pytest.mark.parametrize("code", [errno.ECONNABORTED, errno.EPERM, errno.EPROTO])
def test_a_client_that_leaves_before_accept_affects_no_other(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Backend(sink) as backend, ProxyThread(fallback=backend.address) as proxy:
        monkeypatch.setattr(Exhausted, "_accept", failing_once(Exhausted._accept, OSError(code, "gone")))
        monkeypatch.setattr(Exhausted, "exhausted", threading.Event())
        replace_listener(proxy)
        for _ in range(3):
            assert ask(proxy.address, b"?") == (digest(b"?"), "eof")
