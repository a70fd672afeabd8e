"""Connections to backends that refuse, hang, are full, move, or are the proxy itself."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from refractium import Route
from refractium.backends import resolver
from refractium.proxy import dial
from support.backends import Backend, FullUnixQueue, digest, hanging, named, refusing, sink, source
from support.clients import MIB, PATIENCE, ask, payload, receive, receive_all, reset
from support.lateness import fair_seconds_since, seconds_since
from support.process import free_port
from support.proxy import ProxyThread, eventually, quick, starting_with

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.proxy import LoopKind

HELLO = b"magic hello"
UNREACHABLE = "cannot be reached"
UNANSWERED = "hangs.test:[0-9]+: the name has not been answered"
"""A log line that appears when the machine is so slow that a test takes seconds."""
CONNECT_TIMEOUT = 1.0
HASTY = quick(connect_timeout_ms=1_000)


def route(*backends: str) -> Route:
    return Route(starting_with(b"magic"), backends)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_after_a_refusal_the_next_backend_is_tried_for_the_same_connection(loop: LoopKind) -> None:
    with (
        refusing() as dead,
        refusing() as dead_too,
        Backend(sink) as backend,
        ProxyThread(route(dead, dead_too, backend.address), expected=[UNREACHABLE], loop=loop) as proxy,
    ):
        for number in range(30):
            data = HELLO + payload(number, 1000)
            assert ask(proxy.address, data) == (digest(data), "eof")
        # One line about the retries, and one for each of the two backends that goes out of rotation.
        assert len(proxy.warnings) <= 3


def test_when_a_backend_hangs_the_next_is_tried_after_the_connect_timeout() -> None:
    with (
        hanging() as dead,
        Backend(sink) as backend,
        ProxyThread(route(dead, backend.address), settings=HASTY, expected=[UNREACHABLE]) as proxy,
    ):
        data = HELLO + payload("kept", MIB)
        begun = time.monotonic()
        assert ask(proxy.address, data) == (digest(data), "eof")
        assert seconds_since(begun) > CONNECT_TIMEOUT - 0.02
        assert fair_seconds_since(begun) < 2 * CONNECT_TIMEOUT


def test_the_next_backend_gets_a_connect_timeout_of_its_own(tmp_path: Path) -> None:
    with (
        hanging() as dead,
        FullUnixQueue(tmp_path / "full") as backend,
        ProxyThread(route(dead, backend.address), settings=HASTY, expected=[UNREACHABLE]) as proxy,
        proxy.connect() as client,
    ):
        client.sendall(HELLO)
        time.sleep(CONNECT_TIMEOUT + 0.15)
        backend.make_room()
        with backend.accept() as sock:
            assert receive(sock, len(HELLO)) == HELLO
        assert receive_all(client) == (b"", "eof")


def test_one_client_waits_for_at_most_two_connect_timeouts() -> None:
    with hanging() as one, hanging() as two, hanging() as three, hanging() as four:
        proxy = ProxyThread(route(one, two, three, four), settings=HASTY, expected=[UNREACHABLE])
        with proxy, proxy.connect() as client:
            begun = time.monotonic()
            client.sendall(HELLO)
            assert receive_all(client) == (b"", "reset")
            assert fair_seconds_since(begun) < 3 * CONNECT_TIMEOUT
            assert proxy.next_end().ended == "no backend reachable"


def test_a_client_that_leaves_while_a_backend_hangs_is_forgotten() -> None:
    with hanging() as dead, ProxyThread(route(dead), settings=HASTY, expected=[UNREACHABLE]) as proxy:
        client = proxy.connect()
        client.sendall(HELLO)
        proxy.await_active(1)
        reset(client)
        proxy.await_drained()


def test_no_byte_is_sent_twice() -> None:
    def take_and_reset(sock: socket.socket) -> None:
        sock.recv(len(HELLO))
        reset(sock)

    with (
        Backend(take_and_reset) as bad,
        Backend(sink) as good,
        ProxyThread(route(bad.address, good.address)) as proxy,
    ):
        assert ask(proxy.address, HELLO) == (b"", "reset")
        assert good.accepted == 0


def test_a_backend_that_dies_midway_leaves_a_prefix_and_a_reset() -> None:
    data = payload("half", MIB)

    def die(sock: socket.socket) -> None:
        sock.recv(1)
        sock.sendall(data)
        reset(sock)

    with Backend(die) as backend, ProxyThread(route(backend.address)) as proxy, proxy.connect() as client:
        client.sendall(HELLO)
        received = receive_all(client)
        assert received.end == "reset"
        assert data.startswith(received.data)


def test_with_all_backends_down_the_fallback_serves_and_never_another_route() -> None:
    with (
        refusing() as dead,
        Backend(named("neighbour")) as neighbour,
        Backend(named("fallback")) as fallback,
        ProxyThread(
            route(dead),
            Route(starting_with(b"ma", name="neighbour"), neighbour.address),
            fallback=fallback.address,
            expected=[UNREACHABLE],
        ) as proxy,
    ):
        assert ask(proxy.address, HELLO).data == b"fallback" + HELLO
        assert neighbour.accepted == 0


def test_with_all_backends_down_clients_are_reset_until_one_is_back() -> None:
    port = free_port()
    with (
        refusing() as dead,
        ProxyThread(route(dead, f"127.0.0.1:{port}"), fallback=dead, expected=[UNREACHABLE]) as proxy,
    ):
        for _ in range(5):
            assert ask(proxy.address, HELLO) == (b"", "reset")
        with Backend(sink, port=port):
            for _ in range(5):
                assert ask(proxy.address, HELLO) == (digest(HELLO), "eof")
        assert ask(proxy.address, HELLO) == (b"", "reset")


def test_300_connections_over_3_backends_are_100_each() -> None:
    with (
        Backend(named("a")) as a,
        Backend(named("b")) as b,
        Backend(named("c")) as c,
        ProxyThread(route(a.address, b.address, c.address)) as proxy,
    ):
        answers = Counter(ask(proxy.address, HELLO).data[:1] for _ in range(300))
    assert answers == {b"a": 100, b"b": 100, b"c": 100}


# Unix sockets


def test_a_unix_socket_is_a_backend_like_any_other(tmp_path: Path) -> None:
    up, down = payload("up", 4 * MIB), payload("down", 4 * MIB)
    with (
        Backend(source(down), path=tmp_path / "backend") as backend,
        ProxyThread(route(backend.address)) as proxy,
        proxy.connect() as client,
    ):
        client.sendall(HELLO)
        assert receive_all(client) == (down, "eof")
        client.sendall(up)
        client.shutdown(socket.SHUT_WR)
        assert backend.result() == (HELLO + up, "eof")


def test_a_unix_backend_sees_a_reset_as_an_end(tmp_path: Path) -> None:
    with (
        Backend(receive_all, path=tmp_path / "backend") as backend,
        ProxyThread(route(backend.address)) as proxy,
    ):
        client = proxy.connect()
        client.sendall(HELLO)
        eventually(lambda: backend.accepted == 1, "the backend has accepted the connection")
        reset(client)
        assert backend.result().data == HELLO
        assert proxy.next_end().ended == "client reset"


def test_a_unix_socket_with_a_full_queue_is_given_up_after_a_wait(tmp_path: Path) -> None:
    with (
        FullUnixQueue(tmp_path / "full") as full,
        Backend(sink) as backend,
        ProxyThread(route(full.address, backend.address), settings=HASTY, expected=[UNREACHABLE]) as proxy,
    ):
        begun, cpu = time.monotonic(), proxy.cpu_seconds()
        assert ask(proxy.address, HELLO) == (digest(HELLO), "eof")
        assert seconds_since(begun) > CONNECT_TIMEOUT - 0.02
        assert fair_seconds_since(begun) < 2 * CONNECT_TIMEOUT
        assert proxy.cpu_seconds() - cpu < 0.1


def test_after_a_missing_unix_socket_the_next_backend_is_tried(tmp_path: Path) -> None:
    with (
        Backend(sink) as backend,
        ProxyThread(route(f"unix:{tmp_path}/none", backend.address), expected=[UNREACHABLE]) as proxy,
    ):
        assert ask(proxy.address, HELLO) == (digest(HELLO), "eof")


# The proxy itself


def test_a_self_connection_does_not_count_as_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = socket.create_server(("127.0.0.1", 0))  # held until the other servers have their ports
    port = taken.getsockname()[1]  # from the ephemeral range, because only such a port can connect to itself

    class FromTheSamePort(socket.SocketType):
        def connect_ex(self, address: Any) -> int:
            if address[1] == port:
                self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                self.bind(address)
                bound.append(address)
            return super().connect_ex(address)

    bound: list[Any] = []
    monkeypatch.setattr(dial, "new_socket", FromTheSamePort)
    with (
        taken,
        Backend(sink) as backend,
        ProxyThread(
            route(f"127.0.0.1:{port}", f"0.0.0.0:{port}", backend.address), expected=[UNREACHABLE]
        ) as proxy,
    ):
        taken.close()
        for _ in range(6):
            assert ask(proxy.address, HELLO) == (digest(HELLO), "eof")
    assert bound


@pytest.mark.parametrize("target", ["127.0.0.1", "localhost", "0.0.0.0", "[::ffff:127.0.0.1]"])
@pytest.mark.parametrize("bind", ["127.0.0.1", "0.0.0.0", "::"])
def test_a_fallback_that_is_the_listener_is_never_dialled(bind: str, target: str) -> None:
    port = free_port()
    expected = [UNREACHABLE] if target == "localhost" else []
    with ProxyThread(
        route("127.0.0.1:1"), fallback=f"{target}:{port}", host=bind, port=port, expected=expected
    ) as proxy:
        for number in range(1, 4):
            assert ask(proxy.address, b"unknown").data == b""
            assert proxy.counters.accepted == number
            assert proxy.counters.loops >= number
        assert proxy.next_end().ended == "route leads back to this listener"


# Names

Addresses = list[tuple[str, int]]


class Dns:
    """A replacement of getaddrinfo that gives chosen answers for some names."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[], list[str]]] = {}
        self.asked = threading.Semaphore(0)
        self._system = socket.getaddrinfo

    def __call__(self, host: str, port: int, *args: Any, **kwargs: Any) -> Any:
        if host not in self.answers:
            return self._system(host, port, *args, **kwargs)
        try:
            found = self.answers[host]()
        finally:
            self.asked.release()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    def await_lookups(self, count: int) -> None:
        while self.asked.acquire(blocking=False):
            pass
        for _ in range(count):
            assert self.asked.acquire(timeout=PATIENCE)


