"""A proxy in front of backends that come and go."""

from __future__ import annotations

import errno
import logging
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from refractium import ConfigError, Health, Member, Refractium, Route, Transport
from refractium.identify.everything import AnyProtocol
from refractium.proxy import dial
from support.backends import Backend, hanging, named, refusing
from support.clients import PATIENCE, ask, receive, receive_all
from support.datagrams import UdpBackend, client
from support.datagrams import ask as ask_datagram
from support.lateness import fair_seconds_since, seconds_since
from support.process import free_port
from support.proxy import ProxyThread, eventually, quick, starting_with

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

    from refractium.backends.state import BackendState

HELLO = b"magic hello"
INTERVAL_MS = 200
INTERVAL = INTERVAL_MS / 1000
QUICK = Health(kind="tcp", interval_ms=INTERVAL_MS, timeout_ms=1_000)
TIMED = Health(kind="tcp", interval_ms=1_000, timeout_ms=1_000)
"""A health check for tests in which a change may take one interval, with room for a busy machine."""
ONE_INTERVAL = 1.5
EXPECTED = ["is down", "cannot be reached", "refuses"]


def route(*backends: str | Member, balance: str = "round_robin", health: Health = QUICK) -> Route:
    return Route(starting_with(b"magic"), backends, balance=balance, health=health)


def states(proxy: ProxyThread) -> list[BackendState]:
    return [backend.state for backend in proxy.engine._plan.pools[Transport.TCP].backends]


class Changes(logging.Handler):
    """A log handler that keeps the lines about backends that went up or down."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.getMessage()}")


@pytest.fixture
def changes() -> Iterator[list[str]]:
    log = logging.getLogger("refractium.backends.state")
    handler, level = Changes(), log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield handler.lines
    log.removeHandler(handler)
    log.setLevel(level)


class Stream:
    """New connections at a steady rate while the block runs.

    Attributes:
        answers: one entry for each connection that has ended: the name of the backend, or the error.
    """

    def __init__(self, proxy: ProxyThread, per_second: int) -> None:
        self.answers: list[str] = []
        self._proxy = proxy
        self._pause = 1 / per_second
        self._over = threading.Event()
        self._gate = threading.Condition()
        self._open = 0
        self._is_held = False
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(PATIENCE)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold new connections back, and run the block while no client is connected. A dying backend loses
        the connections that it has accepted, whatever a proxy does."""
        with self._gate:
            self._is_held = True
            try:
                assert self._gate.wait_for(lambda: not self._open, PATIENCE)
                yield
            finally:
                self._is_held = False
                self._gate.notify_all()

    def more(self, count: int) -> list[str]:
        """Wait for `count` further answers, and return them."""
        served = len(self.answers)
        eventually(lambda: len(self.answers) >= served + count, f"{count} more answers")
        return self.answers[served:]

    def _run(self) -> None:
        with ThreadPoolExecutor(16) as pool:
            while not self._over.wait(self._pause):
                with self._gate:
                    self._gate.wait_for(lambda: not self._is_held)
                    self._open += 1
                pool.submit(self._ask)

    def _ask(self) -> None:
        try:
            received = ask(self._proxy.address, HELLO)
        except OSError as error:
            self.answers.append(repr(error))
        else:
            whole = received.end == "eof" and received.data[1:] == HELLO
            self.answers.append(received.data[:1].decode() if whole else repr(received))
        finally:
            with self._gate:
                self._open -= 1
                self._gate.notify_all()


