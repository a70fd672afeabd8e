"""The header for backends: their first bytes, sent once, and not part of any count."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

import pytest

from refractium import (
    NO,
    ConfigError,
    Health,
    Identification,
    ProtocolMatch,
    Route,
    define_protocol,
)
from refractium.contract import Transport, Verdict
from refractium.wire.proxy_protocol import Header, parse
from refractium_proto_https import Https
from support.backends import Backend, hanging, refusing, sink
from support.clients import MIB, ask, connect, payload, receive, receive_all
from support.hellos import records, typical_hello
from support.proxy import ProxyThread, eventually, quick, starting_with

if TYPE_CHECKING:
    from pathlib import Path

    from refractium.settings import ProxyVersion
    from support.clients import Received

MAGIC: Final = starting_with(b"magic")
VERSIONS: Final = pytest.mark.parametrize("version", ["v1", "v2"])
UNREACHABLE: Final = "cannot be reached"


def split(data: bytes) -> tuple[Header, bytes]:
    """Return the header, and the bytes after it."""
    parsed = parse(data)
    assert not isinstance(parsed, Verdict), data
    header, size = parsed
    return header, data[size:]


@VERSIONS
@pytest.mark.parametrize(("host", "ours"), [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("::", "127.0.0.1")])
def test_the_header_names_both_ends_and_is_not_counted(version: ProxyVersion, host: str, ours: str) -> None:
    data = b"magic" + payload(version, MIB)
    with (
        Backend(sink) as backend,
        ProxyThread(Route(MAGIC, backend.address, proxy_protocol=version), host=host) as proxy,
        connect((ours, proxy.port)) as client,
    ):
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        answer = receive_all(client).data
        header, rest = split(backend.result().data)
        end = proxy.next_end()
        assert header == Header(Transport.TCP, client.getsockname()[:2], (ours, proxy.port))
    assert rest == data
    assert (end.up, end.down) == (len(data), len(answer))


@VERSIONS
def test_a_route_without_the_setting_and_the_fallback_send_no_header(version: ProxyVersion) -> None:
    with (
        refusing() as dead,
        Backend(sink) as backend,
        ProxyThread(
            Route(MAGIC, dead, proxy_protocol=version),
            Route(starting_with(b"plain", name="plain"), backend.address),
            fallback=backend.address,
            expected=[UNREACHABLE],
        ) as proxy,
    ):
        for data in (b"plain", b"other", b"magic, whose backend is dead"):
            ask(proxy.address, data)
            assert backend.result().data == data


@VERSIONS
def test_the_next_backend_gets_the_header_once_when_the_first_cannot_be_reached(
    version: ProxyVersion,
) -> None:
    with (
        refusing() as dead,
        hanging() as deaf,
        Backend(sink) as backend,
        ProxyThread(
            Route(MAGIC, [dead, deaf, backend.address], balance="first", proxy_protocol=version),
            settings=quick(connect_timeout_ms=1_000),
            expected=[UNREACHABLE],
        ) as proxy,
    ):
        ask(proxy.address, b"magic!")
        header, rest = split(backend.result().data)
    assert header.source is not None
    assert rest == b"magic!"


@VERSIONS
def test_the_header_is_sent_before_a_silent_client_sends_a_byte(
    version: ProxyVersion,
) -> None:
    def greet(sock: socket.socket) -> Received:
        first = sock.recv(1000)
        sock.sendall(b"220 " + str(split(first)[0].source).encode() + b"\n")
        return receive_all(sock)

    with (
        Backend(greet) as backend,
        ProxyThread(
            Route(MAGIC, backend.address, on_timeout=True, proxy_protocol=version),
            settings=quick(peek_timeout_ms=50),
        ) as proxy,
        proxy.connect() as client,
    ):
        expected = f"220 {client.getsockname()}\n".encode()
        assert receive(client, len(expected)) == expected
        client.sendall(b"QUIT")
        client.shutdown(socket.SHUT_WR)
        assert backend.result().data == b"QUIT"
        assert receive_all(client) == (b"", "eof")
        assert proxy.next_end().up == 4


def test_a_unix_socket_gets_the_header_too(tmp_path: Path) -> None:
    with (
        Backend(sink, path=tmp_path / "web.sock") as backend,
        ProxyThread(Route(MAGIC, backend.address, proxy_protocol="v2")) as proxy,
    ):
        ask(proxy.address, b"magic!")
        header, rest = split(backend.result().data)
    assert header.destination == proxy.address
    assert rest == b"magic!"


def test_version_2_contains_the_server_name_and_the_preferred_protocol() -> None:
    data = records(typical_hello())
    with (
        Backend(sink) as backend,
        ProxyThread(Route(Https(), backend.address, proxy_protocol="v2")) as proxy,
    ):
        ask(proxy.address, data)
        header, rest = split(backend.result().data)
    assert header.tlvs == {0x01: b"h2", 0x02: b"www.example.com"}
    assert rest == data


@pytest.mark.parametrize("sni", ["", "x" * 256, "\udc80", 7, ("a",)])
@pytest.mark.parametrize("alpn", [(), ("",), ("x" * 256,), ("\u20ac",), "h2"])
def test_metadata_that_does_not_fit_a_header_is_left_out(sni: object, alpn: object) -> None:
    @define_protocol("odd", max_bytes=1, metadata_keys=frozenset({"sni", "alpn"}))
    def odd(_data: bytes) -> Identification:
        return ProtocolMatch({"sni": sni, "alpn": alpn})  # type: ignore[dict-item]

    is_valid = isinstance(sni, str) and isinstance(alpn, tuple)
    with (
        Backend(sink) as backend,
        ProxyThread(
            Route(odd, backend.address, proxy_protocol="v2"),
            expected=[] if is_valid else ["protocol odd failed: .*(sni is (int|tuple)|alpn is str)"],
        ) as proxy,
    ):
        ask(proxy.address, b"?")
        header, rest = split(backend.result().data)
    assert header.tlvs == {}
    assert header.source is not None
    assert rest == b"?"


@VERSIONS
def test_health_checks_begin_with_a_header_that_names_no_client(version: ProxyVersion) -> None:
    def serve(sock: socket.socket) -> bytes:
        data = sock.recv(1000)
        if not data:  # the stop has ended this check
            return data
        header, rest = split(data)
        if header.is_local and rest in (b"", b"ping"):
            sock.sendall(b"pong")
        return data

    health = Health(kind="send_expect", options={"send": "ping", "expect": "pong"}, interval_ms=50)
    with (
        Backend(serve) as backend,
        ProxyThread(Route(MAGIC, backend.address, health=health, proxy_protocol=version)) as proxy,
    ):
        first = backend.result()
        eventually(lambda: backend.accepted > 2, "further checks")
        (known,) = {one.state.availability for one in proxy.engine._plan.pools[Transport.TCP].backends}
    assert split(first)[0].is_local
    assert known == "up"


def test_version_1_is_refused_for_datagrams_and_unknown_versions_always() -> None:
    @define_protocol("game", transport="udp", max_bytes=1)
    def game(_data: bytes) -> Identification:
        return NO

    with pytest.raises(ConfigError, match="proxy_protocol: version 1 "):
        Route(game, "127.0.0.1:1", proxy_protocol="v1")
    with pytest.raises(ConfigError, match=r"proxy_protocol: .*v3"):
        Route(MAGIC, "127.0.0.1:1", proxy_protocol="v3")  # type: ignore[arg-type]
