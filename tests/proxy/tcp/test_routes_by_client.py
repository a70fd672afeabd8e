"""Routes that depend on the client's address: over TCP and UDP, for silent clients, and behind a proxy."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from refractium import EngineSpec, Protocol, Route, Transport
from refractium.identify.everything import AnyProtocol
from refractium.identify.patterns import Text, compile_patterns
from refractium.proxy.counters import Outcome
from refractium.proxy.summary import Ended
from support.backends import Backend, named
from support.clients import ask, receive
from support.datagrams import UdpBackend
from support.datagrams import client as udp_client
from support.process import free_port
from support.proxy import ProxyThread, quick, starting_with

if TYPE_CHECKING:
    from collections.abc import Iterator

HELLO = b"HELLO there"
MAGIC = starting_with(b"HELLO")
LAN = "127.0.1.0/24"
NEAR, FAR = "127.0.1.9", "127.0.0.9"


@pytest.fixture
def near() -> Iterator[Backend]:
    with Backend(named("near ")) as backend:
        yield backend


@pytest.fixture
def far() -> Iterator[Backend]:
    with Backend(named("far ")) as backend:
        yield backend


def answers(proxy: ProxyThread, request: bytes, *sources: str) -> list[bytes]:
    return [ask(("127.0.0.1", proxy.port), request, source=source).data for source in sources]


def test_clients_of_one_protocol_go_to_different_backends_by_their_address(
    near: Backend, far: Backend
) -> None:
    routes = Route(MAGIC, near.address, client=LAN), Route(MAGIC, far.address)
    with ProxyThread(*routes) as proxy:
        assert answers(proxy, HELLO, NEAR, FAR) == [b"near " + HELLO, b"far " + HELLO]


def test_access_rules_choose_among_equal_routes_and_refuse_a_client_that_no_route_admits(
    near: Backend, far: Backend
) -> None:
    routes = [
        Route(MAGIC, near.address, id="near", allow=[LAN]),
        Route(MAGIC, far.address, id="far", allow=["127.0.0.0/24"]),
        Route(starting_with(b"HEL", name="weaker"), far.address),
    ]
    with ProxyThread(*routes, fallback=far.address) as proxy:
        assert answers(proxy, HELLO, NEAR, FAR, "127.0.2.1") == [b"near " + HELLO, b"far " + HELLO, b""]
        proxy.await_drained()
        assert proxy.counters.routes["near"].ended == {Ended.CLOSED: 1, Ended.DENIED: 1}


def test_a_client_without_a_route_goes_to_the_next_protocol_then_to_the_fallback(
    near: Backend, far: Backend
) -> None:
    routes = [
        Route(MAGIC, near.address, client=LAN),
        Route(starting_with(b"HEL", name="weaker"), near.address, client="127.0.0.8"),
    ]
    with ProxyThread(*routes, fallback=far.address) as proxy:
        told = answers(proxy, HELLO, NEAR, "127.0.0.8", FAR)
        assert told == [b"near " + HELLO, b"near " + HELLO, b"far " + HELLO]
        proxy.await_drained()
        assert proxy.counters.outcomes == {Outcome.IDENTIFIED: 2, Outcome.FALLBACK: 1}
        for name in ("magic", "weaker", "fallback"):
            assert proxy.counters.routes[name].ended == {Ended.CLOSED: 1}
    with ProxyThread(routes[0]) as proxy:
        assert answers(proxy, HELLO, FAR) == [b""]
        missed = proxy.next_end().missed
        assert missed is not None
        assert missed.protocol == "magic"


def test_the_fallback_may_depend_on_the_client(near: Backend, far: Backend) -> None:
    routes = [Route(MAGIC, refused_address()), Route(AnyProtocol(), near.address, client=LAN)]
    with ProxyThread(*routes, fallback=far.address, expected=["cannot be reached"]) as proxy:
        for request in (HELLO, b"something else"):  # the backend of HELLO is down
            told = answers(proxy, request, NEAR, FAR)
            assert told == [b"near " + request, b"far " + request]


def refused_address() -> str:
    """Return an address at which nobody listens."""
    return f"127.0.0.1:{free_port()}"


@pytest.mark.parametrize("by", ["client", "allow"])
def test_silent_clients_go_to_different_backends_by_their_address(
    near: Backend, far: Backend, by: str
) -> None:
    only = {by: [LAN]}
    routes = [
        Route(MAGIC, near.address, on_timeout=True, **only),  # type: ignore[arg-type]
        Route(MAGIC, far.address, on_timeout=True),
    ]
    with ProxyThread(*routes, settings=quick(peek_timeout_ms=50)) as proxy:
        for source, greeting in ((NEAR, b"near "), (FAR, b"far ")):
            with proxy.connect(source=source) as client:
                assert receive(client, len(greeting)) == greeting


def test_a_silent_client_without_a_route_goes_to_the_fallback(near: Backend, far: Backend) -> None:
    route = Route(MAGIC, near.address, on_timeout=True, client=LAN)
    settings = quick(peek_timeout_ms=50)
    with (
        ProxyThread(route, fallback=far.address, settings=settings) as proxy,
        proxy.connect(source=FAR) as client,
    ):
        assert receive(client, 4) == b"far "


def test_two_routes_of_a_protocol_with_patterns_go_by_the_client(near: Backend, far: Backend) -> None:
    def defined() -> tuple[Protocol, ...]:
        return compile_patterns("mine", Transport.TCP, [Text(b"HELLO"), Text(b"there")], 1024)

    routes = [
        Route(defined(), near.address, client=LAN),
        Route(defined(), far.address, client="127.0.0.8"),
    ]
    with ProxyThread(*routes) as proxy:
        for request in (HELLO, b"you there"):
            told = answers(proxy, request, NEAR, "127.0.0.8", FAR)
            assert told == [b"near " + request, b"far " + request, b""]


@pytest.mark.needs_ipv6
def test_an_ipv4_mapped_client_has_its_ipv4_address(near: Backend, far: Backend) -> None:
    routes = Route(MAGIC, near.address, client=[LAN]), Route(MAGIC, far.address, client="::/0")
    with ProxyThread(*routes, host="::") as proxy:
        assert answers(proxy, HELLO, NEAR, FAR) == [b"near " + HELLO, b""]
        assert ask(("::1", proxy.port), HELLO).data == b"far " + HELLO


def test_behind_a_trusted_proxy_the_address_in_the_header_counts(near: Backend, far: Backend) -> None:
    routes = [
        Route(MAGIC, near.address, client=["10.0.0.0/8", "2001:db8::/32"], on_timeout=True),
        Route(MAGIC, far.address, on_timeout=True),
    ]
    settings = quick(proxy_protocol_from=(FAR,), peek_timeout_ms=300)
    with ProxyThread(*routes, settings=settings) as proxy:
        for ip, greeting in (
            ("10.1.1.1", b"near "),
            ("2001:db8::1", b"near "),
            ("::ffff:10.1.1.1", b"near "),
            ("11.1.1.1", b"far "),
        ):
            family, to = ("TCP6", "::1") if ":" in ip else ("TCP4", "127.0.0.1")
            header = f"PROXY {family} {ip} {to} 1234 80\r\n".encode()
            assert answers(proxy, header + HELLO, FAR) == [greeting + HELLO]
            with proxy.connect(source=FAR) as client:  # the client of the proxy stays silent
                client.sendall(header)
                assert receive(client, len(greeting)) == greeting
        assert answers(proxy, HELLO, NEAR) == [b"far " + HELLO]


def test_new_connections_go_by_the_new_networks_after_a_reload(near: Backend, far: Backend) -> None:
    def routes(lan: str) -> list[Route]:
        return [Route(MAGIC, near.address, client=lan), Route(MAGIC, far.address)]

    with ProxyThread(*routes(LAN)) as proxy, ExitStack() as stack:
        early = stack.enter_context(proxy.connect(source=NEAR))
        early.sendall(b"HELLO")
        assert receive(early, 10) == b"near HELLO"
        late = stack.enter_context(proxy.connect(source=NEAR))  # keeps the routes of its start
        proxy.await_active(2)
        proxy.call(proxy.engine.apply(EngineSpec(routes("127.0.0.0/24"), settings=quick())))
        assert answers(proxy, HELLO, NEAR, FAR) == [b"far " + HELLO, b"near " + HELLO]
        for client in (early, late):
            client.sendall(b"HELLO")
        assert receive(early, 5) == b"HELLO"
        assert receive(late, 10) == b"near HELLO"


def test_datagrams_go_by_the_address_of_their_client() -> None:
    def asked(proxy: ProxyThread, source: str) -> bytes:
        with udp_client(proxy.address, source=source) as client:
            client.settimeout(10)
            client.send(HELLO)
            return client.recv(100)

    protocol = compile_patterns("mine", Transport.UDP, [Text(b"HELLO")], 1024)
    with (
        UdpBackend(lambda data: [b"near " + data]) as near,
        UdpBackend(lambda data: [b"far " + data]) as far,
        UdpBackend(lambda data: [b"else " + data]) as other,
    ):
        routes = [
            Route(protocol, near.address, client=LAN),
            Route(protocol, far.address, client="127.0.0.0/24", deny=["127.0.0.1"]),
            Route(AnyProtocol(Transport.UDP), far.address, client="127.0.3.0/24"),
        ]
        settings = quick(udp_session_timeout_ms=300)
        with ProxyThread(
            *routes, fallback_udp=other.address, settings=settings, expected=["refused a session"]
        ) as proxy:
            assert [asked(proxy, source) for source in (NEAR, FAR, "127.0.2.1", "127.0.3.1")] == [
                b"near " + HELLO,
                b"far " + HELLO,
                b"else " + HELLO,
                b"far " + HELLO,
            ]
            with udp_client(proxy.address, source="127.0.0.1") as client:
                client.send(HELLO)
                assert asked(proxy, NEAR) == b"near " + HELLO
            assert proxy.engine.udp_counters.refusals == {"denied": 1}
