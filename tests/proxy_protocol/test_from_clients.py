"""Received headers: trusted proxies must send one and are believed, and no other client is."""

from __future__ import annotations

import socket
import struct
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import pytest

from refractium import ConfigError, EngineSpec, Refractium, Route, Settings
from refractium.contract import Transport
from refractium.proxy.summary import Ended
from refractium.wire.proxy_protocol import build_v1, build_v2, parse
from support.backends import Backend, named, sink
from support.clients import ask, connect, receive, receive_all, reset
from support.proxy import ProxyThread, eventually, quick, starting_with

if TYPE_CHECKING:
    from collections.abc import Callable

MAGIC: Final = starting_with(b"magic")
CLIENT: Final = ("192.0.2.7", 50_000)
CLIENT6: Final = ("2001:db8::7", 50_000)
ASKED: Final = ("198.51.100.1", 443)
NOT_SENT: Final = "trusted and sent no valid PROXY header"
REFUSED: Final = "refused a connection from"
HEADERS: Final = pytest.mark.parametrize(
    "header", [build_v1(CLIENT, ASKED), build_v2(Transport.TCP, CLIENT, ASKED, sni="a.example")]
)


def trusting(*networks: str, **values: Any) -> Settings:
    return quick(proxy_protocol_from=networks or ("127.0.0.1",), **values)


@HEADERS
def test_the_client_is_the_one_that_a_trusted_proxy_names(header: bytes) -> None:
    with (
        Backend(sink) as backend,
        ProxyThread(Route(MAGIC, backend.address), settings=trusting()) as proxy,
    ):
        ask(proxy.address, header + b"magic!")
        assert backend.result().data == b"magic!"
        end = proxy.next_end()
        assert (end.client, end.up) == ("192.0.2.7:50000", 6)


@HEADERS
def test_a_header_may_arrive_byte_by_byte(header: bytes) -> None:
    with (
        Backend(sink) as backend,
        ProxyThread(Route(MAGIC, backend.address), settings=trusting()) as proxy,
        proxy.connect() as client,
    ):
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in header + b"magic!":
            client.sendall(bytes([byte]))
        client.shutdown(socket.SHUT_WR)
        assert backend.result().data == b"magic!"
        assert proxy.next_end().client == "192.0.2.7:50000"


@HEADERS
def test_first_bytes_may_come_later_than_the_header(header: bytes) -> None:
    with (
        Backend(sink) as backend,
        ProxyThread(Route(MAGIC, backend.address), settings=trusting(max_connections_per_ip=1)) as proxy,
        proxy.connect() as client,
    ):
        client.sendall(header)
        eventually(lambda: "192.0.2.7" in proxy.service.limiter._by_origin, "the header has been read")
        client.sendall(b"magic!")
        client.shutdown(socket.SHUT_WR)
        assert backend.result().data == b"magic!"


def test_a_silent_client_behind_a_trusted_proxy_is_a_silent_client() -> None:
    with (
        Backend(named("220 hello")) as backend,
        ProxyThread(
            Route(MAGIC, backend.address, on_timeout=True), settings=trusting(peek_timeout_ms=1_000)
        ) as proxy,
        proxy.connect() as client,
    ):
        client.sendall(build_v1(CLIENT, ASKED))
        assert receive(client, 9) == b"220 hello"


@HEADERS
def test_a_header_of_an_untrusted_client_is_not_believed(header: bytes) -> None:
    with (
        Backend(sink) as backend,
        ProxyThread(fallback=backend.address, settings=trusting("10.0.0.0/8", "127.0.0.2")) as proxy,
    ):
        ask(proxy.address, header + b"magic!")
        assert backend.result().data == header + b"magic!"
        assert proxy.next_end().client.startswith("127.0.0.1:")
        ask(proxy.address, header + b"magic!", source="127.0.0.2")
        assert backend.result().data == b"magic!"
        assert proxy.next_end().client == "192.0.2.7:50000"


