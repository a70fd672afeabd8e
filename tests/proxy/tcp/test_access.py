"""The clients that a listener or a route admits, and routes that turn clients away."""

from __future__ import annotations

import asyncio
import errno
import socket

import pytest

from refractium import (
    NO,
    ConfigError,
    Identification,
    ListenerRules,
    Protocol,
    ProtocolMatch,
    Refractium,
    Route,
    define_protocol,
)
from refractium.proxy.counters import Outcome
from refractium.proxy.summary import Ended
from support.backends import Backend, echo, named
from support.clients import ask, receive_all
from support.datagrams import UdpBackend
from support.datagrams import client as udp_client
from support.datagrams import echo as echo_datagram
from support.proxy import ProxyThread, quick, starting_with

HELLO = b"HELLO there"


def udp_starting_with(magic: bytes, *, name: str = "magic") -> Protocol:
    @define_protocol(name, transport="udp", max_bytes=len(magic), prefixes=(magic,))
    def identify(data: bytes) -> Identification:
        return ProtocolMatch() if data.startswith(magic) else NO

    return identify


DENIED = "refused a (connection|session) from 127.0.0.[0-9]+: access rules deny this address"


@pytest.mark.parametrize(
    ("rules", "admitted", "kept_out"),
    [
        (ListenerRules(allow=["127.0.0.2/31"]), "127.0.0.3", "127.0.0.4"),
        (ListenerRules(deny=["127.0.0.4"]), "127.0.0.1", "127.0.0.4"),
        (ListenerRules(allow=["127.0.0.0/8"], deny=["127.0.0.4/30"]), "127.0.0.1", "127.0.0.7"),
    ],
)
def test_a_listener_closes_a_denied_client_before_it_reads_a_byte(
    rules: ListenerRules, admitted: str, kept_out: str
) -> None:
    with (
        Backend(echo) as backend,
        ProxyThread(fallback=backend.address, rules=rules, expected=[DENIED]) as proxy,
    ):
        assert ask(proxy.address, HELLO, source=admitted).data == HELLO
        for _ in range(20):
            with proxy.connect(source=kept_out) as client:
                assert receive_all(client).data == b""
        assert ask(proxy.address, HELLO, source=admitted).data == HELLO
        assert (proxy.counters.accepted, proxy.counters.refusals) == (22, {"denied": 20})
        assert backend.accepted == 2


@pytest.mark.needs_ipv6
def test_an_ipv4_mapped_client_is_judged_by_its_ipv4_address() -> None:
    with (
        Backend(echo) as backend,
        ProxyThread(
            fallback=backend.address,
            rules=ListenerRules(allow=["127.0.0.2"]),
            host="::",
            expected=[DENIED],
        ) as proxy,
    ):
        assert ask(("127.0.0.1", proxy.port), HELLO, source="127.0.0.2").data == HELLO
        assert ask(("127.0.0.1", proxy.port), HELLO, source="127.0.0.3").data == b""
        assert ask(("::1", proxy.port), HELLO).data == b""


def test_a_client_denied_by_its_route_reaches_no_other_route_and_no_fallback() -> None:
    with Backend(named("guarded")) as guarded, Backend(named("other")) as other:
        routes = [
            Route(starting_with(b"HELLO"), guarded.address, allow=["127.0.0.2"]),
            Route(starting_with(b"HEL", name="weaker"), other.address),
        ]
        with ProxyThread(*routes, fallback=other.address) as proxy:
            assert ask(proxy.address, HELLO, source="127.0.0.2").data == b"guarded" + HELLO
            assert ask(proxy.address, HELLO, source="127.0.0.3").data == b""
            assert ask(proxy.address, b"HELP", source="127.0.0.3").data == b"otherHELP"
            proxy.await_drained()
            assert proxy.counters.routes["magic"].ended == {Ended.CLOSED: 1, Ended.DENIED: 1}
            assert (guarded.accepted, other.accepted) == (1, 1)


def test_a_route_may_reject_or_reset_its_clients() -> None:
    with Backend(echo) as backend:
        routes = [
            Route(starting_with(b"REJECT"), action="reject", id="no"),
            Route(starting_with(b"RESET", name="hard"), action="reset"),
        ]
        with ProxyThread(*routes, fallback=backend.address) as proxy:
            with proxy.connect() as client:
                client.sendall(b"REJECT me")
                assert receive_all(client) == (b"", "eof")
            with proxy.connect() as client:
                client.sendall(b"RESET me")
                with pytest.raises(ConnectionResetError) as caught:
                    client.recv(1)
                assert caught.value.errno == errno.ECONNRESET
            assert ask(proxy.address, HELLO).data == HELLO
            proxy.await_drained()
            assert proxy.counters.routes["no"].ended == {Ended.REJECTED: 1}
            assert proxy.counters.routes["hard"].ended == {Ended.REJECTED: 1}
            assert proxy.counters.outcomes == {Outcome.IDENTIFIED: 2, Outcome.FALLBACK: 1}


def test_silent_clients_may_be_rejected_as_well() -> None:
    with (
        Backend(echo) as backend,
        ProxyThread(
            Route(starting_with(b"HELLO"), action="reset", on_timeout=True),
            fallback=backend.address,
            settings=quick(peek_timeout_ms=50),
        ) as proxy,
        pytest.raises(ConnectionResetError),
        proxy.connect() as client,
    ):
        client.recv(1)


