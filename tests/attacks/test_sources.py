"""Clients with addresses that strangers choose: forged addresses, translated addresses, a whole network."""

from __future__ import annotations

import socket
import struct
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, Literal

import pytest

from refractium import ListenerRules, Route
from support.backends import Backend, echo, named
from support.clients import ask, connect, receive
from support.datagrams import UdpBackend
from support.datagrams import ask as ask_datagram
from support.proxy import ProxyThread, quick, starting_with

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

TRANSLATED: Final = "::ffff:0:102:304"
"""An IPv4-translated address (RFC 2765 section 2.1), which begins like an IPv4-mapped one."""


class Forger:
    """A socket that sends datagrams from any IPv4 address."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def send(self, source: tuple[str, int], data: bytes) -> None:
        host, port = self._target
        udp = struct.pack("!4H", source[1], port, 8 + len(data), 0) + data
        addresses = socket.inet_aton(source[0]) + socket.inet_aton(host)
        header = struct.pack("!2B3H2BH", 0x45, 0, 20 + len(udp), 0, 0, 64, socket.IPPROTO_UDP, 0)
        self._sock.sendto(header + addresses + udp, (host, 0))


def test_forged_datagrams_take_no_place_of_a_tcp_client(network: Callable[..., None]) -> None:
    del network
    settings = quick(max_connections=60, max_udp_sessions=200, udp_session_timeout_ms=1_500)
    with (
        Backend(echo) as tcp,
        UdpBackend(lambda datagram: [datagram] if datagram == b"?" else []) as udp,
        ProxyThread(fallback=tcp.address, fallback_udp=udp.address, settings=settings) as proxy,
        Forger(proxy.address) as forger,
    ):
        for number in range(3_000):
            forger.send((f"127.9.{number // 50 // 250}.{number // 50 % 250 + 1}", 20_000 + number % 50), b"x")
            if number % 500 == 499:
                assert ask(proxy.address, b"hello").data == b"hello"
                assert ask_datagram(proxy.address, b"?") == b"?"
        assert proxy.engine.active <= 200
        assert (proxy.counters.refused, proxy.engine.udp_counters.refused) == (0, 0)


def test_datagrams_forged_in_the_name_of_an_address_do_not_lock_it_out(network: Callable[..., None]) -> None:
    del network
    settings = quick(max_connections_per_ip=5, max_udp_sessions_per_ip=5, udp_session_timeout_ms=1_500)
    with (
        Backend(echo) as tcp,
        UdpBackend(lambda datagram: [datagram] if datagram == b"?" else []) as udp,
        ProxyThread(fallback=tcp.address, fallback_udp=udp.address, settings=settings) as proxy,
        Forger(proxy.address) as forger,
    ):
        for port in range(20_000, 20_100):
            forger.send(("127.0.0.50", port), b"x")
        assert ask(proxy.address, b"hello", source="127.0.0.50").data == b"hello"
        assert ask_datagram(proxy.address, b"?", source="127.0.0.50") == b"?"


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_datagram_forged_in_the_name_of_a_listener_does_not_circulate(
    network: Callable[..., None], host: str
) -> None:
    del network
    with (
        UdpBackend(lambda datagram: [datagram]) as udp,
        ProxyThread(fallback_udp=udp.address, host=host, settings=quick(udp_session_timeout_ms=500)) as proxy,
        Forger(("127.0.0.1", proxy.port)) as forger,
    ):
        forger.send(("127.0.0.1", proxy.port), b"x")
        assert ask_datagram(("127.0.0.1", proxy.port), b"?") == b"?"  # sent after the forged datagram
        counters = proxy.engine.udp_counters
        assert (counters.sessions, counters.unrouted) == (1, 1)


@pytest.mark.parametrize("way", ["plain", "access list", "PROXY header"])
def test_a_client_with_an_ipv4_translated_address_is_served(network: Callable[..., None], way: str) -> None:
    network("-6", "address", "add", f"{TRANSLATED}/128", "dev", "lo")
    rules = ListenerRules(deny=["192.0.2.0/24"]) if way == "access list" else None
    with Backend(echo) as backend:
        version: Literal["v2"] | None = "v2" if way == "PROXY header" else None
        route = Route(starting_with(b"magic"), backend.address, proxy_protocol=version)
        with ProxyThread(route, rules=rules, host="::") as proxy:
            address = ("::1", proxy.port)
            for _ in range(20):
                answer = ask(address, b"magic", source=TRANSLATED).data
                assert answer.endswith(b"magic")
                assert (socket.inet_pton(socket.AF_INET6, TRANSLATED) in answer) is (version is not None)
                assert ask(address, b"magic").data.endswith(b"magic")
        assert not proxy.warnings


def test_a_network_of_ipv6_clients_has_the_limit_of_one_address(network: Callable[..., None]) -> None:
    network("-6", "route", "add", "local", "2001:db8::/32", "dev", "lo")
    settings = quick(max_connections_per_ip=5)
    with (
        Backend(named("in")) as backend,
        ProxyThread(
            fallback=backend.address, settings=settings, host="::", expected=["max_connections_per_ip"]
        ) as proxy,
        ExitStack() as stack,
    ):
        address = ("::1", proxy.port)

        def enter(source: str) -> bool:
            client = stack.enter_context(connect(address, source=source))
            client.sendall(b"?")
            try:
                return receive(client, 2) == b"in"
            except ConnectionResetError:
                return False

        assert [enter(f"2001:db8::{number:x}") for number in range(1, 9)] == [True] * 5 + [False] * 3
        assert [enter(f"2001:db8:0:1::{number:x}") for number in range(1, 4)] == [True] * 3
