"""Targets that are listeners of this proxy, and connections of a socket with itself."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

import pytest

from refractium.addresses.local import OwnAddresses, is_self_connected

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refractium.contract import SocketAddress


def target(host: str, port: int) -> SocketAddress:
    return (socket.AF_INET6 if ":" in host else socket.AF_INET), (host, port)


@contextlib.contextmanager
def listening(host: str) -> Iterator[tuple[OwnAddresses, int]]:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.bind((host, 0))
        own = OwnAddresses()
        own.add(sock)
        yield own, sock.getsockname()[1]


@pytest.mark.parametrize(
    ("bound", "host"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "0.0.0.0"),
        ("127.0.0.1", "::ffff:127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.9"),
        ("0.0.0.0", "0.0.0.0"),
        ("0.0.0.0", "::ffff:127.0.0.1"),
        ("::1", "::1"),
        ("::1", "::"),
        ("::", "::1"),
        ("::", "127.0.0.1"),
        ("::", "0.0.0.0"),
    ],
)
def test_a_target_that_leads_back_to_the_listener_is_recognised(bound: str, host: str) -> None:
    with listening(bound) as (own, port):
        assert target(host, port) in own
        assert target(host, port ^ 1) not in own


@pytest.mark.parametrize(
    ("bound", "host"),
    [
        ("127.0.0.1", "127.0.0.2"),
        ("127.0.0.1", "::1"),
        ("127.0.0.1", "192.0.2.1"),
        ("0.0.0.0", "::1"),
        ("0.0.0.0", "192.0.2.1"),
        ("::1", "127.0.0.1"),
        ("::", "192.0.2.1"),
        ("::", "2001:db8::1"),
    ],
)
def test_the_same_port_at_another_address_is_not_the_listener(bound: str, host: str) -> None:
    with listening(bound) as (own, port):
        assert target(host, port) not in own


def test_a_wildcard_listener_owns_every_address_of_this_machine() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no other address")
        mine = probe.getsockname()[0]
    with listening("0.0.0.0") as (own, port):
        assert target(mine, port) in own


def test_a_unix_socket_is_never_a_listener_of_ours() -> None:
    with listening("0.0.0.0") as (own, _):
        assert (socket.AF_UNIX, "/run/web.sock") not in own


@pytest.mark.parametrize("named", ["127.0.0.1", "0.0.0.0"])
def test_a_socket_that_is_its_own_peer_is_noticed(named: str) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.connect(sock.getsockname())
        assert is_self_connected(sock, target(named, sock.getsockname()[1]))


def test_an_ordinary_connection_is_not_its_own_peer() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as sock,
    ):
        assert not is_self_connected(sock, target("127.0.0.1", server.getsockname()[1]))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
    with socket.socket() as unconnected:
        assert not is_self_connected(unconnected, target("127.0.0.1", 50_000))