@pytest.fixture
def dns(monkeypatch: pytest.MonkeyPatch) -> Dns:
    dns = Dns()
    monkeypatch.setattr(socket, "getaddrinfo", dns)
    monkeypatch.setattr(resolver, "_REFRESH", 0.02)
    return dns


def no_such_name() -> list[str]:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def test_each_address_of_a_name_is_tried() -> None:
    with (
        Backend(sink) as backend,
        ProxyThread(route(f"localhost:{backend.port}"), expected=[UNREACHABLE]) as proxy,
    ):
        assert ask(proxy.address, HELLO) == (digest(HELLO), "eof")


def test_new_connections_follow_a_name_that_moves(dns: Dns) -> None:
    dns.answers["moves.test"] = lambda: ["127.0.0.2"]
    with (
        Backend(named("old"), host="127.0.0.2") as old,
        Backend(named("new"), host="127.0.0.3", port=old.port),
        ProxyThread(route(f"moves.test:{old.port}")) as proxy,
        proxy.connect() as early,
    ):
        early.sendall(HELLO)
        assert receive(early, 3) == b"old"
        dns.answers["moves.test"] = lambda: ["127.0.0.3"]
        dns.await_lookups(3)
        assert ask(proxy.address, HELLO).data[:3] == b"new"
        early.sendall(b"!")
        assert receive(early, len(HELLO) + 1) == HELLO + b"!"