def test_a_backend_killed_under_load_fails_nobody_and_returns_within_one_interval(changes: list[str]) -> None:
    port = free_port()
    with (
        Backend(named("a")) as a,
        Backend(named("b")) as b,
        ProxyThread(
            route(a.address, b.address, f"127.0.0.1:{port}", health=TIMED), expected=EXPECTED
        ) as proxy,
        Stream(proxy, 200) as stream,
    ):
        assert [state.is_up for state in states(proxy)] == [True, True, False]
        for _ in range(2):
            back = time.monotonic()
            with ExitStack() as killing, Backend(named("c"), port=port):
                eventually(lambda: stream.answers[-1:] == ["c"], "the third is back")
                assert fair_seconds_since(back) < ONE_INTERVAL
                assert stream.more(60).count("c") >= 15
                killing.enter_context(stream.held())
            eventually(lambda: not states(proxy)[2].is_up, "the third backend is seen down")
        stream.more(30)
    assert set(stream.answers) == {"a", "b", "c"}
    assert [line.split()[0] for line in changes] == ["WARNING", "INFO", "WARNING", "INFO", "WARNING"]


@pytest.mark.parametrize("balance", ["round_robin", "least_connections"])
def test_300_connections_over_3_are_100_each(balance: str) -> None:
    with (
        Backend(named("a")) as a,
        Backend(named("b")) as b,
        Backend(named("c")) as c,
        ProxyThread(route(a.address, b.address, c.address, balance=balance)) as proxy,
    ):
        answers = Counter(ask(proxy.address, HELLO).data[:1] for _ in range(300))
        assert answers == {b"a": 100, b"b": 100, b"c": 100}


def test_weights_are_exact_and_backups_wait() -> None:
    with ExitStack() as stack:
        a, b, c = (stack.enter_context(Backend(named(name))) for name in "abc")
        members = Member(a.address, weight=3), b.address, Member(c.address, backup=True)
        with ProxyThread(route(*members)) as proxy:
            answers = Counter(ask(proxy.address, HELLO).data[:1] for _ in range(100))
        assert answers == {b"a": 75, b"b": 25}


def test_a_backup_serves_when_no_other_backend_is_up() -> None:
    with (
        refusing() as dead,
        refusing() as dead_too,
        Backend(named("s")) as spare,
        ProxyThread(
            route(dead, Member(spare.address, backup=True), dead_too), expected=EXPECTED, fallback=dead
        ) as proxy,
    ):
        for _ in range(5):
            assert ask(proxy.address, HELLO).data == b"s" + HELLO


def test_least_connections_counts_open_connections_exactly() -> None:
    with ExitStack() as stack:
        a, b, c = (stack.enter_context(Backend(named(name))) for name in "abc")
        with ProxyThread(route(a.address, b.address, c.address, balance="least_connections")) as proxy:
            held: list[tuple[bytes, socket.socket]] = []
            for _ in range(9):
                sock = proxy.connect()
                sock.sendall(HELLO)
                held.append((receive(sock, 1), sock))
            assert Counter(name for name, _ in held) == {b"a": 3, b"b": 3, b"c": 3}
            assert [state.active for state in states(proxy)] == [3, 3, 3]
            for name, sock in held:
                if name == b"b":
                    sock.close()
            eventually(lambda: states(proxy)[1].active == 0, "clients that left are no longer counted")
            for _ in range(3):
                assert ask(proxy.address, HELLO).data[:1] == b"b"
                eventually(lambda: states(proxy)[1].active == 0, "the client of the second backend has left")
            for name, sock in held:
                if name != b"b":
                    sock.close()
            proxy.await_drained()
            assert [state.active for state in states(proxy)] == [0, 0, 0]


def test_connections_being_made_count_until_they_fail() -> None:
    with (
        hanging() as dead,
        ProxyThread(
            route(dead, health=Health()), settings=quick(connect_timeout_ms=1_000), expected=EXPECTED
        ) as proxy,
    ):
        (state,) = states(proxy)
        with ExitStack() as stack:
            clients = [stack.enter_context(proxy.connect()) for _ in range(5)]
            for sock in clients:
                sock.sendall(HELLO)
            eventually(lambda: state.active == 5, "five dials")
            for sock in clients:
                assert receive_all(sock).end == "reset"
        proxy.await_drained()
        assert state.active == 0


