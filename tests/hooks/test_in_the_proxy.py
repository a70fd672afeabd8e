"""The events that hooks receive of real traffic, and the harm that hooks cannot do to it."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from refractium import (
    ConfigError,
    Direction,
    EngineSpec,
    HookContext,
    PacketHook,
    Protocol,
    ProtocolMatch,
    Refractium,
    Route,
    SessionStats,
    Settings,
    define_hook,
    define_protocol,
)
from refractium.contract import NO, Identification
from refractium.hooks import registry, runner
from refractium.proxy import connection, udp_session, weld
from refractium.proxy.tapping import open_tap
from support.backends import Backend, duplex, echo, source
from support.clients import ask, connect, payload, receive, receive_all, reset, sending
from support.datagrams import UdpBackend
from support.datagrams import ask as ask_datagram
from support.datagrams import client as udp_client
from support.datagrams import echo as echo_datagram
from support.hooks import (
    RELEASE,
    At,
    Blocking,
    Hoarding,
    IgnoringApart,
    Raising,
    Recording,
    Sleeping,
    Told,
    read,
)
from support.lateness import fair_seconds_since
from support.paths import with_pipes
from support.process import children
from support.proxy import ProxyThread, eventually, quick, starting_with

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refractium.observe.status import HookTally

MIB = 1 << 20


@define_protocol("named", max_bytes=16, metadata_keys=frozenset({"host"}))
def named(data: bytes) -> Identification:
    return ProtocolMatch({"host": data[:4].decode("latin-1")})


def udp_starting_with(magic: bytes) -> Protocol:
    @define_protocol("dgram", transport="udp", max_bytes=len(magic), prefixes=(magic,))
    def identify(data: bytes) -> Identification:
        return ProtocolMatch() if data.startswith(magic) else NO

    return identify


class Trace(PacketHook[Any]):
    """A hook that keeps all events where a test in the same process can see them."""

    name = "trace"
    seen: list[tuple[Any, ...]]

    def start(self) -> None:
        Trace.seen = []

    def on_open(self, context: HookContext) -> None:
        self.seen.append(("open", context))

    def on_packet(self, context: HookContext, direction: Direction, data: bytes) -> None:
        self.seen.append(("packet", context, direction, data))

    def on_close(self, context: HookContext, stats: SessionStats) -> None:
        self.seen.append(("close", context, stats))


def has_closed() -> bool:
    return bool(Trace.seen) and Trace.seen[-1][0] == "close"


@pytest.fixture(autouse=True)
def released() -> Iterator[None]:
    Trace.seen = []
    yield
    RELEASE.set()
    time.sleep(0)
    RELEASE.clear()


def streams(told: list[Told], session: int) -> tuple[bytes, bytes]:
    """Return the bytes of a session in each direction, from the events of a hook."""
    mine = [one for one in told if one.session == session and one.what == "packet"]
    return tuple(b"".join(one.data for one in mine if one.direction == way) for way in Direction)  # type: ignore[return-value]


def closed(path: Path) -> list[Told]:
    return [one for one in read(path) if one.what == "close"]


def assert_accounted(proxy: ProxyThread, *, dropped: bool = False) -> None:
    """Wait until no packet is on its way; then assert that all were delivered, or also dropped if `dropped`
    is set."""

    def tallies() -> list[HookTally]:
        return [one for hook in proxy.status().hooks for one in (hook.inbound, hook.outbound)]

    eventually(
        lambda: all(one.seen == one.delivered + one.dropped for one in tallies()),
        "the queues of the hooks are empty",
    )
    for tally in tallies():
        assert tally.seen_bytes == tally.delivered_bytes + tally.dropped_bytes
        assert dropped or not tally.dropped


def test_a_hook_receives_every_byte_once_in_its_direction_and_the_session() -> None:
    up, down = payload("up", 3 * MIB), payload("down", 2 * MIB)
    with (
        Backend(duplex(down)) as backend,
        ProxyThread(Route(named, backend.address, id="mine", hooks=[Trace])) as proxy,
    ):
        before = time.time_ns()
        with proxy.connect() as client:
            peer = client.getsockname()
            with sending(client, b"HOST" + up):
                assert receive_all(client).data == down
        eventually(has_closed, "the hook has received the close")
        assert_accounted(proxy)
    (_, context), *packets, (_, last, stats) = Trace.seen
    assert (context.transport, context.protocol, context.route) == ("tcp", "named", "mine")
    assert (context.client, context.backend) == (peer, ("127.0.0.1", backend.port))
    assert context.metadata == {"host": "HOST"}
    assert before <= context.started <= time.time_ns()
    assert last == context
    assert {kind for kind, *_ in packets} == {"packet"}
    assert all(one == context for _, one, *_ in packets)
    assert all(type(data) is bytes and data for *_, data in packets)
    told = {way: b"".join(data for *_, of, data in packets if of is way) for way in Direction}
    assert told == {Direction.INBOUND: b"HOST" + up, Direction.OUTBOUND: down}
    assert (stats.inbound, stats.outbound, stats.ended) == (4 + len(up), len(down), "closed")


def test_a_hook_receives_only_the_traffic_of_its_routes(tmp_path: Path) -> None:
    path = tmp_path / "told"
    with Backend(echo) as backend:
        routes = [
            Route(starting_with(b"TOLD", name="told"), backend.address, hooks=[(Recording, At(str(path)))]),
            Route(starting_with(b"UNTOLD", name="untold"), backend.address),
        ]
        with ProxyThread(*routes, fallback=backend.address) as proxy:
            for request in (b"UNTOLD", b"TOLD", b"other"):
                assert ask(proxy.address, request).data == request
            eventually(lambda: bool(closed(path)), "the hook has received the close")
    assert {one.data for one in read(path) if one.what == "packet"} == {b"TOLD"}


def test_a_route_without_hooks_pays_nothing_for_the_hooks_of_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The bulk of the route without hooks stays in the kernel, and none of its sessions opens a tap."""
    # Otherwise a slow backend would keep the transfer from counting as bulk.
    with_pipes(monkeypatch, tmp_path)
    counted = {"splice": 0, "taps": 0}

    def splice(*args: Any, **keywords: Any) -> int:
        counted["splice"] += 1
        return os.splice(*args, **keywords)

    def tap(*args: Any) -> Any:
        counted["taps"] += 1
        return open_tap(*args)

    monkeypatch.setattr(weld, "splice", splice)
    for module in (connection, udp_session):
        monkeypatch.setattr(module, "open_tap", tap)
    down = payload("down", 4 * MIB)
    with (
        Backend(source(down)) as backend,
        UdpBackend(echo_datagram) as datagrams,
        ProxyThread(
            Route(starting_with(b"TOLD", name="told"), backend.address, hooks=[Trace]),
            Route(starting_with(b"PLAIN", name="plain"), backend.address),
            fallback_udp=datagrams.address,
            settings=quick(udp_session_timeout_ms=1_000),
        ) as proxy,
    ):
        assert (ask(proxy.address, b"PLAIN").data == down) is True
        assert ask_datagram(proxy.address, b"datagram") == b"datagram"
        assert counted["splice"]
        assert not counted["taps"]
        counted["splice"] = 0
        assert (ask(proxy.address, b"TOLD").data == down) is True
        assert counted == {"splice": 0, "taps": 1}


