"""From accept to decision: the first bytes of clients, their pieces, and their timing."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack, suppress
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

import refractium_proto_https
from refractium import NEED_MORE, NO, Identification, ProtocolMatch, Route, Strength, define_protocol
from refractium_proto_ssh import Ssh
from support import hellos
from support.backends import Backend, FullUnixQueue, digest, named, sink
from support.clients import MIB, ask, payload, receive, receive_all, reset, sending
from support.lateness import fair_seconds_since, seconds_since
from support.proxy import ProxyThread, eventually, quick, resident, starting_with

if TYPE_CHECKING:
    from pathlib import Path

    from support.proxy import LoopKind

pytestmark = pytest.mark.usefixtures("data_path")

both_loops = pytest.mark.parametrize("loop", ["uvloop", "asyncio"])

HELLO = b"SSH-2.0-test\r\n"
TIMEOUT = 0.3
"""The peek timeout (s) in tests that wait for it."""
WAITING = quick(peek_timeout_ms=300)


@both_loops
def test_a_silent_client_goes_to_the_route_for_silent_clients_at_the_timeout(loop: LoopKind) -> None:
    with (
        Backend(named("server-first")) as backend,
        Backend(named("fallback")) as fallback,
        ProxyThread(
            Route(starting_with(b"USER ", server_first=True), backend.address),
            fallback=fallback.address,
            settings=WAITING,
            loop=loop,
        ) as proxy,
    ):
        begun, cpu = time.monotonic(), proxy.cpu_seconds()
        with proxy.connect() as client:
            assert receive(client, 12) == b"server-first"
            assert seconds_since(begun) >= TIMEOUT
            assert fair_seconds_since(begun) < TIMEOUT + 1
        assert proxy.cpu_seconds() - cpu < 0.05


def test_a_silent_client_goes_to_the_fallback_if_no_route_takes_it() -> None:
    with (
        Backend(named("fallback")) as backend,
        ProxyThread(Route(Ssh(), "127.0.0.1:1"), fallback=backend.address, settings=WAITING) as proxy,
    ):
        begun = time.monotonic()
        with proxy.connect() as client:
            assert receive(client, 8) == b"fallback"
            assert seconds_since(begun) >= TIMEOUT
            assert fair_seconds_since(begun) < TIMEOUT + 1


def test_a_silent_client_is_closed_without_a_route_and_a_fallback() -> None:
    with ProxyThread(settings=WAITING) as proxy:
        begun = time.monotonic()
        with proxy.connect() as client:
            assert receive_all(client) == (b"", "eof")
            assert seconds_since(begun) >= TIMEOUT
            assert fair_seconds_since(begun) < TIMEOUT + 1
        assert proxy.next_end().ended == "no route"


def test_a_silent_client_gets_the_whole_connect_timeout(tmp_path: Path) -> None:
    settings = quick(peek_timeout_ms=1_000, connect_timeout_ms=1_000)
    with (
        FullUnixQueue(tmp_path / "full") as backend,
        ProxyThread(fallback=backend.address, settings=settings) as proxy,
        proxy.connect() as client,
    ):
        begun = time.monotonic()
        time.sleep(1.3)
        backend.make_room()
        with backend.accept() as sock:
            sock.sendall(b"late")
            assert receive(client, 4) == b"late"
        assert fair_seconds_since(begun) < 2


def test_the_wait_for_a_silent_client_does_not_count_as_connect_time() -> None:
    # A connect may take two connect timeouts in all. This peek timeout is longer than both.
    settings = quick(peek_timeout_ms=1_000, connect_timeout_ms=200)
    with (
        Backend(named("fallback")) as backend,
        ProxyThread(fallback=backend.address, settings=settings) as proxy,
        proxy.connect() as client,
    ):
        assert receive(client, 8) == b"fallback"


def test_a_few_bytes_and_the_end_are_decided_at_once() -> None:
    with (
        Backend(sink) as backend,
        ProxyThread(Route(Ssh(), "127.0.0.1:1"), fallback=backend.address) as proxy,
    ):
        begun = time.monotonic()
        assert ask(proxy.address, b"SSH") == (digest(b"SSH"), "eof")
        assert fair_seconds_since(begun) < 1.9
        assert proxy.next_end().route == "fallback"


@pytest.mark.parametrize("end", ["end", "timeout"])
def test_at_the_end_or_the_timeout_the_best_match_so_far_wins(end: str) -> None:
    with (
        Backend(named("best")) as backend,
        ProxyThread(
            Route(starting_with(b"abc"), "127.0.0.1:1"),
            Route(starting_with(b"ab", name="shorter", strength=Strength.WEAK), backend.address),
            fallback="127.0.0.1:1",
            settings=quick(peek_timeout_ms=300 if end == "timeout" else 2_000, peek_grace_ms=60_000),
        ) as proxy,
    ):
        begun = time.monotonic()
        with proxy.connect() as client:
            client.sendall(b"ab")
            if end == "end":
                client.shutdown(socket.SHUT_WR)
            assert receive(client, 6) == b"bestab"
            assert seconds_since(begun) >= TIMEOUT if end == "timeout" else fair_seconds_since(begun) < 1.9


@pytest.mark.parametrize("count", [0, 3])
def test_a_reset_before_the_decision_ends_it_at_once_and_quietly(count: int) -> None:
    with ProxyThread(Route(Ssh(), "127.0.0.1:1"), fallback="127.0.0.1:1") as proxy:
        client = proxy.connect()
        client.sendall(HELLO[:count])
        proxy.await_active(1)
        begun = time.monotonic()
        reset(client)
        assert proxy.next_end().ended == "client left before it was identified"
        assert fair_seconds_since(begun) < 1


def test_the_timeout_is_absolute_however_the_bytes_are_spread() -> None:
    @define_protocol("endless", max_bytes=1000)
    def endless(data: bytes) -> Identification:
        return NEED_MORE if len(data) < 1000 else NO

    with (
        Backend(named("fallback")) as backend,
        ProxyThread(Route(endless, "127.0.0.1:1"), fallback=backend.address, settings=WAITING) as proxy,
    ):
        begun = time.monotonic()
        with proxy.connect() as client:
            client.settimeout(TIMEOUT / 3)
            answer = b""
            while not answer:
                client.sendall(b"x")
                try:
                    answer = client.recv(8)
                except TimeoutError:
                    assert fair_seconds_since(begun) < 2
            assert answer == b"fallback"
            assert seconds_since(begun) >= TIMEOUT
            assert fair_seconds_since(begun) < TIMEOUT + 1


def test_500_clients_that_send_slowly_do_not_delay_another() -> None:
    with (
        Backend(sink) as backend,
        ProxyThread(Route(Ssh(), backend.address), settings=quick(peek_timeout_ms=900)) as proxy,
        ExitStack() as stack,
    ):
        dribblers = [stack.enter_context(proxy.connect()) for _ in range(500)]
        cpu = proxy.cpu_seconds()
        times = []
        for place in range(3):
            for dribbler in dribblers:
                with suppress(OSError):  # on a slow machine its time may be up already
                    dribbler.sendall(HELLO[place : place + 1])
            for _ in range(10):
                begun = time.monotonic()
                assert ask(proxy.address, HELLO).end == "eof"
                times.append(seconds_since(begun))
        assert sorted(times)[15] < 0.1
        for dribbler in dribblers:
            assert receive_all(dribbler).data == b""
        assert proxy.cpu_seconds() - cpu < 1.5


def test_the_timeout_does_not_survive_into_the_weld() -> None:
    with (
        Backend(named("")) as backend,
        ProxyThread(Route(Ssh(), backend.address), settings=quick(peek_timeout_ms=1_000)) as proxy,
        proxy.connect() as client,
    ):
        client.sendall(HELLO[:3])
        proxy.await_active(1)
        client.sendall(HELLO[3:])
        assert receive(client, len(HELLO)) == HELLO
        time.sleep(1.1)
        client.sendall(b"still here")
        assert receive(client, 10) == b"still here"


@both_loops
def test_bytes_that_no_route_can_match_fall_back_at_once(loop: LoopKind) -> None:
    with (
        Backend(sink) as backend,
        ProxyThread(Route(Ssh(), "127.0.0.1:1"), fallback=backend.address, loop=loop) as proxy,
    ):
        begun = time.monotonic()
        with proxy.connect() as client:
            client.sendall(b"SSH-3")
            assert proxy.engine.active <= 1
            eventually(lambda: backend.accepted == 1, "the fallback has accepted the connection")
            assert fair_seconds_since(begun) < 1.5
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == (digest(b"SSH-3"), "eof")


@pytest.mark.parametrize("fallback", [True, False])
def test_1000_clients_with_garbage_are_decided_by_their_first_bytes(*, fallback: bool) -> None:
    with (
        Backend(sink) as backend,
        ProxyThread(Route(Ssh(), "127.0.0.1:1"), fallback=backend.address if fallback else ()) as proxy,
    ):
        before = resident()
        for number in range(1000):
            garbage = b"\0" + payload(number, 100)
            answer = ask(proxy.address, garbage)
            assert answer.data == (digest(garbage) if fallback else b"")
        proxy.await_drained()
        assert proxy.counters.finished == 1000
        assert resident() - before < 32 * MIB


@pytest.mark.parametrize("gap", ["none", "until read"])
@pytest.mark.parametrize("pieces", [2, 3])
def test_a_hello_cut_anywhere_takes_the_same_route_with_the_same_bytes(pieces: int, gap: str) -> None:
    hello = HELLO + payload("rest", 100)
    with (
        Backend(sink) as backend,
        Backend(named("wrong")) as other,
        ProxyThread(Route(Ssh(), backend.address), fallback=other.address) as proxy,
    ):
        for cut in range(1, len(HELLO)):
            cuts = [0, cut, len(hello)] if pieces == 2 else [0, cut, cut + 1, len(hello)]
            with proxy.connect() as client:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for start, end in pairwise(cuts):
                    client.sendall(hello[start:end])
                    if gap == "until read":
                        await_read(proxy, end)
                client.shutdown(socket.SHUT_WR)
                assert receive_all(client) == (digest(hello), "eof")
            assert proxy.next_end().route == "ssh"


def await_read(proxy: ProxyThread, count: int) -> None:
    """Wait until the proxy has read at least `count` bytes of its only connection."""
    eventually(lambda: received_so_far(proxy) >= count, f"{count} bytes are read")


def received_so_far(proxy: ProxyThread) -> int:
    """Return the number of bytes that the proxy has read of its only connection."""
    service = proxy.engine._tcp
    assert service is not None
    for connection in service.connections:
        weld = connection._weld
        first = connection._first_bytes
        return weld.up.count if weld is not None else len(connection._data) if first is None else first.size
    return 0


@both_loops
def test_8_mib_directly_after_the_hello_arrive_complete(loop: LoopKind) -> None:
    data = HELLO + payload("behind", 8 * MIB)
    with Backend(sink) as backend, ProxyThread(Route(Ssh(), backend.address), loop=loop) as proxy:
        assert ask(proxy.address, data) == (digest(data), "eof")


@pytest.mark.parametrize("end", ["shut", "open", "reset"])
def test_bytes_that_arrive_during_the_dial_are_kept_in_order(tmp_path: Path, end: str) -> None:
    data = HELLO + payload("meanwhile", 3 * MIB)
    with (
        FullUnixQueue(tmp_path / "full") as backend,
        ProxyThread(Route(Ssh(), backend.address)) as proxy,
    ):
        client = proxy.connect()
        client.sendall(HELLO[:1])
        await_read(proxy, 1)
        client.sendall(HELLO[1:])
        with sending(client, data[len(HELLO) :], shut=end != "open"):
            for _ in range(3):
                proxy.await_idle(0.02)
            if end == "reset":
                reset(client)
            assert proxy.engine.active == 1
            backend.make_room()
            with backend.accept() as sock:
                if end == "reset":
                    assert data.startswith(receive_all(sock).data)
                else:
                    assert receive(sock, len(data)) == data
                    sock.sendall(b"bye")
        if end != "reset":
            assert receive_all(client) == (b"bye", "eof") or end == "open"
            client.close()
        assert proxy.next_end().route == "ssh"
        proxy.await_drained()
        assert proxy.counters.finished == 1


@pytest.mark.parametrize("records", [1, 2, 64])
@pytest.mark.parametrize("segment", [1, 7, 536, 1448])
def test_a_hello_in_segments_and_records_goes_where_its_name_says(segment: int, records: int) -> None:
    builder = hellos.Builder()
    extensions = [builder.extension(21, bytes(1000)), *hellos.typical_extensions(builder, b"a.example")]
    message = builder.hello(extensions)
    cuts = [number * len(message) // records for number in range(1, records)]
    hello = hellos.records(message, *cuts)
    (https,) = refractium_proto_https.refractium_protocols()
    with (
        Backend(sink) as backend,
        ProxyThread(
            Route(https, "127.0.0.1:1"),
            Route(https, "127.0.0.1:1", sni="*.example"),
            Route(https, backend.address, sni="a.example"),
            settings=quick(peek_timeout_ms=20_000),
        ) as proxy,
        proxy.connect() as client,
    ):
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(hello), segment):
            client.sendall(hello[start : start + segment])
            await_read(proxy, min(start + segment, len(hello)))
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == (digest(hello), "eof")
        assert proxy.next_end().metadata["sni"] == "a.example"


def test_an_identifier_that_raises_counts_as_no() -> None:
    @define_protocol("broken", max_bytes=100, strength=Strength.EXACT)
    def broken(data: bytes) -> Identification:
        raise ZeroDivisionError(data)

    with (
        Backend(sink) as backend,
        ProxyThread(
            Route(broken, "127.0.0.1:1"), Route(Ssh(), backend.address), expected=["protocol broken failed"]
        ) as proxy,
    ):
        for _ in range(20):
            assert ask(proxy.address, HELLO) == (digest(HELLO), "eof")
        assert len(proxy.warnings) == 1
        assert proxy.service.snapshots[""].router.table.faults["broken"] == 20


class Unspeakable:
    def __str__(self) -> str:
        raise ZeroDivisionError


@pytest.mark.parametrize("metadata", [None, 5, {"sni": Unspeakable()}, {"host": 5, "sni": (Unspeakable(),)}])
def test_a_match_with_invalid_metadata_does_not_end_the_connection(metadata: Any) -> None:
    @define_protocol("odd", max_bytes=100)
    def odd(_data: bytes) -> Identification:
        return ProtocolMatch(metadata)

    with (
        Backend(sink) as backend,
        ProxyThread(Route(odd, backend.address), expected=["protocol odd failed: .*metadata"]) as proxy,
    ):
        for _ in range(3):
            assert ask(proxy.address, HELLO) == (digest(HELLO), "eof")
            assert proxy.next_end().metadata == {}


def test_need_more_up_to_the_bound_costs_time_in_proportion_to_the_bytes() -> None:
    @define_protocol("long", max_bytes=16_384)
    def long(data: bytes) -> Identification:
        if len(data) < 16_384:
            return NEED_MORE
        return ProtocolMatch()

    data = payload("long", 20_000)
    with (
        Backend(sink) as backend,
        ProxyThread(Route(long, backend.address), settings=quick(peek_timeout_ms=20_000)) as proxy,
    ):
        with proxy.connect() as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            cpu = proxy.cpu_seconds()
            for place in range(16_384):
                client.sendall(data[place : place + 1])
            client.sendall(data[16_384:])
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == (digest(data), "eof")
            assert proxy.cpu_seconds() - cpu < 2
        assert proxy.next_end().route == "long"
