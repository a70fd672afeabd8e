"""The built-in protocol `any`: a full route for the clients that no other route matches."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from refractium import (
    Health,
    HookContext,
    ListenerRules,
    Member,
    PacketHook,
    Route,
    Transport,
)
from refractium.contract import Verdict
from refractium.identify.everything import AnyProtocol
from refractium.proxy.counters import Outcome
from refractium.proxy.summary import Ended
from refractium.testing import assert_lawful
from refractium.wire.proxy_protocol import parse
from support.backends import Backend, echo, named, refusing
from support.clients import ask, receive_all
from support.datagrams import UdpBackend
from support.datagrams import client as udp_client
from support.datagrams import echo as echo_datagram
from support.proxy import ProxyThread, eventually, quick, starting_with

ANY = AnyProtocol()
MAGIC = starting_with(b"magic")


class Opened(PacketHook[Any]):
    """A hook that keeps the contexts of opened sessions."""

    name = "opened"
    seen: list[HookContext]

    def on_open(self, context: HookContext) -> None:
        self.seen.append(context)


@pytest.fixture(autouse=True)
def nothing_opened() -> None:
    Opened.seen = []


def test_a_client_that_nothing_else_matches_goes_to_any_directly_after_the_last_no() -> None:
    with Backend(named("magic")) as backend, Backend(named("rest")) as rest:
        routes = [Route(ANY, rest.address), Route(MAGIC, backend.address)]
        with ProxyThread(*routes, settings=quick(peek_timeout_ms=60_000)) as proxy:
            assert ask(proxy.address, b"magic").data == b"magicmagic"
            assert ask(proxy.address, b"other").data == b"restother"
            proxy.await_drained()
            assert proxy.counters.outcomes == {Outcome.IDENTIFIED: 1, Outcome.FALLBACK: 1}
            assert proxy.counters.routes["any"].ended == {Ended.CLOSED: 1}


def test_any_gets_at_the_peek_timeout_the_clients_that_have_shown_no_protocol() -> None:
    with Backend(named("rest")) as rest:
        routes = [Route(MAGIC, action="reset"), Route(ANY, rest.address)]
        with ProxyThread(*routes, settings=quick(peek_timeout_ms=50)) as proxy:
            for first in (b"", b"mag"):
                with proxy.connect() as client:
                    client.sendall(first)
                    assert client.recv(4) == b"rest"
                    client.shutdown(socket.SHUT_WR)
                    assert receive_all(client).data == first


def test_any_balances_over_its_backends_by_weight() -> None:
    with Backend(named("one")) as one, Backend(named("two")) as two:
        members = [Member(one.address, weight=3), Member(two.address)]
        with ProxyThread(Route(ANY, members)) as proxy:
            for _ in range(8):
                ask(proxy.address, b"hello")
            proxy.await_drained()
            assert (one.accepted, two.accepted) == (6, 2)


def test_the_health_check_of_any_finds_a_backend_down_before_a_client_does() -> None:
    with refusing() as dead, Backend(echo) as backend:
        health = Health(kind="tcp", interval_ms=20, timeout_ms=5_000, fall=1)
        route = Route(ANY, [dead, backend.address], health=health)
        with ProxyThread(route, expected=["down", "cannot be reached"]) as proxy:

            def is_down() -> bool:
                (found,) = proxy.call(proxy.engine.status()).routes
                return bool(found.backends[0].state == "down")

            eventually(is_down, "the dead backend is down")
            assert ask(proxy.address, b"hello").data == b"hello"


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_backends_of_any_can_get_a_proxy_header(version: Any) -> None:
    with (
        Backend(echo) as backend,
        ProxyThread(Route(ANY, backend.address, proxy_protocol=version)) as proxy,
    ):
        echoed = ask(proxy.address, b"hello").data
        parsed = parse(echoed)
        assert not isinstance(parsed, Verdict)
        header, size = parsed
        assert header.source is not None
        assert (header.source[0], echoed[size:]) == (proxy.address[0], b"hello")


def test_the_hooks_of_any_see_its_sessions_only() -> None:
    with Backend(echo) as backend:
        routes = [Route(MAGIC, backend.address), Route(ANY, backend.address, id="rest", hooks=[Opened])]
        with ProxyThread(*routes) as proxy:
            ask(proxy.address, b"magic")
            ask(proxy.address, b"other")
            eventually(lambda: bool(Opened.seen), "the hook has seen a session")
        assert [(one.protocol, one.route) for one in Opened.seen] == [("any", "rest")]


def test_each_listener_has_the_route_for_all_other_clients_that_it_names() -> None:
    with Backend(named("inner")) as inner, Backend(named("outer")) as outer:
        routes = [
            Route(ANY, inner.address, id="inner"),
            Route(ANY, outer.address, id="outer"),
            Route(MAGIC, inner.address),
        ]
        for label in ("inner", "outer"):
            with ProxyThread(*routes, rules=ListenerRules([label])) as proxy:
                assert ask(proxy.address, b"hello").data == label.encode() + b"hello"
        with ProxyThread(*routes, rules=ListenerRules(["magic"])) as proxy:
            assert ask(proxy.address, b"hello").data == b""


def test_any_may_refuse_its_clients_but_not_the_clients_of_an_unreachable_route() -> None:
    with refusing() as dead:
        routes = [Route(MAGIC, dead), Route(ANY, action="reset")]
        with ProxyThread(*routes, expected=["cannot be reached"]) as proxy:
            for first in (b"magic", b"other"):
                with proxy.connect() as client:
                    client.sendall(first)
                    with pytest.raises(ConnectionResetError):
                        client.recv(1)
            proxy.await_drained()
            assert proxy.counters.routes["magic"].ended == {Ended.UNREACHABLE: 1}
            assert proxy.counters.routes["any"].ended == {Ended.REJECTED: 1}


def test_the_access_rules_of_any_hold() -> None:
    with Backend(echo) as backend, ProxyThread(Route(ANY, backend.address, deny=["127.0.0.2"])) as proxy:
        assert ask(proxy.address, b"hello").data == b"hello"
        assert ask(proxy.address, b"hello", source="127.0.0.2").data == b""


def test_any_gets_the_datagrams_that_nothing_else_matches() -> None:
    with (
        UdpBackend(echo_datagram) as backend,
        ProxyThread(
            Route(AnyProtocol(Transport.UDP), backend.address), settings=quick(udp_session_timeout_ms=100)
        ) as proxy,
        udp_client(proxy.address) as client,
    ):
        for datagram in (b"hello", b""):
            client.send(datagram)
            assert client.recv(100) == datagram


@pytest.mark.parametrize("transport", list(Transport))
def test_any_obeys_the_laws_of_protocols(transport: Transport) -> None:
    for data in (b"hello", b"\x00" * 100):
        assert_lawful(AnyProtocol(transport), data)
