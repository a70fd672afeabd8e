"""A client continues after its session has ended by silence, with a datagram that identifies no protocol."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
import trustme
from aioquic.asyncio.client import connect
from aioquic.asyncio.server import serve
from aioquic.quic.configuration import QuicConfiguration
from hypothesis import given
from hypothesis import strategies as st

from refractium import EngineSpec, Health, ListenerRules, Route, Transport
from refractium.identify.patterns import Hex, compile_patterns
from refractium.proxy import past_sessions
from refractium.proxy.counters import Outcome
from refractium.proxy.past_sessions import RETENTION, PastSession, PastSessions
from support.datagrams import UdpBackend, client, echo
from support.process import free_port
from support.proxy import ProxyThread, eventually, quick

if TYPE_CHECKING:
    from pathlib import Path

    from refractium import Protocol

on_every_path = pytest.mark.usefixtures("data_path")

SHORT = 600
"""Milliseconds of silence that end a session. Every test waits for this time."""
BRIEF = quick(udp_session_timeout_ms=SHORT)

FLOWS = {
    "wireguard": ("01 00 00 00", "04 00 00 00 aa bb"),  # handshake initiation, then transport data
    "quic": ("c3 00 00 00 01 08", "43 aa bb cc dd"),  # Initial (RFC 9000 17.2.2), then 1-RTT (17.3.1)
    "openvpn": ("38", "48 00 00 00 aa bb"),  # P_CONTROL_HARD_RESET_CLIENT_V2, then P_DATA_V2
    "dtls": ("16 fe fd 00 00", "17 fe fd 00 01"),  # handshake, then application data (RFC 6347 4.1)
}
OPENING, DATA = (bytes.fromhex(part) for part in FLOWS["wireguard"])


def opened_by(name: str, opening: bytes) -> tuple[Protocol, ...]:
    return compile_patterns(name, Transport.UDP, [Hex(opening)], 1024)


WIREGUARD = opened_by("wireguard", OPENING)


def named(name: bytes) -> UdpBackend:
    return UdpBackend(lambda datagram: [name + b":" + datagram])


def exchange(sock: socket.socket, datagram: bytes) -> bytes:
    sock.send(datagram)
    return sock.recv(9000)


def is_dropped(proxy: ProxyThread, sock: socket.socket, datagram: bytes) -> bool:
    """Send a datagram, and return whether it was counted as unrouted or refused."""

    def count() -> int:
        return proxy.engine.udp_counters.unrouted + proxy.engine.udp_counters.refused

    before = count()
    sock.send(datagram)
    eventually(lambda: count() == before + 1, "the datagram is dropped")
    return True


def is_bound(sock: socket.socket, address: tuple[str, int]) -> bool:
    """Bind a socket, and return whether the address was free."""
    try:
        sock.bind(address)
    except OSError:
        return False
    return True


@on_every_path
@pytest.mark.parametrize("protocol", FLOWS)
@pytest.mark.parametrize("has_fallback", [False, True], ids=["alone", "beside a fallback"])
def test_a_client_continues_at_its_route_after_silence(protocol: str, has_fallback: bool) -> None:  # noqa: FBT001
    opening, data = (bytes.fromhex(part) for part in FLOWS[protocol])
    with named(b"route") as backend, named(b"rest") as rest:
        route = Route(opened_by(protocol, opening), backend.address)
        fallback = rest.address if has_fallback else ()
        with (
            ProxyThread(route, fallback_udp=fallback, settings=BRIEF) as proxy,
            client(proxy.address) as sock,
        ):
            assert exchange(sock, opening) == b"route:" + opening
            for _ in range(2):
                assert proxy.next_end().ended == "idle timeout"
                assert exchange(sock, data) == b"route:" + data
            ended = proxy.next_end()
            assert (ended.route, ended.protocol, ended.ended) == (protocol, protocol, "idle timeout")
            assert proxy.engine.udp_counters.outcomes == {Outcome.IDENTIFIED: 1, Outcome.RESUMED: 2}


@on_every_path
def test_a_client_meets_the_backend_that_knows_it() -> None:
    with ExitStack() as stack:
        backends = [stack.enter_context(named(b"%d" % number)) for number in range(3)]
        route = Route(WIREGUARD, [one.address for one in backends])
        proxy = stack.enter_context(ProxyThread(route, settings=BRIEF))
        clients = [stack.enter_context(client(proxy.address)) for _ in range(10)]
        chosen = [exchange(sock, OPENING).partition(b":")[0] for sock in clients]
        assert set(chosen) == {b"0", b"1", b"2"}
        for _ in range(2):
            for _ in clients:
                assert proxy.next_end().ended == "idle timeout"
            found = [exchange(sock, DATA).partition(b":")[0] for sock in reversed(clients)]
            assert found[::-1] == chosen


def test_a_client_of_a_fallback_meets_the_backend_that_knows_it() -> None:
    with (
        named(b"0") as one,
        named(b"1") as other,
        ProxyThread(fallback_udp=[one.address, other.address], settings=BRIEF) as proxy,
        client(proxy.address) as sock,
    ):
        answers = [exchange(sock, DATA)]
        for _ in range(3):
            proxy.next_end()
            answers.append(exchange(sock, DATA))
        assert len(set(answers)) == 1
        assert proxy.engine.udp_counters.outcomes == {Outcome.FALLBACK: 4}


def test_a_backend_sees_the_same_address_again_if_its_port_is_free() -> None:
    with (
        UdpBackend(echo) as backend,
        ProxyThread(Route(WIREGUARD, backend.address), settings=BRIEF) as proxy,
        client(proxy.address) as sock,
    ):
        assert exchange(sock, OPENING) == OPENING
        for _ in range(5):  # other tests may have taken the port
            (*_, before) = backend.clients
            proxy.next_end()
            assert exchange(sock, DATA) == DATA
            if list(backend.clients)[-1] == before:
                break
        else:
            pytest.fail("each session had another port")
        proxy.next_end()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taking:
            eventually(lambda: is_bound(taking, before), "the port is taken")
            assert exchange(sock, DATA) == DATA
        assert list(backend.clients)[-1] != before


def test_a_first_datagram_decides_anew() -> None:
    other_opening = b"\x16\xfe\xfd"
    with named(b"wireguard") as one, named(b"dtls") as other:
        routes = Route(WIREGUARD, one.address), Route(opened_by("dtls", other_opening), other.address)
        with ProxyThread(*routes, settings=BRIEF) as proxy, client(proxy.address) as sock:
            assert exchange(sock, OPENING).startswith(b"wireguard:")
            proxy.next_end()
            assert exchange(sock, other_opening).startswith(b"dtls:")
            proxy.next_end()
            assert exchange(sock, DATA).startswith(b"dtls:")


@on_every_path
def test_a_client_that_is_unknown_after_a_restart_reaches_its_route_with_its_next_first_datagram() -> None:
    with (
        named(b"route") as backend,
        UdpBackend(lambda _: []) as rest,
        ProxyThread(
            Route(WIREGUARD, backend.address),
            fallback_udp=rest.address,
            settings=quick(udp_session_timeout_ms=1500),
        ) as proxy,
        client(proxy.address) as sock,
    ):
        for _ in range(2):
            sock.send(DATA)
        eventually(lambda: rest.seen == 2, "the fallback has both datagrams")
        assert exchange(sock, OPENING) == b"route:" + OPENING
        ended = proxy.next_end()
        assert (ended.route, ended.ended) == ("fallback", "unanswered")
        assert exchange(sock, DATA) == b"route:" + DATA
        assert proxy.engine.udp_counters.outcomes == {Outcome.FALLBACK: 1, Outcome.IDENTIFIED: 1}


def test_a_session_that_the_fallback_has_answered_stays_at_the_fallback() -> None:
    with (
        named(b"rest") as rest,
        ProxyThread(Route(WIREGUARD, "127.0.0.1:1"), fallback_udp=rest.address, settings=BRIEF) as proxy,
        client(proxy.address) as sock,
    ):
        assert exchange(sock, DATA) == b"rest:" + DATA
        assert exchange(sock, OPENING) == b"rest:" + OPENING


def test_a_backend_that_is_down_is_replaced() -> None:
    with named(b"0") as one, named(b"1") as other:
        route = Route(WIREGUARD, [one.address, other.address], health=Health(fall=1, interval_ms=600_000))
        with (
            ProxyThread(route, settings=BRIEF, expected=["is down"]) as proxy,
            client(proxy.address) as sock,
        ):
            assert exchange(sock, OPENING).startswith(b"0:")
            proxy.next_end()

            async def take_down() -> None:
                next(iter(proxy.engine._plan.pools[Transport.UDP].backends)).state.client_failed("test")

            proxy.call(take_down())
            for _ in range(2):
                assert exchange(sock, DATA).startswith(b"1:")
                proxy.next_end()


@on_every_path
def test_a_client_that_is_not_answered_any_more_still_continues() -> None:
    """A WireGuard peer sends keepalives, which its server never answers."""
    with (
        UdpBackend(lambda datagram: [datagram] if datagram != b"keepalive" else []) as backend,
        ProxyThread(Route(WIREGUARD, backend.address), settings=BRIEF) as proxy,
        client(proxy.address) as sock,
    ):
        assert exchange(sock, OPENING) == OPENING
        for number in range(2, 4):
            assert proxy.next_end().ended == "idle timeout"
            sock.send(b"keepalive")
            eventually(lambda number=number: backend.seen == number, "the datagram has arrived")  # type: ignore[misc]
        backend.push(b"from the server")
        assert sock.recv(100) == b"from the server"
        proxy.next_end()
        assert exchange(sock, DATA) == DATA


def test_a_session_that_was_never_answered_is_not_remembered() -> None:
    with (
        UdpBackend(lambda _: []) as backend,
        ProxyThread(Route(WIREGUARD, backend.address), settings=BRIEF) as proxy,
        client(proxy.address) as sock,
    ):
        sock.send(OPENING)
        assert proxy.next_end().ended == "unanswered"
        assert is_dropped(proxy, sock, DATA)


def test_a_session_that_ended_with_its_last_answer_is_not_remembered() -> None:
    with (
        UdpBackend(echo) as backend,
        ProxyThread(Route(WIREGUARD, backend.address, udp_responses=1), settings=BRIEF) as proxy,
        client(proxy.address) as sock,
    ):
        assert exchange(sock, OPENING) == OPENING
        assert proxy.next_end().ended == "answered"
        assert is_dropped(proxy, sock, DATA)


def test_a_session_is_forgotten_after_the_retention(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        UdpBackend(echo) as backend,
        ProxyThread(Route(WIREGUARD, backend.address), settings=BRIEF) as proxy,
        client(proxy.address) as sock,
    ):
        assert exchange(sock, OPENING) == OPENING
        proxy.next_end()
        monkeypatch.setattr(past_sessions, "RETENTION", -1.0)
        assert is_dropped(proxy, sock, DATA)


def test_the_latest_sessions_are_remembered_up_to_the_limit() -> None:
    settings = quick(udp_session_timeout_ms=SHORT, max_udp_sessions=3)
    with (
        UdpBackend(echo) as backend,
        ProxyThread(Route(WIREGUARD, backend.address), settings=settings) as proxy,
        ExitStack() as stack,
    ):
        clients = [stack.enter_context(client(proxy.address)) for _ in range(6)]
        for half in (clients[:3], clients[3:]):
            for sock in half:
                assert exchange(sock, OPENING) == OPENING
            for _ in half:
                proxy.next_end()
        service = proxy.engine._udp
        assert service is not None
        assert len(service.past) == 3
        for sock in clients[:3]:
            assert is_dropped(proxy, sock, DATA)
        for sock in clients[3:]:
            assert exchange(sock, DATA) == DATA


@pytest.mark.parametrize("by_rule", ["limit", "route", "listener"])
def test_a_client_must_still_be_admitted(by_rule: str) -> None:
    settings = quick(udp_session_timeout_ms=SHORT, max_udp_sessions_per_ip=1 if by_rule == "limit" else 9)
    with UdpBackend(echo) as backend, UdpBackend(echo) as other:
        routes = [Route(WIREGUARD, backend.address), Route(opened_by("other", b"other"), other.address)]
        denying = [Route(WIREGUARD, backend.address, deny=["127.0.0.1"] * (by_rule == "route")), routes[1]]
        rules = {"": ListenerRules(deny=["127.0.0.1"] * (by_rule == "listener"))}
        expected = ["per_ip is reached", "access rules deny"]
        with (
            ProxyThread(*routes, settings=settings, expected=expected) as proxy,
            client(proxy.address) as sock,
            client(proxy.address) as second,
        ):
            assert exchange(sock, OPENING) == OPENING
            proxy.next_end()
            if by_rule == "limit":
                assert exchange(second, b"other") == b"other"
            else:
                proxy.call(proxy.engine.apply(EngineSpec(udp=denying, settings=settings, listeners=rules)))
            assert is_dropped(proxy, sock, DATA)
            assert proxy.engine.udp_counters.refused == 1
            if by_rule == "limit":
                proxy.next_end()
            else:
                proxy.call(proxy.engine.apply(EngineSpec(udp=routes, settings=settings)))
            assert exchange(sock, DATA) == DATA


@pytest.mark.parametrize("change", ["other backends", "other id", "removed", "other listener"])
def test_after_a_reload_a_client_continues_if_its_route_is_still_there(change: str) -> None:
    with named(b"before") as before, named(b"after") as after, named(b"rest") as rest:
        routes = {
            "other backends": [Route(WIREGUARD, after.address, id="vpn")],
            "other id": [Route(WIREGUARD, before.address, id="other")],
            "removed": [],
            "other listener": [
                Route(WIREGUARD, before.address, id="vpn"),
                Route(opened_by("game", b"game"), before.address),
            ],
        }[change]
        rules = {"": ListenerRules(["game"] if change == "other listener" else None)}
        spec = EngineSpec(udp=routes, fallback_udp=rest.address, settings=BRIEF, listeners=rules)
        with (
            ProxyThread(
                Route(WIREGUARD, before.address, id="vpn"), fallback_udp=rest.address, settings=BRIEF
            ) as proxy,
            client(proxy.address) as sock,
        ):
            assert exchange(sock, OPENING).startswith(b"before:")
            proxy.next_end()
            proxy.call(proxy.engine.apply(spec))
            expected = b"after:" if change == "other backends" else b"rest:"
            assert exchange(sock, DATA).startswith(expected)


def test_a_route_of_the_same_name_for_other_clients_does_not_continue_a_session() -> None:
    def routes(first: str, second: str) -> list[Route]:
        return [
            Route(WIREGUARD, one.address, client=[first]),
            Route(WIREGUARD, two.address, client=[second]),
        ]

    with (
        named(b"one") as one,
        named(b"two") as two,
        ProxyThread(*routes("127.0.0.1", "127.0.0.2"), settings=BRIEF) as proxy,
        client(proxy.address, source="127.0.0.1") as first,
        client(proxy.address, source="127.0.0.2") as second,
    ):
        for sock, name in ((first, b"one:"), (second, b"two:")):
            assert exchange(sock, OPENING).startswith(name)
            proxy.next_end()
            assert exchange(sock, DATA).startswith(name)
            proxy.next_end()
        moved = routes("127.0.0.1", "127.0.0.3")
        proxy.call(proxy.engine.apply(EngineSpec(udp=moved, settings=BRIEF)))
        assert exchange(first, DATA).startswith(b"one:")
        assert is_dropped(proxy, second, DATA)


def test_sessions_of_a_closed_listener_are_forgotten() -> None:
    with (
        UdpBackend(echo) as backend,
        ProxyThread(Route(WIREGUARD, backend.address), settings=BRIEF) as proxy,
        client(proxy.address) as sock,
    ):
        assert exchange(sock, OPENING) == OPENING
        proxy.next_end()
        service = proxy.engine._udp
        assert service is not None
        assert len(service.past) == 1
        (address,) = (one.address for one in proxy.status().listeners if one.transport is Transport.UDP)
        proxy.call(proxy.engine.stop_listening(Transport.UDP, address))
        assert len(service.past) == 0


def test_a_quic_connection_survives_the_end_of_its_session(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("quic.example")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    at_server = QuicConfiguration(is_client=False, alpn_protocols=["echo"])
    at_server.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    at_client = QuicConfiguration(alpn_protocols=["echo"], server_name="quic.example")
    at_client.load_verify_locations(cadata=authority.cert_pem.bytes())
    at_client.verify_mode = ssl.CERT_REQUIRED
    answering: set[asyncio.Future[None]] = set()

    def echo_lines(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def answer() -> None:
            while line := await reader.readline():
                writer.write(line)
            writer.write_eof()

        answering.add(asyncio.ensure_future(answer()))

    async def talk(port: int, proxy: ProxyThread) -> None:
        server = await serve("127.0.0.1", port, configuration=at_server, stream_handler=echo_lines)
        try:
            async with connect("127.0.0.1", proxy.port, configuration=at_client) as connection:
                reader, writer = await connection.create_stream()
                for line in (b"before\n", b"after\n", b"again\n"):
                    writer.write(line)
                    assert await asyncio.wait_for(reader.readline(), 10) == line
                    ended = await asyncio.to_thread(proxy.next_end)
                    assert (ended.route, ended.ended) == ("quic", "idle timeout")
                writer.write_eof()
                assert await asyncio.wait_for(reader.read(), 10) == b""
        finally:
            server.close()

    port = free_port()
    quic = compile_patterns("quic", Transport.UDP, [Hex(bytes.fromhex("00 00 00 01"), 1)], 1024)
    route = Route(quic, f"127.0.0.1:{port}")
    with ProxyThread(route, settings=BRIEF) as proxy:
        asyncio.run(talk(port, proxy))
        assert proxy.engine.udp_counters.outcomes[Outcome.RESUMED] >= 2


Step = tuple[str, int, float]
STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "get", "discard"]), st.integers(0, 5), st.floats(0, RETENTION)),
    max_size=60,
)


@given(STEPS, st.integers(1, 4))
def test_the_memory_equals_a_bounded_list_in_the_order_of_the_ends(steps: list[Step], most: int) -> None:
    memory = PastSessions(most)
    model: list[tuple[int, float, PastSession]] = []
    now = 0.0
    for number, (what, key, seconds) in enumerate(steps):
        now += seconds
        if what == "add":
            past = PastSession(str(number), None, None)
            memory.add((key,), past, now)
            model = [one for one in model if one[0] != key and now - one[1] <= RETENTION]
            model = [*model, (key, now, past)][-most:]
            assert len(memory) == len(model)
        elif what == "discard":
            memory.discard((key,))
            model = [one for one in model if one[0] != key]
        valid = {at: past for at, ended, past in model if now - ended <= RETENTION}
        assert {at: memory.get((at,), now) for at in range(6)} == {at: valid.get(at) for at in range(6)}
        assert len(memory) <= most