def test_a_name_that_fails_keeps_its_last_good_answer(dns: Dns) -> None:
    dns.answers["fails.test"] = lambda: ["127.0.0.1"]
    with (
        Backend(sink) as backend,
        ProxyThread(
            route(f"fails.test:{backend.port}"), expected=["cannot be resolved: Name or service"]
        ) as proxy,
    ):
        dns.answers["fails.test"] = no_such_name
        dns.await_lookups(5)
        assert ask(proxy.address, HELLO) == (digest(HELLO), "eof")
        assert len(proxy.warnings) == 1


def test_a_name_that_does_not_exist_affects_only_its_own_route(dns: Dns) -> None:
    dns.answers["none.test"] = no_such_name
    with Backend(sink) as backend:
        other = Route(starting_with(b"other", name="other"), backend.address)
        with ProxyThread(route("none.test:80"), other, expected=["cannot be resolved"]) as proxy:
            assert ask(proxy.address, HELLO) == (b"", "reset")
            assert ask(proxy.address, b"other") == (digest(b"other"), "eof")


def test_a_name_that_hangs_affects_only_its_own_route(dns: Dns) -> None:
    go_on = threading.Event()

    def hang() -> list[str]:
        assert go_on.wait(PATIENCE)
        return ["127.0.0.1"]

    dns.answers["hangs.test"] = hang
    with Backend(sink) as backend:
        other = Route(starting_with(b"other", name="other"), backend.address)
        begun = time.monotonic()
        hanging_route = route(f"hangs.test:{backend.port}")
        with ProxyThread(hanging_route, other, settings=HASTY, expected=[UNANSWERED]) as proxy:
            assert fair_seconds_since(begun) < CONNECT_TIMEOUT + 5
            assert ask(proxy.address, HELLO) == (b"", "reset")
            assert ask(proxy.address, b"other") == (digest(b"other"), "eof")
            go_on.set()
            dns.await_lookups(2)
            assert ask(proxy.address, HELLO) == (digest(HELLO), "eof")


def test_stopping_does_not_wait_for_a_name_that_hangs(dns: Dns) -> None:
    go_on = threading.Event()

    def hang() -> list[str]:
        go_on.wait(PATIENCE)
        return []

    dns.answers["hangs.test"] = hang
    begun = time.monotonic()
    with ProxyThread(route("hangs.test:80"), settings=HASTY, expected=[UNANSWERED]):
        pass
    assert fair_seconds_since(begun) < CONNECT_TIMEOUT + 5
    go_on.set()
    eventually(lambda: not [one for one in threading.enumerate() if "hangs" in one.name], "the lookup ends")