def test_the_same_client_has_the_same_backend() -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(Backend(named(name))) for name in "abc"]
        with ProxyThread(route(*(one.address for one in servers), balance="source_hash")) as proxy:
            found = {
                source: {ask(proxy.address, HELLO, source=source).data for _ in range(3)}
                for source in (f"127.0.0.{n}" for n in range(1, 101))
            }
            assert all(len(answers) == 1 for answers in found.values())
            assert len(set.union(*found.values())) == 3


def test_the_fallback_serves_while_all_are_down_and_a_recovered_backend_within_one_interval() -> None:
    port = free_port()
    with (
        refusing() as dead,
        Backend(named("f")) as fallback,
        ProxyThread(
            route(dead, f"127.0.0.1:{port}", health=TIMED), fallback=fallback.address, expected=EXPECTED
        ) as proxy,
    ):
        for _ in range(2):
            assert ask(proxy.address, HELLO).data == b"f" + HELLO
            back = time.monotonic()
            with Backend(named("b"), port=port):
                eventually(lambda: ask(proxy.address, HELLO).data == b"b" + HELLO, "one backend is up again")
                assert fair_seconds_since(back) < ONE_INTERVAL
            eventually(lambda: not states(proxy)[1].is_up, "the backend is down again")


def test_without_a_fallback_clients_end_undialled_while_all_backends_are_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with refusing() as dead, ProxyThread(route(dead), expected=EXPECTED) as proxy:
        monkeypatch.setattr(dial.Dial, "_connect", None)
        assert ask(proxy.address, HELLO) == (b"", "reset")
        assert proxy.next_end().ended == "no backend reachable"


def test_50_dead_backends_are_checked_side_by_side_before_the_first_client() -> None:
    health = Health(kind="tcp", interval_ms=60_000, timeout_ms=1000)
    with ExitStack() as stack, Backend(named("w")) as well:
        dead = [stack.enter_context(hanging()) for _ in range(50)]
        begun = time.monotonic()
        proxy = stack.enter_context(ProxyThread(route(*dead, well.address, health=health), expected=EXPECTED))
        assert seconds_since(begun) > 1.0
        assert fair_seconds_since(begun) < 10  # checks one after the other would take 50 s
        wanted = ["down"] * 50 + ["up"]
        eventually(
            lambda: [state.availability for state in states(proxy)] == wanted, "all backends are checked"
        )
        begun = time.monotonic()
        assert {ask(proxy.address, HELLO).data for _ in range(60)} == {b"w" + HELLO}
        assert fair_seconds_since(begun) < 10


def test_flapping_is_logged_once_for_each_change(changes: list[str]) -> None:
    port = free_port()
    address = f"127.0.0.1:{port}"
    with ProxyThread(route(address), expected=EXPECTED) as proxy:
        (state,) = states(proxy)
        for _ in range(2):
            with Backend(named("a"), port=port):
                eventually(lambda: state.is_up, "the backend is up")
            eventually(lambda: not state.is_up, "the backend is down")
    assert changes == [
        f"WARNING backend {address} is down: tcp check: Connection refused",
        f"INFO backend {address} is up again: passed 2 checks in a row",
        f"WARNING backend {address} is down: tcp check: Connection refused",
        f"INFO backend {address} is up again: passed 2 checks in a row",
        f"WARNING backend {address} is down: tcp check: Connection refused",
    ]


def test_failing_clients_take_a_backend_down_and_one_success_brings_it_back(changes: list[str]) -> None:
    port = free_port()
    address = f"127.0.0.1:{port}"
    health = Health(interval_ms=300, fall=3)
    with (
        Backend(named("w")) as well,
        ProxyThread(route(address, well.address, health=health), expected=EXPECTED) as proxy,
    ):
        begun = time.monotonic()
        for _ in range(6):
            assert ask(proxy.address, HELLO).data == b"w" + HELLO
        assert changes == [f"WARNING backend {address} is down: it cannot be reached: Connection refused"]
        with Backend(named("b"), port=port):
            eventually(lambda: ask(proxy.address, HELLO).data == b"b" + HELLO, "one client has tried")
            assert seconds_since(begun) > 0.29
            assert fair_seconds_since(begun) < 5
        assert changes[1:2] == [f"INFO backend {address} is up again: a client has reached it"]


