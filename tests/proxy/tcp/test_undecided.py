"""Clients whose protocol is known before their route, and the time for which Refractium waits for bytes."""

from __future__ import annotations

import socket
import time
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest

import refractium_proto_dns
from refractium import (
    NEED_MORE,
    NO,
    Identification,
    ListenerRules,
    ProtocolMatch,
    Route,
    Strength,
    Transport,
    define_protocol,
)
from refractium.contract import NeedMore
from refractium.identify.everything import AnyProtocol
from refractium.proxy.first_bytes import PAUSE, FirstBytes
from refractium.proxy.summary import Ended
from refractium_proto_http import Http
from refractium_proto_http.http2 import PREFACE
from refractium_proto_https import Https
from support import hellos
from support.backends import Backend, digest, named, sink
from support.clients import ask, receive, receive_all
from support.lateness import fair_seconds_since, seconds_since
from support.proxy import ProxyThread, eventually, quick, starting_with

if TYPE_CHECKING:
    from collections.abc import Callable

    from refractium import Protocol

pytestmark = pytest.mark.usefixtures("data_path")

BUILD = hellos.Builder()
HTTP, HTTPS = Http(max_header_bytes=4096), Https(max_hello_bytes=16_384)
REQUEST = b"GET / HTTP/1.1\r\n"
LONG = 60_000
"""A timeout (ms) that no test waits for."""


def header(size: int) -> bytes:
    """Return a header field of `size` bytes, which clients send before the host."""
    return b"Authorization: Negotiate ".ljust(size - 2, b"A") + b"\r\n"


def hello(size: int, name: bytes = b"a.example", record: int = 8192) -> bytes:
    """Return a ClientHello of `size` bytes in records of `record` bytes; the server name comes last."""
    ciphers = bytes(2 if size < 65_600 else 65_534)
    fixed = len(BUILD.hello([BUILD.extension(21, b""), BUILD.sni(name)], ciphers=ciphers))
    message = BUILD.hello([BUILD.extension(21, bytes(size - fixed)), BUILD.sni(name)], ciphers=ciphers)
    return hellos.records(message, *range(record, size, record))


def tenants(protocol: Protocol, ours: str, others: str, **ours_when: str) -> list[Route]:
    return [Route(protocol, ours, id="ours", **ours_when), Route(protocol, others, id="others")]  # type: ignore[arg-type]


@pytest.mark.parametrize("piece", [1448, 100_000])
@pytest.mark.parametrize("size", [100, 8000, 8200, 16_000, 60_000])
def test_a_request_whose_host_comes_late_reaches_its_tenant(size: int, piece: int) -> None:
    data = REQUEST + header(size) + b"Host: a.example\r\n\r\n"
    with (
        Backend(sink) as ours,
        ProxyThread(*tenants(Http(), ours.address, "127.0.0.1:1", host="a.example")) as proxy,
        proxy.connect() as client,
    ):
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(data), piece):
            client.sendall(data[start : start + piece])
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == (digest(data), "eof")
        assert proxy.next_end().route == "ours"


@pytest.mark.parametrize("size", [200, 16_000, 40_000, 65_536])
def test_a_large_hello_reaches_its_tenant(size: int) -> None:
    data = hello(size)
    with (
        Backend(sink) as ours,
        ProxyThread(*tenants(Https(), ours.address, "127.0.0.1:1", sni="a.example")) as proxy,
    ):
        assert ask(proxy.address, data) == (digest(data), "eof")
        assert proxy.next_end().route == "ours"