def test_hooks_of_the_server_receive_the_fallback_and_datagrams_too(tmp_path: Path) -> None:
    path = tmp_path / "told"
    datagrams = [b"DGRAM", b"", b"x" * 65_507, b"last"]
    with (
        Backend(echo) as backend,
        UdpBackend(echo_datagram) as other,
        ProxyThread(
            Route(udp_starting_with(b"DGRAM"), other.address),
            fallback=backend.address,
            fallback_udp=other.address,
            hooks=[(Recording, At(str(path)))],
            settings=quick(udp_session_timeout_ms=1_000),
        ) as proxy,
    ):
        assert ask(proxy.address, b"TCP").data == b"TCP"
        with udp_client(proxy.address) as client:
            for one in datagrams:
                client.send(one)
                assert client.recv(65_536) == one
        with udp_client(proxy.address) as client:
            client.send(b"unknown")
            assert client.recv(100) == b"unknown"
        eventually(lambda: len(closed(path)) == 3, "the hook has received three closes")
        assert_accounted(proxy)
    told = read(path)
    tcp, dgram, unknown = (one.session for one in told if one.what == "open")
    assert streams(told, tcp) == (b"TCP", b"TCP")
    for way in Direction:
        assert [
            one.data for one in told if (one.session, one.what, one.direction) == (dgram, "packet", way)
        ] == (datagrams)
    assert streams(told, unknown) == (b"unknown", b"unknown")
    assert {one.session: one.ended for one in closed(path)} == {tcp: "closed", dgram: "idle", unknown: "idle"}


