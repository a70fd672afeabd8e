"""UDP sessions: all datagrams of one client go the same way, intact, until the session is silent."""

from __future__ import annotations

import asyncio
import concurrent.futures
import errno
import os
import socket
import threading
from contextlib import ExitStack

import pytest

from refractium import (
    NO,
    Health,
    Identification,
    Protocol,
    ProtocolMatch,
    Refractium,
    Route,
    Transport,
    define_protocol,
)
from refractium.contract import NeedMore
from support.backends import Backend
from support.backends import echo as echo_connection
from support.clients import PATIENCE, payload
from support.clients import ask as ask_over_tcp
from support.datagrams import UdpBackend, ask, client, echo
from support.process import free_port
from support.proxy import ProxyThread, eventually, quick

on_every_path = pytest.mark.usefixtures("data_path")

SHORT = 500
"""Milliseconds of silence that end a session in tests that wait for it."""


def datagrams_with(magic: bytes, name: str = "magic") -> Protocol:
    @define_protocol(name, transport="udp", max_bytes=len(magic), prefixes=(magic,))
    def identify(data: bytes) -> Identification:
        return ProtocolMatch() if data.startswith(magic) else NO

    return identify


MAGIC = datagrams_with(b"magic")


def named(name: bytes) -> UdpBackend:
    return UdpBackend(lambda datagram: [name + b":" + datagram])


@on_every_path
def test_a_datagram_goes_to_its_route_and_an_unknown_one_to_the_fallback() -> None:
    settings = quick(udp_session_timeout_ms=SHORT)
    with named(b"route") as route, named(b"rest") as rest:
        routes = Route(MAGIC, route.address)
        with ProxyThread(routes, fallback_udp=rest.address, settings=settings) as proxy:
            assert ask(proxy.address, b"magic!") == b"route:magic!"
            assert ask(proxy.address, b"other") == b"rest:other"
            summaries = {proxy.next_end().route, proxy.next_end().route}
    assert summaries == {"magic", "fallback"}


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (ProtocolMatch(pending=frozenset({"host"})), "undecided"),
        (NeedMore(recognised=True), "undecided"),
        (NeedMore(70_000, recognised=True), "too_large"),
    ],
)
def test_a_datagram_that_does_not_decide_its_route_reaches_no_backend(
    answer: Identification, outcome: str
) -> None:
    @define_protocol("named", transport="udp", max_bytes=1000, metadata_keys=frozenset({"host"}))
    def protocol(data: bytes) -> Identification:
        return answer if data.startswith(b"named") else NO

    with named(b"rest") as rest:
        routes = [
            Route(protocol, "127.0.0.1:1", host="a.example"),
            Route(protocol, rest.address, id="others"),
        ]
        settings = quick(udp_session_timeout_ms=SHORT)
        with (
            ProxyThread(
                *routes, fallback_udp=rest.address, settings=settings, expected=["refused a session from"]
            ) as proxy,
            client(proxy.address) as sock,
        ):
            sock.send(b"named")
            counters = proxy.engine.udp_counters
            eventually(lambda: counters.outcomes.total() > 0, "the datagram is decided")
            assert counters.outcomes == {outcome: 1}
            assert (counters.unrouted, counters.sessions) == (1, 0)
            assert proxy.next_end().protocol == "named"
            assert ask(proxy.address, b"other") == b"rest:other"


@on_every_path
def test_the_first_datagram_decides_for_the_session() -> None:
    settings = quick(udp_session_timeout_ms=SHORT)
    with named(b"route") as route, named(b"rest") as rest:
        routes = Route(MAGIC, route.address)
        with (
            ProxyThread(routes, fallback_udp=rest.address, settings=settings) as proxy,
            client(proxy.address) as sock,
        ):
            for datagram, backend in ((b"what", b"rest:"), (b"magic!", b"rest:"), (b"x", b"rest:")):
                sock.send(datagram)
                assert sock.recv(100) == backend + datagram