TOO_LARGE: dict[str, tuple[Protocol, dict[str, str], bytes]] = {
    "header before the host": (
        HTTP,
        {"host": "a.example"},
        REQUEST + header(4200) + b"Host: a.example\r\n\r\n",
    ),
    "header without a host": (HTTP, {"host": "a.example"}, REQUEST + header(5000)),
    "request line": (HTTP, {"host": "a.example"}, b"GET /".ljust(5000, b"a") + b" HTTP/1.1\r\n\r\n"),
    "request line, no conditions": (HTTP, {}, b"BREW /".ljust(5000, b"a") + b" HTTP/1.1\r\n\r\n"),
    "hello": (HTTPS, {"sni": "a.example"}, hello(16_385)),
    "start of a hello": (HTTPS, {"sni": "a.example"}, hello(20_000)[:9]),
    "hello, no conditions": (HTTPS, {}, hello(20_000)),
    "records of a hello": (HTTPS, {"sni": "a.example"}, hello(1000, record=1)),
    "list of ALPN names": (
        HTTPS,
        {"alpn": "h2"},
        hellos.records(BUILD.hello([BUILD.alpn(*[b"imap"] * 200, b"h2")])),
    ),
    "decoded headers of HTTP/2": (
        HTTP,
        {"host": "a.example"},
        PREFACE + b"\0\1\x2c\1\4\0\0\0\1" + b"\x82" * 300,
    ),
    "frames of HTTP/2": (HTTP, {"host": "a.example"}, PREFACE + b"\0\0\0\6\0\0\0\0\0" * 64),
}
UNDECIDED: dict[str, tuple[Protocol, dict[str, str], bytes]] = {
    "header without an end": (HTTP, {"host": "a.example"}, REQUEST + b"Cookie: secret\r\n"),
    "half a host": (HTTP, {"host": "a.example"}, REQUEST + b"Host: a.exam"),
    "half a request line": (HTTP, {"host": "a.example"}, b"GET /?token=secret"),
    "half a request line, no conditions": (HTTP, {}, b"POST /a HTTP/1"),
    "half a hello": (HTTPS, {"sni": "a.example"}, hello(300)[:-1]),
    "half a hello, no conditions": (HTTPS, {}, hello(300)[:20]),
    "half of the records": (HTTPS, {"alpn": "h2"}, hello(10_000)[:9000]),
    "an empty host before a folded line": (HTTP, {"host": "a.example"}, REQUEST + b"Host:\r\n "),
}


def routes_beside(protocol: Protocol, conditions: dict[str, str], address: str) -> list[Route]:
    """Return a route with the conditions, and routes that could take its clients by mistake."""
    routes = [Route(protocol, "127.0.0.1:1", id="ours", **conditions)]  # type: ignore[arg-type]
    weak = define_protocol("weak", max_bytes=1, strength=Strength.WEAK)(lambda _: ProtocolMatch())
    routes += [Route(protocol, address, id="others")] if conditions else []
    return [
        *routes,
        Route(weak, address),
        Route(starting_with(b"USER", server_first=True, name="s"), address),
    ]


@pytest.mark.parametrize("case", TOO_LARGE)
def test_first_bytes_that_are_too_large_reach_no_backend(case: str) -> None:
    protocol, conditions, data = TOO_LARGE[case]
    with (
        Backend(sink) as other,
        ProxyThread(
            *routes_beside(protocol, conditions, other.address),
            fallback=other.address,
            settings=quick(peek_timeout_ms=LONG),
            expected=["too large: .* protocol http"],
        ) as proxy,
    ):
        with proxy.connect() as client:
            client.sendall(data)
            assert receive_all(client).data == b""
        summary = proxy.next_end()
        assert (summary.ended, summary.route, summary.protocol) == (Ended.TOO_LARGE, None, protocol.name)
        assert proxy.counters.outcomes == {"too_large": 1}
        assert other.accepted == 0
        assert len(proxy.warnings) == 1


@pytest.mark.parametrize("end", ["end", "timeout"])
@pytest.mark.parametrize("case", UNDECIDED)
def test_first_bytes_that_end_early_reach_no_backend(case: str, end: str) -> None:
    protocol, conditions, data = UNDECIDED[case]
    settings = quick(peek_timeout_ms=200 if end == "timeout" else LONG, peek_grace_ms=10)
    with (
        Backend(sink) as other,
        ProxyThread(
            *routes_beside(protocol, conditions, other.address),
            fallback=other.address,
            settings=settings,
            expected=["undecided: .* protocol http"],
        ) as proxy,
    ):
        with proxy.connect() as client:
            client.sendall(data)
            if end == "end":
                client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == (b"", "eof")
        assert proxy.next_end().ended == Ended.UNDECIDED
        assert proxy.counters.outcomes == {"undecided": 1}
        assert other.accepted == 0


