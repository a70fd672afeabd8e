"""Half-closed connections: the limit on their silence, moving bytes, and room for new connections."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING, Final

import pytest

from refractium import NO, ConfigError, EngineSpec, Identification, ListenerRules, Route, define_protocol
from refractium.proxy import half_closed
from support.backends import Backend, echo
from support.clients import MIB, PATIENCE, connect, payload, receive, receive_all, reset, sending
from support.lateness import fair_seconds_since, seconds_since
from support.proxy import ProxyThread, eventually, quick, starting_with

if TYPE_CHECKING:
    from typing import Self

    from refractium.proxy.half_closed import HalfClose

on_every_path = pytest.mark.usefixtures("data_path")

MAGIC: Final = starting_with(b"magic")
OTHER: Final = starting_with(b"other", name="other")
SECONDS: Final = 1.5
"""A timeout that is longer than the age at which a connection settles."""
SILENT: Final = "half-closed and silent"
REFUSED: Final = "refused a connection"


def short(**values: int) -> dict[str, int]:
    return {"half_close_timeout_ms": int(1000 * SECONDS), **values}


class Held:
    """A handler that answers the first bytes, and then keeps its socket open and silent.

    The sockets close at the end of the ``with`` block.

    Args:
        answer: the answer to the first bytes.
        ends: whether the handler ends its sending side after the answer.
    """

    def __init__(self, answer: bytes = b"!", *, ends: bool = False) -> None:
        self._answer = answer
        self._ends = ends
        self._over = threading.Event()
        self.socks: list[socket.socket] = []

    def __call__(self, sock: socket.socket) -> None:
        self.socks.append(sock)
        sock.recv(MIB)
        sock.sendall(self._answer)
        if self._ends:
            sock.shutdown(socket.SHUT_WR)
        self._over.wait(PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Let the handlers close their sockets."""
        self._over.set()


def say(client: socket.socket, first: bytes = b"?") -> None:
    client.sendall(first)
    assert receive(client, 1) == b"!"


def limit_of(proxy: ProxyThread) -> HalfClose:
    """Wait until the only connection of a proxy has a limit on its half-close, and return this limit."""

    def found() -> list[HalfClose]:
        return [one._half_close for one in proxy.service.connections if one._half_close is not None]

    eventually(lambda: len(found()) == 1, "the half-close has a limit")
    return found()[0]


@on_every_path
@pytest.mark.parametrize("who", ["client", "backend"])
@pytest.mark.parametrize("when", ["early", "late"])
def test_a_silent_half_closed_connection_ends_at_its_timeout(who: str, when: str) -> None:
    with (
        Backend(held := Held(ends=who == "backend" and when == "early")) as backend,
        held,
        ProxyThread(fallback=backend.address, settings=quick(**short())) as proxy,
        proxy.connect() as client,
    ):
        say(client)
        if when == "late":
            eventually(lambda: all(one._is_settled for one in proxy.service.connections), "it settles")
        begun = time.monotonic()
        if who == "client":
            client.shutdown(socket.SHUT_WR)
        elif when == "late":
            held.socks[0].shutdown(socket.SHUT_WR)
        assert receive_all(client).end == ("reset" if who == "client" else "eof")
        assert proxy.next_end().ended == SILENT
        assert seconds_since(begun) > SECONDS - 0.1
        assert fair_seconds_since(begun) < SECONDS + 2


