"""Datagrams: the header stands before the payload of the first datagram of a session to a backend."""

from __future__ import annotations

import queue
import socket
from typing import Final

import pytest

from refractium import Health, Identification, ProtocolMatch, Route, define_protocol
from refractium.contract import Transport, Verdict
from refractium.wire.proxy_protocol import Header, parse
from support.clients import PATIENCE
from support.datagrams import UdpBackend, client, echo
from support.process import free_port
from support.proxy import ProxyThread, eventually, quick

QUICK: Final = quick(udp_session_timeout_ms=1_000)


@define_protocol("game", transport="udp", max_bytes=1, metadata_keys=frozenset({"sni"}))
def game(_data: bytes) -> Identification:
    return ProtocolMatch({"sni": "game.example"})


def split(data: bytes) -> tuple[Header, bytes]:
    """Return the header, and the bytes after it."""
    parsed = parse(data)
    assert not isinstance(parsed, Verdict), data
    return parsed[0], data[parsed[1] :]


@pytest.mark.parametrize("payload", [b"", b"one", bytes(60_000)])
@pytest.mark.parametrize(
    ("host", "ours"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.3"),
        ("::1", "::1"),
        ("::", "::1"),
        ("::", "127.0.0.3"),
    ],
)
def test_only_the_first_datagram_of_a_session_has_the_header(host: str, ours: str, payload: bytes) -> None:
    with (
        UdpBackend(echo) as backend,
        ProxyThread(Route(game, backend.address, proxy_protocol="v2"), host=host, settings=QUICK) as proxy,
        client((ours, proxy.port)) as sock,
    ):
        sock.send(payload)
        header, rest = split(sock.recv(65_536))
        sock.send(b"two")
        assert sock.recv(100) == b"two"
        source = sock.getsockname()[:2]
        assert proxy.next_end().up == len(payload) + 3
    assert header == Header(Transport.UDP, source, (ours, proxy.port), {2: b"game.example"})
    assert rest == payload


def test_the_next_session_of_a_client_begins_with_a_header_again() -> None:
    with (
        UdpBackend(echo) as backend,
        ProxyThread(
            Route(game, backend.address, proxy_protocol="v2"), settings=quick(udp_session_timeout_ms=500)
        ) as proxy,
        client(proxy.address) as sock,
    ):
        for _ in range(2):
            sock.send(b"hello")
            assert split(sock.recv(100))[1] == b"hello"
            proxy.next_end()


def test_a_backend_that_takes_over_a_session_gets_a_header_too() -> None:
    port = free_port()
    with (
        UdpBackend(echo) as backend,
        ProxyThread(
            Route(game, [f"127.0.0.1:{port}", backend.address], proxy_protocol="v2"),
            settings=QUICK,
            expected=["refuses", "cannot be reached"],
        ) as proxy,
        client(proxy.address) as sock,
    ):
        answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        sock.settimeout(0.05)

        def is_answered() -> bool:
            sock.send(b"hello")
            try:
                answers.put(sock.recv(100))
            except TimeoutError:
                return False
            return True

        eventually(is_answered, "the second backend answers")
        header, rest = split(answers.get())
        sock.settimeout(PATIENCE)
        sock.send(b"more")
        # An earlier answer, asked for again while it was on its way.
        while (answer := sock.recv(100)) == b"hello":
            pass
        assert answer == b"more"
        assert (header.source, rest) == (sock.getsockname(), b"hello")


def test_a_datagram_without_room_for_the_header_is_dropped_and_counted() -> None:
    with (
        UdpBackend(echo) as backend,
        ProxyThread(Route(game, backend.address, proxy_protocol="v2"), settings=QUICK) as proxy,
        client(proxy.address) as sock,
    ):
        sock.send(bytes(65_507))
        eventually(lambda: proxy.engine.udp_counters.dropped == 1, "the datagram is dropped")
        sock.send(b"small")
        assert split(sock.recv(100))[1] == b"small"
        sock.send(bytes(65_507))
        assert len(sock.recv(65_536)) == 65_507


def test_the_header_of_a_health_check_names_no_client() -> None:
    seen: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def answer(datagram: bytes) -> list[bytes]:
        seen.put(datagram)
        return [b"pong"]

    health = Health(kind="send_expect", options={"send": "ping", "expect": "pong"})
    with (
        UdpBackend(answer) as backend,
        ProxyThread(Route(game, backend.address, proxy_protocol="v2", health=health), settings=QUICK),
    ):
        header, rest = split(seen.get(timeout=socket.getdefaulttimeout() or 20))
    assert (header.is_local, rest) == (True, b"ping")