@pytest.mark.parametrize(
    "bad",
    [
        b"magic!",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 1 99999\r\n",
        b"PROXY TCP4 " + 200 * b"1",
        b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\0",
        build_v2(Transport.UDP, CLIENT, ASKED),
        build_v2(Transport.TCP, CLIENT, ASKED)[:14] + b"\xff\xff",
    ],
)
def test_a_malformed_header_ends_the_connection_at_once_and_reaches_no_backend(bad: bytes) -> None:
    settings = trusting(peek_timeout_ms=60_000)
    with (
        Backend(sink) as backend,
        ProxyThread(
            Route(MAGIC, backend.address),
            fallback=backend.address,
            settings=settings,
            expected=[NOT_SENT],
        ) as proxy,
        proxy.connect() as client,
    ):
        client.sendall(bad)
        assert receive_all(client).data == b""
        assert proxy.next_end().ended is Ended.NO_HEADER
        assert backend.accepted == 0
        assert sum(one.ended[Ended.NO_HEADER] for one in proxy.counters.routes.values()) == 1


@pytest.mark.parametrize("part", [b"", build_v1(CLIENT, ASKED)[:-1]])
def test_a_header_that_is_late_ends_the_connection(part: bytes) -> None:
    with (
        Backend(named("220")) as backend,
        ProxyThread(
            Route(MAGIC, backend.address, on_timeout=True),
            settings=trusting(peek_timeout_ms=100),
            expected=[NOT_SENT],
        ) as proxy,
        proxy.connect() as client,
    ):
        client.sendall(part)
        assert receive_all(client) == (b"", "eof")
        assert proxy.next_end().ended is Ended.NO_HEADER
        assert backend.accepted == 0


@pytest.mark.parametrize(
    ("part", "how"), [(b"", Ended.CLIENT_LEFT), (build_v1(CLIENT, ASKED)[:20], Ended.NO_HEADER)]
)
def test_a_proxy_that_leaves_without_a_byte_is_not_blamed_for_a_missing_header(
    part: bytes, how: Ended
) -> None:
    with ProxyThread(
        fallback="127.0.0.1:1", settings=trusting(), expected=[NOT_SENT] if part else []
    ) as proxy:
        ask(proxy.address, part)
        assert proxy.next_end().ended is how


@pytest.mark.parametrize("header", [b"PROXY UNKNOWN\r\n", build_v2(Transport.TCP, None, None)])
def test_a_header_without_a_client_makes_the_proxy_the_client_without_a_limit(header: bytes) -> None:
    with (
        Backend(named("in")) as backend,
        ProxyThread(fallback=backend.address, settings=trusting(max_connections_per_ip=1)) as proxy,
        ExitStack() as stack,
    ):
        for _ in range(5):
            client = stack.enter_context(proxy.connect())
            client.sendall(header + b"?")
            assert receive(client, 3) == b"in?"
        stack.close()
        assert proxy.next_end().client.startswith("127.0.0.1:")


def test_the_limit_of_an_address_applies_to_the_client_and_not_to_the_proxy() -> None:
    settings = trusting(max_connections_per_ip=2)
    with (
        Backend(named("in")) as backend,
        ProxyThread(fallback=backend.address, settings=settings, expected=[REFUSED]) as proxy,
        ExitStack() as stack,
    ):

        def enter(ip: str) -> bytes:
            client = stack.enter_context(proxy.connect())
            client.sendall(build_v1((ip, 1), ASKED) + b"?")
            return receive(client, 3)

        for ip in ("192.0.2.1", "192.0.2.2", "192.0.2.3"):
            assert [enter(ip), enter(ip)] == [b"in?", b"in?"]
            assert enter(ip) == b""
        assert proxy.engine.active == 6
        assert proxy.counters.refused == 3
        assert proxy.counters.refusals == {"max_connections_per_ip": 3}
        assert backend.accepted == 6
        # The clients that leave make room.
        stack.close()
        proxy.await_active(0)
        assert enter("192.0.2.1") == b"in?"


def test_the_total_limit_applies_to_trusted_proxies_as_well() -> None:
    settings = trusting(max_connections=2)
    with (
        ProxyThread(fallback="127.0.0.1:1", settings=settings, expected=[REFUSED]) as proxy,
        proxy.connect(),
        proxy.connect(),
    ):
        proxy.await_active(2)
        assert ask(proxy.address, build_v1(CLIENT, ASKED)).data == b""
        assert proxy.counters.refusals == {"max_connections": 1}