def test_a_shortage_of_this_machine_takes_no_backend_down(
    monkeypatch: pytest.MonkeyPatch, changes: list[str]
) -> None:
    class WithoutAPort(socket.SocketType):
        def connect_ex(self, _: object) -> int:
            return errno.EADDRNOTAVAIL

    with (
        Backend(named("a")) as backend,
        ProxyThread(route(backend.address, health=Health(fall=1)), expected=EXPECTED) as proxy,
    ):
        with monkeypatch.context() as patch:
            patch.setattr(dial, "new_socket", WithoutAPort)
            for _ in range(5):
                assert ask(proxy.address, HELLO) == (b"", "reset")
        assert ask(proxy.address, HELLO).data == b"a" + HELLO
    assert changes == []


def test_one_refused_address_of_a_name_does_not_count_as_a_failure(
    monkeypatch: pytest.MonkeyPatch, changes: list[str]
) -> None:
    with Backend(named("a"), host="127.0.0.2") as backend:
        look_up = socket.getaddrinfo

        def two_addresses(host: str, port: int, *rest: object, **more: object) -> object:
            if host != "two.test":
                return look_up(host, port, *rest, **more)  # type: ignore[arg-type]
            return [(socket.AF_INET, 1, 6, "", (ip, port)) for ip in ("127.0.0.3", "127.0.0.2")]

        monkeypatch.setattr(socket, "getaddrinfo", two_addresses)
        tested = route(f"two.test:{backend.port}", health=Health(fall=1))
        with ProxyThread(tested, expected=[r"cannot be reached at 127\.0\.0\.3:"]) as proxy:
            for _ in range(5):
                assert ask(proxy.address, HELLO).data == b"a" + HELLO
    assert changes == []


def test_a_stop_ends_checks_that_hang() -> None:
    with hanging() as dead:
        health = Health(kind="tcp", interval_ms=10, timeout_ms=60)
        proxy = ProxyThread(route(dead, health=health), expected=EXPECTED)
        with proxy:
            pass
        assert not proxy.engine._plan._checkers[Transport.TCP]._tasks


# Datagrams


PROBED = Health(
    kind="send_expect", options={"send": "?", "expect": "b"}, interval_ms=INTERVAL_MS, timeout_ms=2_000
)


def datagrams(*backends: str, health: Health, balance: str = "round_robin") -> Route:
    protocol = starting_with(b"magic", name="datagram")
    protocol.transport = Transport.UDP
    return Route(protocol, backends, health=health, balance=balance, udp_session_timeout_ms=2_000)


def saying(name: bytes) -> Callable[[bytes], list[bytes]]:
    return lambda _: [name]


def test_a_datagram_backend_is_checked_with_datagrams() -> None:
    port = free_port()
    with (
        UdpBackend(saying(b"b")) as b,
        ProxyThread(datagrams(f"127.0.0.1:{port}", b.address, health=PROBED), expected=EXPECTED) as proxy,
    ):
        assert [ask_datagram(proxy.address, b"magic") for _ in range(4)] == [b"b"] * 4
        with UdpBackend(saying(b"b2"), port=port):
            eventually(lambda: ask_datagram(proxy.address, b"magic") == b"b2", "the first backend is back")


