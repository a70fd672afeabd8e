"""Summaries name the protocol of a client, even if the client did not get a route of this protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from refractium import NO, Identification, Protocol, ProtocolMatch, Route, Transport, define_protocol
from refractium.contract import MetadataKind
from refractium.observe.access_lines import fields_of, message_of
from support.backends import Backend, refusing
from support.backends import echo as echo_connection
from support.clients import ask as ask_over_tcp
from support.datagrams import UdpBackend, ask, client, echo
from support.proxy import ProxyThread, quick

if TYPE_CHECKING:
    from refractium.contract import MetadataValue

TEXT, TEXTS, FLAG = MetadataKind.TEXT, MetadataKind.TEXTS, MetadataKind.FLAG
BOTH = pytest.mark.parametrize("transport", [Transport.TCP, Transport.UDP])


def greeting(transport: Transport) -> Protocol:
    """Return a protocol whose clients send ``hello HOST``."""

    @define_protocol(
        "greeting",
        transport=transport,
        max_bytes=100,
        prefixes=(b"hello ",),
        metadata_keys=frozenset({"host"}),
    )
    def identify(data: bytes) -> Identification:
        return ProtocolMatch({"host": data[6:].decode()}) if data.startswith(b"hello ") else NO

    return identify


def send(proxy: ProxyThread, transport: Transport, data: bytes, *, is_answered: bool = True) -> None:
    if transport is Transport.TCP:
        ask_over_tcp(proxy.address, data)
    elif is_answered:
        ask(proxy.address, data)
    else:
        with client(proxy.address) as sock:
            sock.send(data)


@BOTH
def test_a_value_of_another_kind_than_declared_is_left_out(transport: Transport) -> None:
    right: dict[str, MetadataValue] = {"text": "a", "texts": ("a", "b"), "flag": True, "any": True}
    wrong: dict[str, MetadataValue] = {
        "no text": True,
        "no texts": "a",
        "no flag": "a",
        "no name": ("a",),
    }
    kinds = {"text": TEXT, "texts": TEXTS, "flag": FLAG, "any": MetadataKind.ANY}
    kinds |= {"no text": TEXT, "no texts": TEXTS, "no flag": FLAG, "no name": MetadataKind.HOST_NAME}

    @define_protocol("odd", transport=transport, max_bytes=100, metadata_keys=kinds)
    def odd(_: bytes) -> Identification:
        return ProtocolMatch(right | wrong)

    with Backend(echo_connection) as tcp, UdpBackend(echo) as udp:
        backend = tcp.address if transport is Transport.TCP else udp.address
        settings = quick(udp_session_timeout_ms=100)
        fault = "protocol odd failed: .*: no text is bool, no texts is str, no flag is str, no name is tuple"
        with ProxyThread(Route(odd, backend), settings=settings, expected=[fault]) as proxy:
            send(proxy, transport, b"hello")
            ended = proxy.next_end()
    assert ended.metadata == right


@BOTH
@pytest.mark.parametrize("has_fallback", [True, False])
def test_the_protocol_of_a_client_that_no_route_matches_is_named(
    transport: Transport,
    has_fallback: bool,  # noqa: FBT001 - pytest passes it by name
) -> None:
    route = Route(greeting(transport), "127.0.0.1:1", host="known")
    with Backend(echo_connection) as tcp, UdpBackend(echo) as udp:
        fallback = tcp.address if has_fallback else ()
        fallback_udp = udp.address if has_fallback else ()
        settings = quick(udp_session_timeout_ms=100)
        with ProxyThread(route, fallback=fallback, fallback_udp=fallback_udp, settings=settings) as proxy:
            send(proxy, transport, b"hello stranger", is_answered=has_fallback)
            ended = proxy.next_end()
    fields = fields_of(ended, ended.metadata)
    assert (fields["route"], fields["protocol"]) == ("fallback" if has_fallback else None, "greeting")
    assert fields["metadata"] == {"host": "stranger"}
    shown = "fallback" if has_fallback else "unrouted"
    shown += "/udp" if transport is Transport.UDP else ""
    line = message_of(ended, ended.metadata)
    assert f" {shown} (greeting host=stranger: no route matches) -> " in line


def test_a_client_whose_route_is_unreachable_is_named_at_the_fallback() -> None:
    with refusing() as dead, Backend(echo_connection) as backend:
        route = Route(greeting(Transport.TCP), dead, host="known", id="web")
        expected = ["cannot be reached"]
        with ProxyThread(route, fallback=backend.address, expected=expected) as proxy:
            send(proxy, Transport.TCP, b"hello known")
            ended = proxy.next_end()
    fields = fields_of(ended, ended.metadata)
    assert (fields["route"], fields["protocol"]) == ("fallback", "greeting")
    assert fields["metadata"] == {"host": "known"}
    assert " fallback (greeting host=known: web is unreachable) -> " in message_of(ended, ended.metadata)


@BOTH
@pytest.mark.parametrize(("data", "protocol"), [(b"hello known", "greeting"), (b"what", None)])
def test_the_protocol_of_a_route_with_an_id_and_of_unidentified_clients(
    transport: Transport, data: bytes, protocol: str | None
) -> None:
    with Backend(echo_connection) as tcp, UdpBackend(echo) as udp:
        backend = tcp if transport is Transport.TCP else udp
        route = Route(greeting(transport), backend.address, host="known", id="web")
        settings = quick(udp_session_timeout_ms=100)
        fallback, fallback_udp = tcp.address, udp.address
        with ProxyThread(route, fallback=fallback, fallback_udp=fallback_udp, settings=settings) as proxy:
            send(proxy, transport, data)
            ended = proxy.next_end()
    fields = fields_of(ended, ended.metadata)
    assert (fields["route"], fields["protocol"]) == ("web" if protocol else "fallback", protocol)
    assert fields["metadata"] == ({"host": "known"} if protocol else {})
    assert "(" not in message_of(ended, ended.metadata)