@pytest.mark.parametrize("leave", [socket.socket.close, reset], ids=["an orderly end", "a reset"])
def test_a_proxy_that_leaves_inside_its_header_is_forgotten(leave: Callable[[socket.socket], None]) -> None:
    with ProxyThread(fallback="127.0.0.1:1", settings=trusting(), expected=[NOT_SENT]) as proxy:
        client = proxy.connect()
        client.sendall(b"PROXY TCP4 ")
        proxy.await_active(1)
        leave(client)
        proxy.await_active(0)


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("source", [CLIENT, CLIENT6])
def test_backends_get_the_client_that_a_trusted_proxy_named(version: Any, source: tuple[str, int]) -> None:
    asked = ASKED if source is CLIENT else ("2001:db8::1", 443)
    with (
        Backend(sink) as backend,
        ProxyThread(Route(MAGIC, backend.address, proxy_protocol=version), settings=trusting()) as proxy,
    ):
        ask(proxy.address, build_v2(Transport.TCP, source, asked) + b"magic!")
        header, size = parse(received := backend.result().data)  # type: ignore[misc]
        assert (header.source, header.destination) == (source, asked)
        assert received[size:] == b"magic!"


def test_the_balancer_uses_the_real_client() -> None:
    with (
        Backend(named("a")) as one,
        Backend(named("b")) as other,
        ProxyThread(
            Route(MAGIC, [one.address, other.address], balance="source_hash"), settings=trusting()
        ) as proxy,
    ):

        def choice(number: int) -> bytes:
            header = build_v1((f"192.0.2.{number}", 1), ASKED)
            return ask(proxy.address, header + b"magic").data[:1]

        first = [choice(number) for number in range(30)]
        assert [choice(number) for number in range(30)] == first
    assert set(first) == {b"a", b"b"}


@pytest.mark.needs_ipv6
def test_an_ipv4_proxy_at_an_ipv6_listener_is_trusted_by_its_ipv4_address() -> None:
    settings = trusting("127.0.0.0/8")
    with (
        Backend(sink) as backend,
        ProxyThread(host="::", fallback=backend.address, settings=settings) as proxy,
    ):
        ask(("127.0.0.1", proxy.port), build_v1(CLIENT, ASKED) + b"4")
        assert backend.result().data == b"4"
        ask(("::1", proxy.port), b"PROXY 6")
        assert backend.result().data == b"PROXY 6"


def test_a_reload_changes_the_trusted_proxies_for_new_connections() -> None:
    with (
        Backend(sink) as backend,
        ProxyThread(fallback=backend.address, settings=trusting()) as proxy,
        proxy.connect() as before,
    ):
        proxy.await_active(1)
        proxy.call(proxy.engine.apply(EngineSpec(fallback_tcp=backend.address, settings=quick())))
        ask(proxy.address, b"no header")
        assert backend.result().data == b"no header"
        before.sendall(build_v1(CLIENT, ASKED) + b"with")
        before.shutdown(socket.SHUT_WR)
        assert backend.result().data == b"with"


def test_a_flood_of_malformed_headers_costs_little_and_is_hardly_logged() -> None:
    with ProxyThread(fallback="127.0.0.1:1", settings=trusting(), expected=[NOT_SENT]) as proxy:
        before, begun = proxy.cpu_seconds(), time.monotonic()
        for _ in range(1000):
            with connect(proxy.address) as client:
                client.sendall(b"GET / HTTP/1.1\r\n\r\n")
                assert client.recv(1) == b""
        assert (proxy.cpu_seconds() - before) / 1000 < 0.001
        # At most one line in ten seconds.
        assert 1 <= len(proxy.warnings) <= 1 + (time.monotonic() - begun) // 10


def test_a_proxy_that_resets_after_its_header_leaves_nothing_open() -> None:
    with ProxyThread(fallback="127.0.0.1:1", settings=trusting()) as proxy:
        with proxy.connect() as client:
            client.sendall(build_v1(CLIENT, ASKED))
            eventually(lambda: "192.0.2.7" in proxy.service.limiter._by_origin, "the header has been read")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end = proxy.next_end()
    assert (end.client, end.ended) == ("192.0.2.7:50000", Ended.CLIENT_LEFT)


def test_all_malformed_networks_are_refused_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Refractium(
            fallback_tcp="127.0.0.1:1",
            settings=Settings(proxy_protocol_from=("10.0.0.1/8", "::1", "lb.example", "::ffff:10.0.0.1")),
        )
    assert [problem.where for problem in caught.value.problems] == [
        f"settings.proxy_protocol_from[{index}]" for index in (0, 2, 3)
    ]
    assert "write 10.0.0.0/8" in str(caught.value)
