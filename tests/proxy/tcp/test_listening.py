"""The addresses of listeners: IPv4, IPv6, both, several, and addresses that cannot be bound."""

from __future__ import annotations

import socket

import pytest

from refractium import ListenError
from support.backends import Backend, digest, sink
from support.clients import MIB, ask, payload
from support.process import free_port
from support.proxy import ProxyThread

DATA = payload("listening", MIB)


@pytest.mark.parametrize("backend_host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize(
    ("bind", "reached"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("::", "::1"),
        ("::", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
    ],
)
def test_clients_of_any_family_reach_backends_of_any_family(
    bind: str, reached: str, backend_host: str
) -> None:
    with (
        Backend(sink, host=backend_host) as backend,
        ProxyThread(host=bind, fallback=backend.address) as proxy,
    ):
        assert ask((reached, proxy.port), DATA) == (digest(DATA), "eof")
        client = proxy.next_end().client
        assert client.startswith("[::1]:" if reached == "::1" else "127.0.0.1:")


def test_a_name_is_bound_at_all_its_addresses_on_one_port() -> None:
    with Backend(sink) as backend, ProxyThread(host="localhost", fallback=backend.address) as proxy:
        assert {int(one.rpartition(":")[2]) for one in proxy.addresses} == {proxy.port}
        for address in proxy.addresses:
            assert ask((address.rpartition(":")[0].strip("[]"), proxy.port), b"?").end == "eof"


def test_further_addresses_can_be_added_while_the_engine_serves() -> None:
    with Backend(sink) as backend, ProxyThread(fallback=backend.address) as proxy:
        (second,) = proxy.call(proxy.engine.start_tcp("127.0.0.1", 0))
        for port in (proxy.port, int(second.rpartition(":")[2])):
            assert ask(("127.0.0.1", port), b"?") == (digest(b"?"), "eof")


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("127.0.0.1", "in use by another program"),
        ("192.0.2.1", "not an address of this machine"),
        ("none.invalid", "'none.invalid' is not an address of this machine"),
        ("a" * 300, "is not an address of this machine"),
    ],
)
def test_an_address_that_cannot_be_bound_is_an_error_and_stops_nothing_else(host: str, why: str) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        Backend(sink) as backend,
        ProxyThread(fallback=backend.address) as proxy,
    ):
        with pytest.raises(ListenError, match=why) as caught:
            proxy.call(proxy.engine.start_tcp(host, taken.getsockname()[1]))
        assert caught.value.address.startswith("tcp://")
        assert ask(proxy.address, b"?") == (digest(b"?"), "eof")


def test_two_proxies_never_share_a_port() -> None:
    port = free_port()
    with ProxyThread(port=port), pytest.raises(ListenError, match="in use"), ProxyThread(port=port):
        pass