def test_bytes_that_name_no_protocol_still_go_to_the_fallback() -> None:
    with (
        Backend(sink) as other,
        ProxyThread(Route(HTTP, "127.0.0.1:1"), Route(HTTPS, "127.0.0.1:1"), fallback=other.address) as proxy,
    ):
        for data in (b"GE", b"\x16\x03\x01\x02", b"BREW", b"\x16\x03\x01\x00\x05\x02"):
            assert ask(proxy.address, data) == (digest(data), "eof")
            assert proxy.next_end().route == "fallback"


def test_a_pending_name_that_no_route_asks_for_delays_nobody() -> None:
    data = REQUEST + header(9000)
    with (
        Backend(named("web")) as web,
        ProxyThread(
            Route(HTTP, web.address), fallback="127.0.0.1:1", settings=quick(peek_timeout_ms=LONG)
        ) as proxy,
        proxy.connect() as client,
    ):
        client.sendall(data)
        assert receive(client, 3) == b"web"


# A listener with one route for each client


LOOPBACK = ("127.0.0.0/8", "::1")
QUIET = starting_with(b"USER ", server_first=True)
SERVER_FIRST: dict[str, Callable[[str], list[Route]]] = {
    "by the protocol": lambda address: [Route(QUIET, address)],
    "by the route": lambda address: [Route(starting_with(b"EHLO "), address, on_timeout=True)],
    "for these clients": lambda address: [
        Route(QUIET, "127.0.0.1:1", id="others"),
        Route(QUIET, address, client=LOOPBACK),
    ],
    "beside another protocol for other clients": lambda address: [
        Route(HTTP, "127.0.0.1:1", client="192.0.2.0/24"),
        Route(QUIET, address),
    ],
    "by access rules": lambda address: [
        Route(QUIET, "127.0.0.1:1", id="others", deny=LOOPBACK),
        Route(QUIET, address),
    ],
    "for everybody": lambda address: [Route(AnyProtocol(), address, on_timeout=True)],
}


@pytest.mark.parametrize("kind", SERVER_FIRST)
@pytest.mark.parametrize("data", [b"", b"US", b"USER a", b"GET / HTTP/1.1\r\n\r\n"])
def test_a_sole_route_whose_server_speaks_first_gets_its_clients_at_once(kind: str, data: bytes) -> None:
    with (
        Backend(named("banner")) as backend,
        ProxyThread(*SERVER_FIRST[kind](backend.address), settings=quick(peek_timeout_ms=LONG)) as proxy,
        proxy.connect() as client,
    ):
        client.sendall(data)
        assert receive(client, 6) == b"banner"
        assert receive(client, len(data)) == data


def test_a_trusted_proxy_in_front_of_a_sole_route_still_names_its_client() -> None:
    with (
        Backend(named("banner")) as backend,
        ProxyThread(
            Route(starting_with(b"USER ", server_first=True), backend.address, deny=["192.0.2.7"]),
            settings=quick(peek_timeout_ms=LONG, proxy_protocol_from=("127.0.0.1", "::1")),
        ) as proxy,
    ):
        for source, answer in (("192.0.2.8", b"banner"), ("192.0.2.7", b"")):
            with proxy.connect() as client:
                proxy.await_active(1)
                assert proxy.service.awaiting_socket == 1, "no backend before the header"
                client.sendall(f"PROXY TCP4 {source} 192.0.2.1 1 2\r\n".encode())
                assert receive(client, 6) == answer if answer else receive_all(client).data == b""
            proxy.await_drained()


def only(address: str) -> list[Route]:
    return [Route(starting_with(b"USER ", server_first=True), address)]


WAITING: dict[str, dict[str, Any]] = {
    "fallback": {"fallback": "127.0.0.1:1"},
    "another route": {"more": [Route(HTTP, "127.0.0.1:1")]},
    "a route that rejects": {"more": [Route(HTTP, action="reject")]},
}


@pytest.mark.parametrize("case", WAITING)
def test_a_listener_with_other_routes_waits_for_the_first_bytes(case: str) -> None:
    arguments = dict(WAITING[case])
    with (
        Backend(named("banner")) as backend,
        ProxyThread(
            *only(backend.address),
            *arguments.pop("more", ()),
            settings=quick(peek_timeout_ms=300),
            **arguments,
        ) as proxy,
    ):
        begun = time.monotonic()
        with proxy.connect() as client:
            assert receive(client, 6) == b"banner"
            assert seconds_since(begun) >= 0.3