def test_a_udp_session_that_moves_to_another_backend_is_two_sessions_for_a_hook() -> None:
    with (
        UdpBackend(lambda _: [b"other"]) as other,
        UdpBackend(lambda _: [b"first"]) as first,
        ProxyThread(
            Route(udp_starting_with(b"DGRAM"), [first.address, other.address], hooks=[Trace]),
            settings=quick(udp_session_timeout_ms=1_000),
            expected=["refuses", "is down"],
        ) as proxy,
        udp_client(proxy.address) as client,
    ):
        client.send(b"DGRAM 1")
        assert client.recv(10) == b"first"
        first.__exit__()
        client.send(b"DGRAM 2")  # an ICMP error answers this datagram
        client.send(b"DGRAM 3")
        assert client.recv(10) == b"other"
        eventually(
            lambda: has_closed() and Trace.seen[-1][2].ended == "idle",
            "the hook has received the second close",
        )
        assert proxy.engine.udp_counters.sessions == 1
        assert_accounted(proxy)
    opened = [one for what, one, *_ in Trace.seen if what == "open"]
    assert [one.backend for one in opened] == [("127.0.0.1", first.port), ("127.0.0.1", other.port)]
    assert opened[0].session != opened[1].session
    assert opened[0].client == opened[1].client
    told = [(what, opened.index(one), *more) for what, one, *more in Trace.seen if what == "packet"]
    assert told == [
        ("packet", 0, Direction.INBOUND, b"DGRAM 1"),
        ("packet", 0, Direction.OUTBOUND, b"first"),
        ("packet", 0, Direction.INBOUND, b"DGRAM 2"),
        ("packet", 1, Direction.INBOUND, b"DGRAM 3"),
        ("packet", 1, Direction.OUTBOUND, b"other"),
    ]
    closes = [(one, *more) for what, one, *more in Trace.seen if what == "close"]
    ends = [(opened.index(one), stats.ended, stats.inbound) for one, stats in closes]
    assert ends == [(0, "backend_reset", 14), (1, "idle", 7)]


def test_hooks_see_the_client_of_a_proxy_header_but_not_the_header() -> None:
    with (
        Backend(echo) as backend,
        ProxyThread(
            fallback=backend.address,
            settings=quick(proxy_protocol_from=("127.0.0.1",)),
            hooks=[Trace],
        ) as proxy,
    ):
        assert ask(proxy.address, b"PROXY TCP4 192.0.2.7 127.0.0.1 999 80\r\nbytes").data == b"bytes"
        eventually(has_closed, "the hook has received the close")
    (_, context), (*_, first), *_ = Trace.seen
    assert (context.client, first) == (("192.0.2.7", 999), b"bytes")


@pytest.mark.parametrize(
    ("end", "ended"),
    [("client", "client_reset"), ("backend", "backend_reset"), ("idle", "idle"), ("drain", "drained")],
)
def test_every_ending_of_a_session_gives_one_close_event_at_the_end(end: str, ended: str) -> None:
    def serve(sock: socket.socket) -> None:
        assert receive(sock, 5) == b"HELLO"
        sock.sendall(b"there")
        if end == "backend":
            reset(sock)
        else:
            receive_all(sock)

    with (
        Backend(serve) as backend,
        ProxyThread(
            fallback=backend.address,
            hooks=[Trace],
            settings=quick(idle_timeout_ms=1_000 if end == "idle" else 20_000),
            expected=["they were cut"],
        ) as proxy,
        connect(proxy.address) as client,
    ):
        client.sendall(b"HELLO")
        assert receive(client, 5) == b"there"
        if end == "client":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        elif end == "drain":
            proxy.call(proxy.engine.stop(50))
        eventually(has_closed, "the hook has received the close")
    assert [one[0] for one in Trace.seen] == ["open", "packet", "packet", "close"]
    stats = Trace.seen[-1][2]
    assert (stats.ended, stats.inbound, stats.outbound) == (ended, 5, 5)