@on_every_path
def test_an_unknown_datagram_without_fallback_is_dropped_and_counted() -> None:
    with UdpBackend(echo) as backend, ProxyThread(Route(MAGIC, backend.address)) as proxy:
        with client(proxy.address) as sock:
            sock.send(b"other")
            eventually(lambda: proxy.engine.udp_counters.unrouted == 1, "the datagram is counted")
        assert proxy.engine.udp_counters.sessions == 0
        assert backend.seen == 0


@pytest.mark.parametrize("size", [0, 1, 1472, 9000, 65_507])
@pytest.mark.parametrize(
    ("bind", "asked"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.2"), ("::", "::1")]
)
def test_datagrams_of_any_size_pass_both_ways(bind: str, asked: str, size: int) -> None:
    data = payload(size, size)
    settings = quick(udp_session_timeout_ms=SHORT)
    with (
        UdpBackend(echo) as backend,
        ProxyThread(fallback_udp=backend.address, settings=settings, host=bind) as proxy,
    ):
        assert ask((asked, proxy.port), data) == data
        ended = proxy.next_end()
    assert (ended.up, ended.down) == (size, size)


@on_every_path
def test_a_backend_may_answer_nothing_or_send_many_unasked_datagrams() -> None:
    largest = payload("largest", 65_507)
    settings = quick(udp_session_timeout_ms=SHORT)
    with (
        UdpBackend(lambda _: [b"", largest, b""]) as backend,
        ProxyThread(fallback_udp=backend.address, settings=settings) as proxy,
        client(proxy.address) as sock,
    ):
        sock.send(b"go")
        assert [sock.recv(65_536) for _ in range(3)] == [b"", largest, b""]


@pytest.mark.parametrize(("front", "back"), [("::1", "127.0.0.1"), ("127.0.0.1", "::1"), ("::1", "::1")])
def test_ipv6_clients_and_backends(front: str, back: str) -> None:
    settings = quick(udp_session_timeout_ms=SHORT)
    with (
        UdpBackend(echo, host=back) as backend,
        ProxyThread(fallback_udp=backend.address, settings=settings, host=front) as proxy,
    ):
        assert ask(proxy.address, b"six") == b"six"


@pytest.mark.parametrize("wildcard", ["0.0.0.0", "::"])
def test_answers_leave_from_the_address_to_which_the_client_wrote(wildcard: str) -> None:
    settings = quick(udp_session_timeout_ms=SHORT)
    with (
        UdpBackend(echo) as backend,
        ProxyThread(fallback_udp=backend.address, settings=settings, host=wildcard) as proxy,
    ):
        asked = ["127.0.0.1", "127.0.0.2", "127.0.0.77"] + ["::1"] * (wildcard == "::")
        for host in asked:
            # A connected client takes an answer only from the address to which it wrote.
            assert ask((host, proxy.port), host.encode()) == host.encode()


def test_a_client_that_writes_to_two_addresses_has_two_sessions() -> None:
    settings = quick(udp_session_timeout_ms=SHORT)
    with (
        UdpBackend(echo) as backend,
        ProxyThread(fallback_udp=backend.address, settings=settings, host="0.0.0.0") as proxy,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        sock.settimeout(PATIENCE)
        sock.bind(("127.0.0.1", 0))
        for host in ("127.0.0.1", "127.0.0.2"):
            sock.sendto(host.encode(), (host, proxy.port))
            assert sock.recvfrom(100) == (host.encode(), (host, proxy.port))
        assert proxy.engine.udp_counters.sessions == 2


@on_every_path
@pytest.mark.parametrize("pushing", [True, False], ids=["backend", "client"])
def test_one_way_traffic_either_way_keeps_a_session_and_silence_ends_it(pushing: bool) -> None:  # noqa: FBT001
    settings = quick(udp_session_timeout_ms=1_000)
    with (
        UdpBackend(lambda _: []) as backend,
        ProxyThread(fallback_udp=backend.address, settings=settings) as proxy,
        client(proxy.address) as sock,
    ):
        sock.send(b"first")
        eventually(lambda: backend.seen == 1, "the first datagram has arrived")
        beats = threading.Event()
        for beat in range(8):  # 1.6 s in total, longer than the timeout
            assert not beats.wait(0.2)
            if pushing:
                backend.push(b"%d" % beat)
                assert sock.recv(100) == b"%d" % beat
            else:
                sock.send(b"%d" % beat)
        eventually(lambda: pushing or backend.seen == 9, "all datagrams have arrived")
        assert len(backend.clients) == 1
        assert proxy.engine.udp_counters.sessions == 1
        assert proxy.next_end().ended == ("idle timeout" if pushing else "unanswered")


@on_every_path
def test_a_session_that_was_never_answered_ends_sooner() -> None:
    def answer(datagram: bytes) -> list[bytes]:
        return [datagram] if datagram == b"?" else []

    settings = quick(udp_session_timeout_ms=2_000, udp_unanswered_timeout_ms=200)
    with UdpBackend(answer) as backend, ProxyThread(fallback_udp=backend.address, settings=settings) as proxy:
        assert ask(proxy.address, b"?") == b"?"
        with client(proxy.address) as sock:
            sock.send(b"!")
            first, second = proxy.next_end(), proxy.next_end()
        assert (first.ended, second.ended) == ("unanswered", "idle timeout")
        assert first.seconds < second.seconds


def test_a_flood_without_answers_blocks_neither_sessions_nor_connections() -> None:
    def answer(datagram: bytes) -> list[bytes]:
        return [datagram] if datagram.startswith(b"?") else []

    settings = quick(max_connections=5, max_udp_sessions=10, udp_session_timeout_ms=2_000)
    with (
        UdpBackend(answer) as backend,
        Backend(echo_connection) as tcp,
        ProxyThread(fallback=tcp.address, fallback_udp=backend.address, settings=settings) as proxy,
        ExitStack() as stack,
    ):
        settled = stack.enter_context(client(proxy.address))
        settled.send(b"? first")
        assert settled.recv(100) == b"? first"
        for number in range(200):
            with client(proxy.address) as forged:
                forged.send(b"%d" % number)
            if number % 50 == 0:
                assert ask(proxy.address, b"?%d" % number) == b"?%d" % number
                assert ask_over_tcp(proxy.address, b"hello").data == b"hello"
        settled.send(b"? again")
        assert settled.recv(100) == b"? again"
        eventually(lambda: backend.seen == 206, "all datagrams have been passed on")
        assert proxy.engine.active <= 10
        assert proxy.engine.udp_counters.refused == 0


def test_the_oldest_unanswered_session_of_an_address_makes_room() -> None:
    settings = quick(max_udp_sessions_per_ip=2, udp_session_timeout_ms=2_000)
    with (
        UdpBackend(lambda _: []) as silent,
        ProxyThread(fallback_udp=silent.address, settings=settings) as proxy,
        ExitStack() as stack,
    ):
        socks = [stack.enter_context(client(proxy.address)) for _ in range(3)]
        other = stack.enter_context(client(proxy.address, source="127.0.0.9"))
        for number, sock in enumerate((other, *socks), 1):
            sock.send(b"!")
            eventually(lambda number=number: silent.seen == number, "the datagram is passed on")  # type: ignore[misc]
        assert proxy.next_end().client == "{}:{}".format(*socks[0].getsockname())
        assert proxy.engine.active == 3


@on_every_path
def test_a_route_may_have_its_own_session_timeout() -> None:
    settings = quick(udp_session_timeout_ms=60_000)
    with UdpBackend(echo) as backend:
        route = Route(MAGIC, backend.address, udp_session_timeout_ms=SHORT)
        with ProxyThread(route, settings=settings) as proxy:
            assert ask(proxy.address, b"magic") == b"magic"
            assert proxy.next_end().seconds < 10


@pytest.mark.slow
@pytest.mark.timeout(480)
def test_five_thousand_clients_get_their_own_answers() -> None:
    settings = quick(udp_session_timeout_ms=3_000)
    with (
        UdpBackend(lambda datagram: [b"re:" + datagram]) as backend,
        ProxyThread(fallback_udp=backend.address, settings=settings) as proxy,
    ):

        def talk(number: int) -> int:
            wrong = 0
            with client(proxy.address, source=f"127.1.{number // 200}.{number % 200 + 1}") as sock:
                for turn in range(20):
                    question = b"%d/%d" % (number, turn)
                    sock.send(question)
                    wrong += sock.recv(100) != b"re:" + question
            return wrong

        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            assert sum(pool.map(talk, range(5_000))) == 0
        assert backend.seen == 100_000
        assert proxy.engine.udp_counters.sessions == 5_000


@on_every_path
def test_sessions_are_bounded_and_established_ones_keep_working() -> None:
    settings = quick(udp_session_timeout_ms=1_500, max_udp_sessions=10)
    with (
        UdpBackend(echo) as backend,
        ProxyThread(
            fallback_udp=backend.address, settings=settings, expected=["max_udp_sessions is reached"]
        ) as proxy,
    ):
        socks = [client(proxy.address) for _ in range(30)]
        try:
            for sock in socks[:10]:
                sock.send(b"in")
                assert sock.recv(100) == b"in"
            for sock in socks[10:]:
                sock.send(b"out")
            eventually(lambda: proxy.engine.udp_counters.refused == 20, "the other sessions are refused")
            for sock in socks[:10]:
                sock.send(b"still in")
                assert sock.recv(100) == b"still in"
            assert backend.seen == 20
            assert len(backend.clients) == 10
        finally:
            for sock in socks:
                sock.close()


def test_sessions_of_one_address_are_bounded() -> None:
    settings = quick(udp_session_timeout_ms=1_000, max_udp_sessions_per_ip=2)
    with (
        UdpBackend(echo) as backend,
        ProxyThread(fallback_udp=backend.address, settings=settings, expected=["per_ip is reached"]) as proxy,
        client(proxy.address) as third,
    ):
        with client(proxy.address) as one, client(proxy.address) as two:
            for sock in (one, two):
                sock.send(b"in")
                assert sock.recv(100) == b"in"
            third.send(b"out")
            eventually(lambda: proxy.engine.udp_counters.refused == 1, "the third session is refused")
            assert ask(proxy.address, b"from elsewhere", source="127.0.0.9") == b"from elsewhere"
        proxy.await_drained()
        third.send(b"now in")
        assert third.recv(100) == b"now in"


@on_every_path
def test_a_session_recovers_when_its_backend_returns_and_others_never_notice() -> None:
    dead = free_port()
    settings = quick(udp_session_timeout_ms=1_500)
    with UdpBackend(echo) as alive:
        route = Route(MAGIC, f"127.0.0.1:{dead}")
        with ProxyThread(
            route, fallback_udp=alive.address, settings=settings, expected=["refuses", "is down"]
        ) as proxy:
            with client(proxy.address) as sock, client(proxy.address) as other:
                for turn in range(20):  # an ICMP error answers each datagram, and the next send meets it
                    sock.send(b"magic %d" % turn)
                    other.send(b"%d" % turn)
                    assert other.recv(100) == b"%d" % turn
                with UdpBackend(echo, host="127.0.0.1", port=dead):
                    sock.send(b"magic again")
                    assert sock.recv(100) == b"magic again"
            assert proxy.engine.udp_counters.sessions == 2


@on_every_path
def test_after_a_backend_that_refuses_the_next_is_used() -> None:
    settings = quick(udp_session_timeout_ms=SHORT)
    with UdpBackend(echo) as alive:
        route = Route(MAGIC, [f"127.0.0.1:{free_port()}", alive.address])
        with (
            ProxyThread(route, settings=settings, expected=["refuses", "is down"]) as proxy,
            client(proxy.address) as sock,
        ):
            sock.settimeout(0.2)
            answer = b""
            for _ in range(5):  # the first datagram is lost with the missing backend
                sock.send(b"magic")
                try:
                    answer = sock.recv(100)
                    break
                except TimeoutError:
                    continue
            assert answer == b"magic"


@pytest.mark.parametrize(
    ("step", "number"),
    [("__init__", errno.EMFILE), ("connect", errno.EADDRNOTAVAIL), ("send", errno.ENOBUFS)],
    ids=["no descriptor", "no port", "no memory"],
)
def test_a_shortage_of_this_machine_takes_no_backend_down(
    monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, "shortage")

    settings = quick(udp_session_timeout_ms=SHORT)
    expected = ["no socket for a session", "cannot be reached", "refuses"]
    with UdpBackend(echo) as backend:
        route = Route(MAGIC, backend.address, health=Health(fall=1))
        with (
            ProxyThread(route, settings=settings, expected=expected) as proxy,
            client(proxy.address) as sock,
        ):
            with monkeypatch.context() as patch:
                patch.setattr(socket.socket, step, fail)
                os.write(sock.fileno(), b"magic")
                eventually(lambda: proxy.engine.udp_counters.dropped == 1, "the datagram is dropped")
            (state,) = (backend.state for backend in proxy.engine._plan.pools[Transport.UDP].backends)
            assert state.availability == "unknown"
            sock.send(b"magic")
            assert sock.recv(9) == b"magic"


def test_backends_take_turns() -> None:
    settings = quick(udp_session_timeout_ms=SHORT)
    with UdpBackend(echo) as one, UdpBackend(echo) as two, UdpBackend(echo) as three:
        route = Route(MAGIC, [one.address, two.address, three.address])
        with ProxyThread(route, settings=settings) as proxy:
            for number in range(30):  # each from an address of its own, because a port might be reused
                assert ask(proxy.address, b"magic", source=f"127.0.0.{number + 10}") == b"magic"
        assert [backend.seen for backend in (one, two, three)] == [10, 10, 10]


def test_the_listener_itself_is_never_a_backend() -> None:
    port = free_port()
    with ProxyThread(
        fallback_udp=f"127.0.0.1:{port}", port=port, settings=quick(udp_session_timeout_ms=SHORT)
    ) as p:
        with client(p.address) as sock:
            sock.send(b"round and round")
            eventually(lambda: p.engine.udp_counters.dropped == 1, "the datagram is dropped")
        assert p.engine.udp_counters.sessions == 1


def test_a_stop_lets_an_active_session_finish_and_begins_no_new_one() -> None:
    with (
        UdpBackend(echo) as backend,
        ProxyThread(fallback_udp=backend.address, settings=quick(drain_timeout_ms=20_000)) as proxy,
        client(proxy.address) as sock,
        client(proxy.address) as late,
    ):
        sock.send(b"before")
        assert sock.recv(100) == b"before"
        stopped = proxy.begin(proxy.engine.stop())
        pause = threading.Event()
        for turn in range(15):  # longer than the second of silence that ends a session
            sock.send(b"%d" % turn)
            assert sock.recv(100) == b"%d" % turn
            pause.wait(0.1)
        late.send(b"too late")
        assert stopped() == 0
        assert proxy.engine.udp_counters.sessions == 1


def test_a_stop_leaves_the_datagrams_of_a_shared_socket_to_the_other_processes() -> None:
    async def main() -> None:
        engine = Refractium(fallback_udp=backend.address)
        await engine.start_on(shared.dup(), is_shared=True)
        with client(shared.getsockname()) as sock:
            sock.send(b"before")
            assert await asyncio.to_thread(sock.recv, 100) == b"before"
            stopped = asyncio.create_task(engine.stop())
            await asyncio.sleep(0)
            sock.send(b"for the others")
            backend.push(b"late answer")
            assert await asyncio.to_thread(sock.recv, 100) == b"late answer"
            assert await stopped == 0
            assert await asyncio.to_thread(shared.recv, 100) == b"for the others"
        assert engine.udp_counters.sessions == 1

    with UdpBackend(echo) as backend, socket.socket(type=socket.SOCK_DGRAM) as shared:
        shared.settimeout(PATIENCE)
        shared.bind(("127.0.0.1", 0))
        asyncio.run(main())
