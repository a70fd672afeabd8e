"""UDP sessions whose protocol tells the number of answers: they end with the last answer that is awaited."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from refractium import (
    NO,
    ConfigError,
    Identification,
    Protocol,
    ProtocolMatch,
    Route,
    Transport,
    define_protocol,
)
from refractium.proxy import udp
from refractium_proto_dns import DnsUdp
from support.datagrams import UdpBackend, ask, client, echo, query
from support.proxy import ProxyThread, eventually, quick

if TYPE_CHECKING:
    from typing import Self

on_every_path = pytest.mark.usefixtures("data_path")

FOR_EVER = quick(udp_session_timeout_ms=600_000, udp_unanswered_timeout_ms=600_000)


def protocol(responses: int | None, *, timeout_ms: int | None = None, magic: bytes = b"?") -> Protocol:
    @define_protocol(
        "asking", transport="udp", max_bytes=9, udp_responses=responses, udp_session_timeout_ms=timeout_ms
    )
    def identify(data: bytes) -> Identification:
        return ProtocolMatch() if data.startswith(magic) else NO

    return identify


class Held:
    """A backend whose answers wait until the test releases them."""

    def __init__(self) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.settimeout(10)
        self.sock.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.sock.getsockname()[1]}"
        self.peers: list[tuple[str, int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def receive(self, count: int = 1) -> None:
        self.peers += [self.sock.recvfrom(100)[1] for _ in range(count)]

    def answer(self, data: bytes = b"answer") -> None:
        self.sock.sendto(data, self.peers[-1])


@on_every_path
def test_a_session_that_has_its_answer_ends_long_before_its_timeout() -> None:
    with (
        UdpBackend(echo) as backend,
        ProxyThread(Route(DnsUdp(), backend.address), settings=FOR_EVER) as proxy,
    ):
        assert ask(proxy.address, query(1)) == query(1)
        ended = proxy.next_end()
    assert (ended.ended, ended.route, ended.up, ended.down) == ("answered", "dns", 27, 27)
    assert ended.seconds < 10


@pytest.mark.parametrize(
    ("of_protocol", "of_route", "answers", "ends"),
    [
        (1, None, 1, True),
        (2, None, 1, False),
        (2, None, 2, True),
        (None, 1, 1, True),
        (2, 1, 1, True),
        (1, 2, 1, False),
        (1, 1_000_000, 9, False),
        (None, None, 9, False),
        (0, None, 0, True),
        (1, 0, 0, True),
    ],
)
def test_the_route_or_else_the_protocol_says_how_many_answers_end_a_session(
    of_protocol: int | None,
    of_route: int | None,
    answers: int,
    ends: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    settings = quick(udp_session_timeout_ms=1_000, udp_unanswered_timeout_ms=1_000)
    with UdpBackend(lambda datagram: [datagram] * answers) as backend:
        route = Route(protocol(of_protocol), backend.address, udp_responses=of_route)
        with ProxyThread(route, settings=settings) as proxy, client(proxy.address) as sock:
            sock.send(b"?")
            for _ in range(answers):
                assert sock.recv(9) == b"?"
            assert (proxy.next_end().ended == "answered") is ends


@on_every_path
@pytest.mark.parametrize("queries", [2, 3, 50])
def test_every_query_of_one_port_gets_its_answer(queries: int) -> None:
    """A resolver asks for A and AAAA from one port, and dnsmasq sends all of its queries from one port."""
    with (
        Held() as backend,
        ProxyThread(Route(DnsUdp(), backend.address), settings=FOR_EVER) as proxy,
        client(proxy.address) as sock,
    ):
        for number in range(queries):
            sock.send(query(number))
        backend.receive(queries)
        for number in reversed(range(queries)):  # a recursive server answers in any order
            assert proxy.engine.udp_counters.finished == 0
            backend.answer(query(number))
            assert sock.recv(100) == query(number)
        assert proxy.next_end().ended == "answered"
        assert len(set(backend.peers)) == proxy.engine.udp_counters.sessions == 1


@pytest.mark.parametrize("seed", range(5))
def test_queries_and_answers_in_any_order_lose_no_answer(seed: int) -> None:
    """Queries come alone or together, before and after the end of a session; answers come in any order."""
    chance = random.Random(seed)  # noqa: S311 - chooses test data
    with (
        Held() as backend,
        ProxyThread(Route(DnsUdp(), backend.address), settings=FOR_EVER) as proxy,
        client(proxy.address) as sock,
    ):
        counters = proxy.engine.udp_counters
        waiting: list[tuple[int, tuple[str, int]]] = []
        for number in range(150):
            if not waiting and chance.random() < 0.1:
                eventually(lambda: counters.finished == counters.sessions, "the session has ended")
            for _ in range(chance.randint(0, 3)):
                sock.send(query(number))
                backend.receive()
                waiting.append((number, backend.peers[-1]))
            chance.shuffle(waiting)
            for _ in range(chance.randint(0, len(waiting))):
                asked, peer = waiting.pop()
                backend.sock.sendto(query(asked), peer)
                assert sock.recv(100) == query(asked)
        for asked, peer in waiting:
            backend.sock.sendto(query(asked), peer)
            assert sock.recv(100) == query(asked)
        eventually(lambda: counters.finished == counters.sessions > 1, "all sessions have ended")
        assert set(counters.routes["dns"].ended) == {"answered"}


@pytest.mark.parametrize(("answers", "end"), [(2, "answered"), (1, "idle timeout")])
def test_a_query_that_is_sent_twice_may_get_two_answers_or_one(answers: int, end: str) -> None:
    with Held() as backend:
        route = Route(DnsUdp(), backend.address, udp_session_timeout_ms=500)
        with ProxyThread(route, settings=FOR_EVER) as proxy, client(proxy.address) as sock:
            for _ in range(2):
                sock.send(query(1))
            backend.receive(2)
            for _ in range(answers):
                backend.answer()
                assert sock.recv(100) == b"answer"
            assert proxy.next_end().ended == end


def test_a_lost_answer_is_not_awaited_for_longer_than_the_session_timeout() -> None:
    def answer(datagram: bytes) -> list[bytes]:
        return [] if datagram == query(1) else [datagram]

    with UdpBackend(answer) as backend:
        route = Route(DnsUdp(), backend.address, udp_session_timeout_ms=500)
        with ProxyThread(route, settings=FOR_EVER) as proxy, client(proxy.address) as sock:
            sock.send(query(1))
            for number in range(2, 6):
                sock.send(query(number))
                assert sock.recv(100) == query(number)
            assert proxy.next_end().ended == "idle timeout"
            sock.send(query(7))
            assert sock.recv(100) == query(7)
            assert proxy.next_end().ended == "answered"


def test_answers_that_no_query_asked_for_are_not_credited_to_later_queries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(udp, "_LINGER", 5.0)
    with (
        Held() as backend,
        ProxyThread(Route(DnsUdp(), backend.address), settings=FOR_EVER) as proxy,
        client(proxy.address) as sock,
    ):
        sock.send(query(1))
        backend.receive()
        for _ in range(3):
            backend.answer()
            assert sock.recv(100) == b"answer"
        sock.send(query(2))
        backend.receive()
        monkeypatch.setattr(udp, "_LINGER", 0.01)
        assert proxy.engine.active == 1
        backend.answer(b"second")
        assert sock.recv(100) == b"second"
        eventually(lambda: proxy.engine.active == 0, "the session has all its answers")


def test_a_datagram_that_a_backend_refused_is_not_awaited() -> None:
    """The second query meets the ICMP error of the first query, and goes out from a new socket."""
    settings = quick(udp_session_timeout_ms=600_000, udp_unanswered_timeout_ms=600_000)
    with UdpBackend(echo) as gone:
        address = gone.address
    with Held() as alive:
        route = Route(DnsUdp(), [address, alive.address], balance="first")
        with (
            ProxyThread(route, settings=settings, expected=["refuses", "is down"]) as proxy,
            client(proxy.address) as sock,
        ):
            number = 0
            alive.sock.settimeout(0.1)
            while not alive.peers:
                number += 1
                sock.send(query(number))
                try:
                    alive.receive()
                except TimeoutError:
                    continue
            alive.answer()
            assert sock.recv(100) == b"answer"
            assert proxy.next_end().ended == "answered"


@on_every_path
def test_a_client_that_asks_again_at_once_keeps_its_session() -> None:
    with (
        UdpBackend(echo) as backend,
        ProxyThread(Route(DnsUdp(), backend.address), settings=FOR_EVER) as proxy,
        client(proxy.address) as sock,
    ):
        for number in range(500):
            sock.send(query(number))
            assert sock.recv(100) == query(number)
        assert proxy.next_end().ended == "answered"
    assert proxy.engine.udp_counters.sessions < 50
    assert proxy.engine.udp_counters.finished == proxy.engine.udp_counters.sessions


def test_finished_sessions_count_against_no_limit() -> None:
    settings = quick(max_udp_sessions=3, max_udp_sessions_per_ip=2, udp_session_timeout_ms=600_000)
    with (
        UdpBackend(echo) as backend,
        ProxyThread(Route(DnsUdp(), backend.address), settings=settings) as proxy,
        ExitStack() as stack,
    ):
        for number in range(300):
            sock = stack.enter_context(client(proxy.address))
            sock.send(query(number))
            assert sock.recv(100) == query(number)
        assert proxy.engine.udp_counters.refused == 0


def test_a_finished_session_does_not_let_a_client_exceed_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp, "_LINGER", 600.0)
    settings = quick(max_udp_sessions_per_ip=1, udp_session_timeout_ms=600)
    with UdpBackend(echo) as backend, UdpBackend(echo) as other:
        routes = Route(DnsUdp(), backend.address), Route(protocol(None), other.address)
        with (
            ProxyThread(*routes, settings=settings, expected=["per_ip is reached"]) as proxy,
            client(proxy.address) as first,
            client(proxy.address) as second,
        ):
            first.send(query(1))
            assert first.recv(100) == query(1)
            second.send(b"?")
            assert second.recv(100) == b"?"
            first.send(query(2))
            eventually(lambda: proxy.engine.udp_counters.refused == 1, "the datagram is refused")
            assert proxy.next_end().ended == "answered"
            assert proxy.next_end().ended == "idle timeout"
            first.send(query(3))
            assert first.recv(100) == query(3)
            assert proxy.call(proxy.engine.stop(0)) == 0


@pytest.mark.parametrize("shortage", ["share", "none left"])
def test_the_oldest_finished_session_gives_its_descriptor_to_a_new_one(
    monkeypatch: pytest.MonkeyPatch, shortage: str
) -> None:
    monkeypatch.setattr(udp, "_LINGER", 600.0)
    with (
        UdpBackend(echo) as backend,
        ProxyThread(Route(DnsUdp(), backend.address), settings=FOR_EVER) as proxy,
        ExitStack() as stack,
    ):
        service = proxy.engine._udp
        assert service is not None
        if shortage == "share":
            monkeypatch.setattr(
                type(service), "_holds_too_many_descriptors", lambda one: len(one.sessions) >= 5
            )
        else:
            monkeypatch.setattr(type(service.descriptors), "left", lambda one, _: max(0, 5 - one.lent))
        socks = [stack.enter_context(client(proxy.address)) for _ in range(20)]
        for number, sock in enumerate(socks):
            sock.send(query(number))
            assert sock.recv(100) == query(number)
        ended = [proxy.next_end() for _ in range(15)]
        assert [one.client for one in ended] == ["{}:{}".format(*sock.getsockname()) for sock in socks[:15]]
        assert {one.ended for one in ended} == {"answered"}
        assert len(service.sessions) == 5
        monkeypatch.undo()
        assert proxy.call(proxy.engine.stop(0)) == 0


def test_a_stop_does_not_report_finished_sessions_as_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp, "_LINGER", 600.0)
    with (
        UdpBackend(echo) as backend,
        ProxyThread(Route(DnsUdp(), backend.address), settings=FOR_EVER) as proxy,
    ):
        assert ask(proxy.address, query(1)) == query(1)
        assert proxy.call(proxy.engine.stop(0)) == 0
        assert proxy.next_end().ended == "answered"


@pytest.mark.parametrize(
    ("of_server", "of_protocol", "of_route", "expected"),
    [
        (300, None, None, 300),
        (60_000, 300, None, 300),
        (200, 900, None, 900),
        (60_000, 60_000, 300, 300),
        (200, None, 900, 900),
        (200, 300, 900, 900),
    ],
)
def test_the_session_timeout_is_that_of_the_route_else_of_the_protocol_else_of_the_server(
    of_server: int, of_protocol: int | None, of_route: int | None, expected: int
) -> None:
    settings = quick(udp_session_timeout_ms=of_server)
    with UdpBackend(echo) as backend:
        route = Route(
            protocol(None, timeout_ms=of_protocol), backend.address, udp_session_timeout_ms=of_route
        )
        with ProxyThread(route, settings=settings) as proxy:
            assert ask(proxy.address, b"?") == b"?"
            ended = proxy.next_end()
    assert ended.ended == "idle timeout"
    assert expected / 1000 <= ended.seconds < expected / 1000 + 5


def test_dns_has_one_answer_and_a_timeout_of_its_own() -> None:
    assert (DnsUdp().udp_responses, DnsUdp().udp_session_timeout_ms) == (1, 10_000)


@pytest.mark.parametrize("key", ["udp_responses", "udp_session_timeout_ms"])
@pytest.mark.parametrize("value", [-1, 10**12, True, "1", 1.5])
def test_a_wrong_number_is_refused_with_its_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError) as refused:
        Route(DnsUdp(), "127.0.0.1:53", **{key: value})  # type: ignore[arg-type]
    assert [problem.where for problem in refused.value.problems] == [key]
    with pytest.raises(ValueError, match=key):
        define_protocol("asking", transport="udp", max_bytes=9, **{key: value})(lambda _: NO)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["udp_responses", "udp_session_timeout_ms"])
def test_a_protocol_for_tcp_has_no_sessions_of_datagrams(key: str) -> None:
    with pytest.raises(ValueError, match=rf"{key} is for UDP only"):
        define_protocol("asking", transport=Transport.TCP, max_bytes=9, **{key: 1})(lambda _: NO)  # type: ignore[arg-type]