def test_a_sole_route_with_a_condition_waits_for_the_name() -> None:
    with (
        Backend(named("tls")) as backend,
        ProxyThread(
            Route(HTTPS, backend.address, sni="a.example", on_timeout=True),
            settings=quick(peek_timeout_ms=LONG),
        ) as proxy,
    ):
        assert ask(proxy.address, hello(300, b"b.example")).data == b""
        assert ask(proxy.address, hello(300)).data.startswith(b"tls")


def test_a_listener_may_have_a_peek_timeout_of_its_own() -> None:
    with (
        Backend(named("banner")) as backend,
        ProxyThread(
            *only(backend.address),
            fallback="127.0.0.1:1",
            rules=ListenerRules(peek_timeout_ms=100),
            settings=quick(peek_timeout_ms=LONG),
        ) as proxy,
        proxy.connect() as client,
    ):
        assert receive(client, 6) == b"banner"


# The grace


DNS = next(one for one in refractium_proto_dns.refractium_protocols() if one.transport is Transport.TCP)
SHORT = {
    "SOCKS5": b"\x05\x01\x00",
    "IEC 104": b"\x68\x04\x07\x00\x00\x00",
    "rsh": b"1023\x00",
    "one byte": b"\x05",
}


def weak(magic: bytes, name: str = "short") -> Protocol:
    return starting_with(magic, name=name, strength=Strength.WEAK)


@pytest.mark.parametrize("case", SHORT)
def test_a_short_first_message_waits_only_for_the_grace(case: str) -> None:
    magic = SHORT[case]
    settings = quick(peek_timeout_ms=LONG, peek_grace_ms=150)
    with (
        Backend(named("hello")) as backend,
        ProxyThread(
            Route(weak(magic), backend.address), Route(DNS, "127.0.0.1:1"), settings=settings
        ) as proxy,
    ):
        begun = time.monotonic()
        with proxy.connect() as client:
            client.sendall(magic)
            assert receive(client, 5 + len(magic)) == b"hello" + magic
        assert seconds_since(begun) >= 0.15 or case == "rsh"
        assert fair_seconds_since(begun) < 5
        assert proxy.next_end().route == "short"


def test_further_bytes_within_the_grace_still_decide_for_the_stronger_protocol() -> None:
    query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01"
    data = len(query).to_bytes(2) + query
    settings = quick(peek_timeout_ms=LONG, peek_grace_ms=LONG)
    with (
        Backend(named("dns")) as backend,
        ProxyThread(
            Route(weak(data[:1]), "127.0.0.1:1"), Route(DNS, backend.address), settings=settings
        ) as proxy,
        proxy.connect() as client,
    ):
        client.sendall(data[:5])
        proxy.await_active(1)
        eventually(lambda: any(one._first_bytes for one in proxy.service.connections), "the first bytes wait")
        client.sendall(data[5:])
        assert receive(client, 3) == b"dns"


@pytest.mark.parametrize("case", ["half a hello", "half a host", "header without an end"])
def test_the_grace_does_not_apply_to_a_protocol_that_recognised_its_traffic(case: str) -> None:
    protocol, conditions, data = UNDECIDED[case]
    settings = quick(peek_timeout_ms=400, peek_grace_ms=1)
    with (
        Backend(named("weak")) as other,
        ProxyThread(
            Route(protocol, "127.0.0.1:1", **conditions),  # type: ignore[arg-type]
            Route(weak(data[:1]), other.address),
            settings=settings,
            expected=["undecided"],
        ) as proxy,
    ):
        begun = time.monotonic()
        with proxy.connect() as client:
            client.sendall(data)
            assert receive_all(client).data == b""
        assert seconds_since(begun) >= 0.4
        assert other.accepted == 0