@on_every_path
@pytest.mark.parametrize("who", ["client", "backend"])
def test_a_half_close_that_still_moves_bytes_outlives_the_timeout(who: str) -> None:
    """If the machine is busy, a pause between two bytes may be longer than the timeout; then try again."""

    def drip(sock: socket.socket, receiver: socket.socket) -> tuple[bool, float]:
        """Return whether all bytes arrive, and the longest pause (s) between two bytes."""
        last, longest, arrives = time.monotonic(), 0.0, True
        end = last + 2.5 * SECONDS
        while last < end and arrives:
            try:
                sock.sendall(b".")
                arrives = receiver.recv(1) == b"."
            except ConnectionError:
                arrives = False
            now = time.monotonic()
            last, longest = now, max(longest, now - last)
            time.sleep(0.2)
        return arrives, longest

    with (
        Backend(held := Held()) as backend,
        held,
        ProxyThread(fallback=backend.address, settings=quick(**short())) as proxy,
    ):
        for _ in range(5):
            with proxy.connect() as client:
                say(client)
                far = held.socks[-1]
                ends, goes_on = (client, far) if who == "client" else (far, client)
                ends.shutdown(socket.SHUT_WR)
                assert goes_on.recv(1) == b""
                arrives, longest = drip(goes_on, ends)
            if longest < SECONDS - 0.2:
                assert arrives
                held.end()
                return
        pytest.fail("the machine was too busy five times")


@on_every_path
def test_a_download_that_pauses_after_the_backends_end_arrives_completely() -> None:
    data = payload("paused", 100_000)
    with (
        Backend(held := Held(data, ends=True)) as backend,
        held,
        ProxyThread(fallback=backend.address, settings=quick(**short())) as proxy,
        proxy.connect(receive_buffer=4096) as client,
    ):
        client.sendall(b"?")
        limit = limit_of(proxy)
        eventually(lambda: limit._since > 0, "the timeout has passed, and bytes wait for the client")
        first = limit._since
        eventually(lambda: limit._since > first, "the timeout has passed once more")
        assert receive_all(client) == (data, "eof")
        assert proxy.next_end().ended == SILENT


@on_every_path
def test_an_upload_that_the_backend_reads_slowly_outlives_the_timeout() -> None:
    """If the machine is busy, a pause between two reads may be longer than the timeout; then try again."""
    data = payload("slow upload", MIB // 2)
    pauses: list[float] = []

    def read_slowly(sock: socket.socket) -> bytes:
        parts, last = [], time.monotonic()
        while part := receive(sock, len(data) // 10):
            parts.append(part)
            time.sleep(SECONDS / 5)
            pauses.append(time.monotonic() - last)
            last = time.monotonic()
        return b"".join(parts)

    with (
        Backend(read_slowly, receive_buffer=4096) as backend,
        ProxyThread(fallback=backend.address, settings=quick(**short())) as proxy,
    ):
        for _ in range(5):
            pauses.clear()
            with proxy.connect() as client, sending(client, data):
                ended = receive_all(client).end
            if max(pauses) < SECONDS / 3:
                assert ended == "eof"
                assert backend.result() == data
                return
    pytest.fail("the machine was too busy five times")


@on_every_path
def test_a_client_that_leaves_after_an_upload_that_nobody_reads_is_noticed() -> None:
    with (
        Backend(held := Held(), receive_buffer=4096) as backend,
        held,
        ProxyThread(fallback=backend.address, settings=quick(**short())) as proxy,
    ):
        with proxy.connect() as client:
            say(client)
            client.sendall(bytes(300_000))
        assert proxy.next_end().ended == SILENT


def test_the_shorter_of_idle_and_half_close_timeout_applies() -> None:
    settings = quick(idle_timeout_ms=300, half_close_timeout_ms=60_000)
    with (
        Backend(held := Held()) as backend,
        held,
        ProxyThread(fallback=backend.address, settings=settings) as proxy,
        proxy.connect() as client,
    ):
        say(client)
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client).end == "reset"
        assert proxy.next_end().ended == "idle timeout"


def test_a_route_may_have_a_half_close_timeout_of_its_own() -> None:
    with Backend(held := Held()) as backend, held:
        routes = (
            Route(MAGIC, backend.address, half_close_timeout_ms=60_000),
            Route(OTHER, backend.address),
        )
        with (
            ProxyThread(*routes, fallback=backend.address, settings=quick(**short())) as proxy,
            proxy.connect() as magic,
        ):
            say(magic, b"magic")
            magic.shutdown(socket.SHUT_WR)
            for first, route in ((b"other", "other"), (b"neither", "fallback")):
                with proxy.connect() as client:
                    say(client, first)
                    client.shutdown(socket.SHUT_WR)
                    assert receive_all(client).end == "reset"
                ended = proxy.next_end()
                assert (ended.route, ended.ended) == (route, SILENT)
            assert limit_of(proxy)._timeout.seconds == 60
            reset(magic)


def test_open_connections_keep_their_half_close_timeout_after_a_reload() -> None:
    with Backend(held := Held()) as backend, held:

        def spec(timeout_ms: int) -> EngineSpec:
            route = Route(MAGIC, backend.address, half_close_timeout_ms=timeout_ms)
            return EngineSpec([route], settings=quick(), listeners={"": ListenerRules()})

        with ProxyThread(*spec(60_000).tcp) as proxy, proxy.connect() as early:
            say(early, b"magic")
            proxy.call(proxy.engine.apply(spec(int(1000 * SECONDS))))
            early.shutdown(socket.SHUT_WR)
            with proxy.connect() as late:
                say(late, b"magic")
                late.shutdown(socket.SHUT_WR)
                assert receive_all(late).end == "reset"
            assert proxy.next_end().ended == SILENT
            assert limit_of(proxy)._timeout.seconds == 60
            reset(early)


def test_a_stop_waits_for_a_silent_half_close_until_its_timeout() -> None:
    with (
        Backend(held := Held()) as backend,
        held,
        ProxyThread(fallback=backend.address, settings=quick(**short())) as proxy,
        proxy.connect() as client,
    ):
        say(client)
        client.shutdown(socket.SHUT_WR)
        assert proxy.call(proxy.engine.stop(int(1000 * PATIENCE))) == 0
        assert proxy.next_end().ended == SILENT


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "5", 7 * 24 * 3600 * 1000 + 1])
def test_a_half_close_timeout_is_a_number_of_milliseconds_up_to_a_week(value: object) -> None:
    with pytest.raises(ConfigError, match="half_close_timeout_ms: expected int"):
        Route(MAGIC, "127.0.0.1:1", half_close_timeout_ms=value)  # type: ignore[arg-type]