@pytest.mark.parametrize("hook", [Sleeping, Raising, Hoarding, Blocking])
def test_a_bad_hook_harms_no_stream_delays_no_stop_and_its_packets_are_counted(
    hook: type[PacketHook[Any]],
) -> None:
    down = payload("down", 4 * MIB)
    with Backend(source(down)) as backend, Backend(echo) as other:
        routes = [
            Route(starting_with(b"GET", name="bad"), backend.address, hooks=[hook]),
            Route(starting_with(b"PING", name="good"), other.address),
        ]
        with ProxyThread(*routes, expected=["hook (raising|blocking)"]) as proxy:
            for _ in range(5):
                with proxy.connect() as client:
                    client.sendall(b"GET")
                    client.shutdown(socket.SHUT_WR)
                    assert hashlib.sha256(receive_all(client).data).digest() == hashlib.sha256(down).digest()
                assert ask(proxy.address, b"PING").data == b"PING"
            if hook is Raising:
                eventually(lambda: proxy.status().hooks[0].state == "detached", "the hook is detached")
            begun = time.monotonic()
            proxy.call(proxy.engine.stop(5_000))
            assert fair_seconds_since(begun) < 10
            (told,) = proxy.status().hooks
            assert told.outbound.seen_bytes == 5 * len(down)
            assert told.inbound.seen_bytes == 15
            assert_accounted(proxy, dropped=True)


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_hook_that_takes_no_packets_is_shown_as_stalled_until_it_goes_on(
    isolation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "STALL_SECONDS", 0.2)
    monkeypatch.setattr(registry, "_LOOK_SECONDS", 0.05)
    hook = Blocking if isolation == "thread" else IgnoringApart
    lines = ["hook .* has taken no packet for 0.2 s while [12] packets wait", "hook .* takes packets again"]
    with Backend(echo) as backend:
        route = Route(starting_with(b"GET", name="get"), backend.address, hooks=[hook])
        with ProxyThread(route, expected=lines) as proxy:

            def state() -> tuple[str, int]:
                (told,) = proxy.status().hooks
                return told.state, told.inbound.delivered + told.outbound.delivered

            assert state() == ("running", 0)
            child = 0
            if isolation == "process":
                assert ask(proxy.address, b"GET").data == b"GET"
                eventually(lambda: state() == ("running", 2), "the packets are delivered")
                (child,) = filter(_is_hook, children(os.getpid()))
                os.kill(child, signal.SIGSTOP)
            assert ask(proxy.address, b"GET").data == b"GET"
            eventually(lambda: state()[0] == "stalled", "the hook is stalled")
            if isolation == "process":
                os.kill(child, signal.SIGCONT)
            RELEASE.set()
            eventually(lambda: state()[0] == "running", "the hook goes on")


def _is_hook(pid: int) -> bool:
    """Return whether a process is that of a hook."""
    return b"refractium.hooks.child" in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_routes_with_equal_settings_share_a_hook_and_a_reload_replaces_it(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    with Backend(echo) as backend:

        def routes(path: Path) -> list[Route]:
            return [
                Route(
                    starting_with(name, name=name.decode().lower()),
                    backend.address,
                    hooks=[(Recording, At(str(path)))],
                )
                for name in (b"ONE", b"TWO")
            ]

        with ProxyThread(*routes(old)) as proxy:
            assert [one.name for one in proxy.status().hooks] == ["recording"]
            with proxy.connect() as client:
                client.sendall(b"ONE before")
                assert receive(client, 10) == b"ONE before"
                proxy.call(proxy.engine.apply(EngineSpec(routes(new), settings=quick())))
                assert ask(proxy.address, b"TWO after").data == b"TWO after"
                client.sendall(b" and after")
                assert receive(client, 10) == b" and after"
                states = [one.state for one in proxy.status().hooks]
                assert states == ["running", "running"]
            eventually(
                lambda: sorted(one.state for one in proxy.status().hooks) == ["running", "stopped"],
                "the first hook's stop",
            )
            assert_accounted(proxy)
            # A hook that stays in use is not stopped.
            proxy.call(proxy.engine.apply(EngineSpec(routes(new), settings=quick())))
            assert len(proxy.status().hooks) == 2
    told = read(old)
    (session,) = (one.session for one in told if one.what == "open")
    assert streams(told, session) == (b"ONE before and after",) * 2
    assert told[-1].what == "stop"
    assert [one.data for one in read(new) if one.what == "packet"] == [b"TWO after"] * 2


def test_a_plain_function_is_a_hook() -> None:
    seen = []

    @define_hook("plain")
    def plain(context: HookContext, direction: Direction, data: bytes) -> None:
        """Record every packet."""
        seen.append((context.protocol, direction, data))

    assert plain.summary == "Record every packet."
    with Backend(echo) as backend, ProxyThread(fallback=backend.address, hooks=[plain]) as proxy:
        assert ask(proxy.address, b"bytes").data == b"bytes"
        eventually(lambda: len(seen) == 2, "the hook has received two packets")
    assert seen == [("fallback", way, b"bytes") for way in Direction]


def test_an_object_that_is_not_a_hook_or_has_wrong_settings_is_refused_with_its_place() -> None:
    with pytest.raises(ConfigError) as caught:
        Route(starting_with(b"A"), "127.0.0.1:1", hooks=[Recording, str, (Recording, Settings())])  # type: ignore[list-item]
    assert [one.where for one in caught.value.problems] == ["hooks[1]", "hooks[2]"]
    with pytest.raises(ConfigError) as caught:
        Refractium(hooks=[object])  # type: ignore[list-item]
    assert "is not a class derived from PacketHook" in str(caught.value)