def test_a_grace_after_a_delay_of_the_loop_sees_the_bytes_that_are_there() -> None:
    strong = starting_with(b"\x05abc", name="strong")
    settings = quick(peek_timeout_ms=LONG, peek_grace_ms=50)
    with (
        Backend(named("strong")) as backend,
        ProxyThread(
            Route(strong, backend.address), Route(weak(b"\x05"), "127.0.0.1:1"), settings=settings
        ) as proxy,
        proxy.connect() as client,
    ):
        client.sendall(b"\x05")
        eventually(lambda: any(one._first_bytes for one in proxy.service.connections), "the grace has begun")

        def send_late() -> None:
            time.sleep(0.1)
            client.sendall(b"abc")

        proxy.block(send_late)
        assert receive(client, 6) == b"strong"


# Bytes that come one by one


class Counting:
    """A protocol that counts its calls and the bytes of all calls, and answers as a given function does."""

    def __init__(self, answer: Callable[[bytes], Identification], size: int) -> None:
        self.calls = 0
        self.bytes = 0
        self.answer = answer
        self.protocol = define_protocol("counting", max_bytes=size)(self.identify)

    def identify(self, data: bytes) -> Identification:
        self.calls += 1
        self.bytes += len(data)
        return self.answer(data)


def drip(counting: Counting, data: bytes) -> float:
    """Send bytes one by one through a proxy; return the seconds that this took."""
    with (
        Backend(sink) as backend,
        ProxyThread(
            Route(counting.protocol, backend.address),
            settings=quick(peek_timeout_ms=LONG),
            fallback="127.0.0.1:1",
        ) as proxy,
        proxy.connect() as client,
    ):
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        begun = time.monotonic()
        for place in range(len(data)):
            client.sendall(data[place : place + 1])
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == (digest(data), "eof")
        assert proxy.next_end().route == "counting"
        return time.monotonic() - begun


@pytest.mark.parametrize("size", [4096, 16_384])
def test_questions_about_bytes_that_come_one_by_one_cost_time_in_proportion_to_the_bytes(size: int) -> None:
    counting = Counting(lambda data: ProtocolMatch() if len(data) >= size else NEED_MORE, size)
    seconds = drip(counting, bytes(size))
    by_pauses = seconds / PAUSE
    assert counting.calls <= 200 + by_pauses
    assert counting.bytes <= size * (64 + 20 + by_pauses), "64 free questions, and growth by a sixteenth"


def test_bytes_that_come_in_small_pieces_take_no_more_memory_than_their_size() -> None:
    tracemalloc.start()
    try:
        first = FirstBytes(b"")
        for number in range(32_768):
            first.add(number.to_bytes(2))
        assert tracemalloc.get_traced_memory()[1] < 2 * 65_536 + 10_000
        assert first.data() == b"".join(number.to_bytes(2) for number in range(32_768))
    finally:
        tracemalloc.stop()


def test_a_protocol_that_says_when_to_ask_again_gets_no_earlier_question() -> None:
    counting = Counting(lambda data: ProtocolMatch() if len(data) >= 4000 else NeedMore(4000), 5000)
    drip(counting, bytes(4000))
    assert counting.calls == 2


def test_the_last_byte_never_waits_for_the_timeout() -> None:
    for size in (70, 200, 1001, 2003):
        counting = Counting(lambda data, size=size: ProtocolMatch() if len(data) >= size else NEED_MORE, 4096)  # type: ignore[misc]
        with (
            Backend(named("done")) as backend,
            ProxyThread(
                Route(counting.protocol, backend.address),
                fallback="127.0.0.1:1",
                settings=quick(peek_timeout_ms=LONG),
            ) as proxy,
            proxy.connect() as client,
        ):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _ in range(size):
                client.sendall(b"x")
            assert receive(client, 4) == b"done"


def test_no_is_final_for_bytes_that_come_one_by_one() -> None:
    counting = Counting(lambda data: NO if len(data) >= 300 else NEED_MORE, 1000)
    with (
        Backend(named("fallback")) as backend,
        ProxyThread(
            Route(counting.protocol, "127.0.0.1:1"),
            fallback=backend.address,
            settings=quick(peek_timeout_ms=LONG),
        ) as proxy,
        proxy.connect() as client,
    ):
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(300):
            client.sendall(b"x")
        assert receive(client, 8) == b"fallback"