def test_a_route_for_datagrams_has_no_half_close_timeout() -> None:
    @define_protocol("lines", transport="udp", max_bytes=1)
    def lines(_: bytes) -> Identification:
        return NO

    with pytest.raises(ConfigError, match="half_close_timeout_ms: is for connections only"):
        Route(lines, "127.0.0.1:1", half_close_timeout_ms=1)


# Room for new connections


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a half-closed connection make room after a short silence."""
    monkeypatch.setattr(half_closed, "_ROOM_MS", 100)


def leave(proxy: ProxyThread, source: str = "127.0.0.1") -> int:
    """Connect, receive an answer, and close at once. Return the client's port."""
    with connect(proxy.address, source=source) as client:
        say(client)
        port: int = client.getsockname()[1]
    return port


def await_room(proxy: ProxyThread, count: int) -> None:
    eventually(lambda: len(proxy.service.room) == count, f"{count} silent half-closed connections")


def is_served(proxy: ProxyThread, source: str = "127.0.0.1") -> bool:
    client = connect(proxy.address, source=source)
    try:
        client.sendall(b"?")
        answer = client.recv(1)
    except ConnectionError:
        answer = b""
    if not answer:
        client.close()
        return False
    reset(client)
    return True


@pytest.mark.usefixtures("soon")
@on_every_path
def test_clients_that_have_gone_make_room_for_a_client_of_their_address() -> None:
    settings = quick(max_connections_per_ip=3)
    with (
        Backend(held := Held()) as backend,
        held,
        ProxyThread(fallback=backend.address, settings=settings, expected=[REFUSED]) as proxy,
    ):
        source = "::1" if proxy.address[0] == "::1" else "127.0.0.1"
        gone = [leave(proxy, source) for _ in range(3)]
        await_room(proxy, 3)
        for port in gone:
            with connect(proxy.address, source=source) as client:
                say(client)
                ended = proxy.next_end()
                assert ended.ended == SILENT
                assert ended.client.endswith(f":{port}")  # the longest silence
                reset(client)
            assert proxy.next_end().ended == "client reset"
            leave(proxy, source)
        held.end()