def test_the_fallback_serves_datagrams_while_all_backends_are_down() -> None:
    port = free_port()
    with (
        UdpBackend(saying(b"rest")) as rest,
        ProxyThread(
            datagrams(f"127.0.0.1:{port}", health=PROBED),
            fallback_udp=rest.address,
            settings=quick(udp_session_timeout_ms=100),
            expected=EXPECTED,
        ) as proxy,
    ):
        assert [ask_datagram(proxy.address, b"magic") for _ in range(2)] == [b"rest"] * 2
        with UdpBackend(saying(b"b"), port=port):
            eventually(lambda: ask_datagram(proxy.address, b"magic") == b"b", "the backend is back")
        ended = proxy.next_end()
        assert (ended.route, ended.protocol) == ("fallback", "datagram")
        assert ended.missed is not None
        assert ended.missed.pool is not None
        assert ended.missed.pool.label == "datagram"


@pytest.mark.parametrize(
    ("keys", "rest"),
    [({"deny": ["127.0.0.0/8"]}, {"forward_to": "127.0.0.1:1"}), ({}, {"action": "reject"})],
    ids=["denied by the route", "rejected by the fallback"],
)
def test_the_fallback_gets_no_datagram_that(keys: dict[str, Any], rest: dict[str, Any]) -> None:
    tested = replace(datagrams(f"127.0.0.1:{free_port()}", health=PROBED), **keys)
    every = Route(AnyProtocol(Transport.UDP), **rest)
    with (
        ProxyThread(tested, every, expected=[*EXPECTED, "refused a session"]) as proxy,
        client(proxy.address) as sender,
    ):
        sender.send(b"magic")
        eventually(lambda: bool(proxy.status().udp.refused or proxy.status().udp.dropped), "it is refused")
        assert "any" not in {one.name for one in proxy.status().udp.routes if one.active or one.ended}


def test_udp_sessions_are_counted_and_refusals_take_a_backend_down() -> None:
    port = free_port()
    tested = datagrams(
        f"127.0.0.1:{port}", health=Health(fall=2, interval_ms=50), balance="least_connections"
    )
    with ProxyThread(tested, expected=EXPECTED) as proxy:
        (state,) = (backend.state for backend in proxy.engine._plan.pools[Transport.UDP].backends)
        with client(proxy.address) as one, client(proxy.address) as other:

            def refused() -> bool:
                one.send(b"magic")
                return not state.is_up

            eventually(refused, "the backend is down")
            with UdpBackend(saying(b"u"), port=port):
                one.send(b"magic")
                assert one.recv(9) == b"u"
                assert (state.is_up, state.active) == (True, 1)
                other.send(b"magic")
                assert other.recv(9) == b"u"
                assert state.active == 2
                proxy.await_drained()
                assert state.active == 0


# Settings that are refused


@pytest.mark.parametrize(
    ("health", "message"),
    [
        (
            Health(kind="tpc"),
            "'tpc' is not known: did you mean 'tcp'? there are dns, http, none, send_expect, tcp",
        ),
        (Health(kind="http", options={"path": 1}), "expected str, got int"),
    ],
)
def test_an_impossible_check_is_refused_before_anything_starts(health: Health, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Refractium(tcp=[route("127.0.0.1:1", health=health)])
    assert message in str(caught.value)


def test_a_check_for_the_other_transport_is_refused() -> None:
    with pytest.raises(ConfigError, match='a check of kind "http" is not for udp'):
        Refractium(udp=[datagrams("127.0.0.1:1", health=Health(kind="http"))])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"balance": "first_come"}, "'first_come' is not known: did you mean 'first'?"),
        ({"forward_to": Member("127.0.0.1:1", weight=0)}, "int` >= 1"),
        ({"forward_to": Member("127.0.0.1")}, "no port"),
        ({"forward_to": ()}, "no backend is given"),
    ],
)
def test_a_route_reports_the_mistakes_in_its_backends(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Route(starting_with(b"magic"), **{"forward_to": "127.0.0.1:1"} | values)  # type: ignore[arg-type]
    assert message in str(caught.value)