def test_behind_a_trusted_proxy_the_rules_judge_the_client_and_not_the_proxy() -> None:
    def through(ip: str) -> bytes:
        header = f"PROXY TCP4 {ip} 127.0.0.1 1234 80\r\n".encode()
        return ask(proxy.address, header + HELLO, source="127.0.0.9").data

    rules = ListenerRules(allow=["10.0.0.0/8", "127.0.0.1"], deny=["10.6.6.6"])
    with (
        Backend(echo) as backend,
        ProxyThread(
            fallback=backend.address,
            rules=rules,
            settings=quick(proxy_protocol_from=("127.0.0.9",)),
            expected=["refused a connection from [0-9.]+: access rules deny this address"],
        ) as proxy,
    ):
        assert through("10.0.0.1") == HELLO
        assert through("10.6.6.6") == b""
        assert through("192.0.2.1") == b""
        assert ask(proxy.address, HELLO).data == HELLO
        assert ask(proxy.address, HELLO, source="127.0.0.8").data == b""
        assert proxy.counters.refusals == {"denied": 3}


def test_denied_and_rejected_datagrams_begin_no_session() -> None:
    def asked(datagram: bytes, source: str) -> bytes | None:
        with udp_client(proxy.address, source=source) as client:
            client.settimeout(0.1 if datagram.startswith(b"NO") or source != "127.0.0.2" else 10)
            client.send(datagram)
            try:
                return client.recv(100)
            except TimeoutError:
                return None

    with UdpBackend(echo_datagram) as backend:
        routes = [
            Route(udp_starting_with(b"GUARDED"), backend.address, deny=["127.0.0.3"]),
            Route(udp_starting_with(b"NO", name="no"), action="reject"),
        ]
        with ProxyThread(
            *routes,
            fallback_udp=backend.address,
            rules=ListenerRules(deny=["127.0.0.4"]),
            settings=quick(udp_session_timeout_ms=500),
            expected=["refused a session"],
        ) as proxy:
            assert asked(b"GUARDED", "127.0.0.2") == b"GUARDED"
            assert asked(b"GUARDED", "127.0.0.3") is None
            assert asked(b"else", "127.0.0.4") is None
            assert asked(b"NO", "127.0.0.2") is None
            assert asked(b"else", "127.0.0.2") == b"else"
            counters = proxy.engine.udp_counters
            assert (counters.sessions, counters.refusals) == (2, {"denied": 2, "rejected": 1})
            assert counters.outcomes == {Outcome.IDENTIFIED: 3, Outcome.FALLBACK: 1}
            assert backend.seen == 2


def test_bad_rules_are_refused_with_their_place() -> None:
    with pytest.raises(ConfigError) as caught:
        Route(starting_with(b"A"), "127.0.0.1:1", allow=["10.0.0.1/8"], deny=["x"])
    assert [one.where for one in caught.value.problems] == ["allow[0]", "deny[0]"]
    with pytest.raises(ConfigError) as caught:
        Refractium(
            [Route(starting_with(b"A"), "127.0.0.1:1")],
            listeners={"in": ListenerRules(["magik"], deny=["x"])},
        )
    assert [(one.where, one.message) for one in caught.value.problems] == [
        ('listeners["in"].routes[0]', "'magik' is not known: did you mean 'magic'? there are magic"),
        ('listeners["in"].deny[0]', "not an address or a network: write 10.0.0.0/8 or ::1"),
    ]


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ({"action": "drop"}, "action"),
        ({"action": "reject", "forward_to": "127.0.0.1:1"}, "forward_to"),
        ({}, "forward_to"),
    ],
)
def test_a_route_cannot_both_forward_and_turn_away(arguments: dict[str, str], where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Route(starting_with(b"A"), **arguments)  # type: ignore[arg-type]
    assert [one.where for one in caught.value.problems] == [where]


def test_a_unix_socket_is_no_backend_for_datagrams() -> None:
    with pytest.raises(ConfigError) as caught:
        Route(udp_starting_with(b"A"), ["127.0.0.1:1", "unix:/a"])
    assert [one.where for one in caught.value.problems] == ["forward_to[1]"]
    with pytest.raises(ConfigError) as caught:
        Refractium(udp=[Route(starting_with(b"A"), "127.0.0.1:1")], fallback_udp="unix:/a")
    assert [one.where for one in caught.value.problems] == ["udp", "fallback_udp"]


def test_datagrams_cannot_be_reset() -> None:
    with pytest.raises(ConfigError, match="only a connection can be reset"):
        Route(udp_starting_with(b"A"), action="reset")


def test_a_listener_without_rules_is_refused_by_name() -> None:
    async def main() -> None:
        engine = Refractium(listeners={"in": ListenerRules()})
        with pytest.raises(ValueError, match=r'no listener "": .*"in"'):
            await engine.start_tcp("127.0.0.1", 0)
        with socket.socket() as sock, pytest.raises(ValueError, match='no listener "out"'):
            await engine.start_on(sock, "out")

    asyncio.run(main())