def test_a_half_closed_connection_that_is_silent_for_a_moment_makes_no_room() -> None:
    settings = quick(max_connections_per_ip=1)
    with (
        Backend(held := Held()) as backend,
        held,
        ProxyThread(fallback=backend.address, settings=settings, expected=[REFUSED]) as proxy,
    ):
        leave(proxy)
        limit = limit_of(proxy)
        assert not is_served(proxy)
        assert limit._deadlines.seconds == 5
        held.end()


@pytest.mark.usefixtures("soon")
def test_only_silent_half_closed_connections_of_the_same_address_make_room() -> None:
    settings = quick(max_connections_per_ip=2)
    with (
        Backend(held := Held()) as backend,
        held,
        ProxyThread(fallback=backend.address, settings=settings, expected=[REFUSED]) as proxy,
        proxy.connect() as moving,
        proxy.connect() as whole,
    ):
        say(moving)
        (far,) = held.socks
        moving.shutdown(socket.SHUT_WR)
        say(whole)
        leave(proxy, "127.0.0.2")
        await_room(proxy, 2)
        while True:  # try again if more time than the silence passes between the byte and the next client
            far.sendall(b".")
            assert moving.recv(1) == b"."
            begun = time.monotonic()
            if not is_served(proxy) or time.monotonic() - begun < 0.1:
                break
        whole.sendall(b"?")
        assert proxy.engine.active == 3
        held.end()


@pytest.mark.usefixtures("soon")
def test_at_the_limit_of_all_connections_a_silent_half_close_of_any_address_makes_room() -> None:
    settings = quick(max_connections=2, max_connections_per_ip=1)
    with (
        Backend(held := Held()) as backend,
        held,
        ProxyThread(fallback=backend.address, settings=settings, expected=[REFUSED]) as proxy,
    ):
        first = leave(proxy, "127.0.0.2")
        leave(proxy, "127.0.0.3")
        await_room(proxy, 2)
        assert is_served(proxy, "127.0.0.4")
        ended = proxy.next_end()
        assert (ended.client, ended.ended) == (f"127.0.0.2:{first}", SILENT)
        held.end()


@pytest.mark.usefixtures("soon")
def test_a_client_that_a_proxy_names_gets_the_place_of_its_own_silent_connections() -> None:
    def told(client: str) -> bytes:
        return f"PROXY TCP4 {client} 192.0.2.1 1000 80\r\n?".encode()

    settings = quick(max_connections_per_ip=1, proxy_protocol_from=("127.0.0.1",))
    with (
        Backend(held := Held()) as backend,
        held,
        ProxyThread(fallback=backend.address, settings=settings, expected=[REFUSED]) as proxy,
    ):
        for name in ("192.0.2.7", "192.0.2.8"):
            with proxy.connect() as client:
                say(client, told(name))
        await_room(proxy, 2)
        with proxy.connect() as client:
            say(client, told("192.0.2.8"))
            ended = proxy.next_end()
            assert (ended.client, ended.ended) == ("192.0.2.8:1000", SILENT)
            with proxy.connect() as other:
                other.sendall(told("192.0.2.8"))
                assert other.recv(1) == b""  # nothing of this client is half-closed any more
        assert len(proxy.service.room) == 1
        held.end()


def test_short_connections_are_never_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    monkeypatch.setattr("refractium.proxy.connection.HalfClose", made.append)
    with Backend(echo) as backend, ProxyThread(fallback=backend.address) as proxy:
        for _ in range(100):
            with proxy.connect() as client:
                client.sendall(b"?")
                client.shutdown(socket.SHUT_WR)
                assert receive_all(client) == (b"?", "eof")
        proxy.await_drained()
    assert made == []
