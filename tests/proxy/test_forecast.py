"""The forecast of a client's way, compared with the way of a real client through a real proxy."""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from refractium import (
    NO,
    EngineSpec,
    Identification,
    ListenerRules,
    ProtocolMatch,
    Route,
    Strength,
    Transport,
    define_protocol,
)
from refractium.engine.plan import Plan
from refractium.identify.everything import AnyProtocol
from refractium.proxy.forecast import Goal, Wait, forecast, instead_of
from refractium_proto_http import Http
from refractium_proto_https import Https
from refractium_proto_ssh import Ssh
from support import hellos
from support.backends import Backend, named
from support.clients import receive_all
from support.datagrams import UdpBackend
from support.datagrams import client as udp_client
from support.proxy import ProxyThread, eventually, quick, starting_with

if TYPE_CHECKING:
    from collections.abc import Callable

    from refractium.contract import Protocol
    from refractium.proxy.forecast import Forecast

HTTP, HTTPS, SSH = Http(), Https(), Ssh()
FTP = starting_with(b"USER", name="ftp", strength=Strength.WEAK, server_first=True)
SLOW_EXACT = starting_with(b"GET /long", name="long")
WEAK = starting_with(b"GET", name="get", strength=Strength.WEAK)
BUILD = hellos.Builder()
HELLO = hellos.records(BUILD.hello([BUILD.sni(b"a.example"), BUILD.alpn(b"h2")]))
REQUEST = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"
HEADER = b"PROXY TCP4 127.0.1.9 192.0.2.1 4000 443\r\n"
NEAR, FAR = "127.0.1.9", "127.0.0.9"
LAN = "127.0.1.0/24"


@dataclass(frozen=True)
class Setup:
    """Routes of a listener, its rules and settings. `routes` receives the address of a backend."""

    routes: Callable[[str], list[Route]]
    fallback: bool = False
    rules: ListenerRules = field(default_factory=ListenerRules)
    settings: dict[str, Any] = field(default_factory=dict)


SETUPS = {
    "names and a fallback": Setup(
        lambda to: [
            Route(HTTPS, to, id="both", sni="a.example", alpn="http/1.1"),
            Route(HTTPS, to, id="wild", sni="*.example"),
            Route(HTTP, to, id="host", host="a.example"),
            Route(FTP, to),
        ],
        fallback=True,
    ),
    "names and no fallback": Setup(
        lambda to: [
            Route(HTTPS, to, id="b", sni="b.example"),
            Route(HTTP, to, id="post", match={"method": "POST"}),
        ]
    ),
    "by client": Setup(
        lambda to: [
            Route(HTTPS, to, id="near", client=LAN),
            Route(HTTP, to, id="lan", allow=[LAN]),
            Route(SSH, to, id="no-near", deny=[NEAR]),
            Route(SSH, to, id="near-ssh"),
            Route(AnyProtocol(), to, id="rest", client=LAN),
        ]
    ),
    "access of the listener": Setup(lambda to: [Route(HTTP, to)], rules=ListenerRules(allow=[LAN])),
    "actions": Setup(
        lambda _: [
            Route(HTTP, action="reject", id="rejected"),
            Route(SSH, action="reset", id="reset"),
            Route(AnyProtocol(), action="reject", id="others"),
        ]
    ),
    "a sole route": Setup(lambda to: [Route(FTP, to)]),
    "routes of the listener": Setup(
        lambda to: [Route(HTTP, to, id="web"), Route(SSH, to, id="shell")], rules=ListenerRules(["shell"])
    ),
    "strong before weak": Setup(lambda to: [Route(WEAK, to), Route(SLOW_EXACT, to)], fallback=True),
    "behind a proxy": Setup(
        lambda to: [Route(HTTP, to, id="near", client=LAN), Route(HTTP, to, id="far"), Route(FTP, to)],
        settings={"proxy_protocol_from": ("127.0.0.0/8",)},
    ),
}
BYTES = {
    "nothing": b"",
    "hello": HELLO,
    "half a hello": HELLO[:60],
    "request": REQUEST,
    "request of another host": REQUEST.replace(b"a.example", b"b.example"),
    "half a request": REQUEST[:20],
    "G": b"G",
    "GET": b"GET",
    "GET /lo": b"GET /lo",
    "ssh": b"SSH-2.0-x\r\n",
    "half an ssh": b"SSH-",
    "user": b"USER joe\r\n",
    "other": b"\x00\x01\x02",
    "header": HEADER,
    "header and request": HEADER + REQUEST,
    "header and half a request": HEADER + REQUEST[:20],
    "half a header": HEADER[:9],
    "invalid header": b"PROXY SCTP \r\n",
    "local header": b"PROXY UNKNOWN\r\n" + REQUEST,
}


def predicted(
    proxy_settings: Any, setup: Setup, to: str, data: bytes, source: str, *, ended: bool
) -> Forecast:
    spec = EngineSpec(
        setup.routes(to),
        fallback_tcp=to if setup.fallback else (),
        settings=proxy_settings,
        listeners={"": setup.rules},
    )
    plan = Plan(spec)
    router = plan.routers[Transport.TCP][""]
    return forecast(router, plan.settings, Transport.TCP, data, source, has_ended=ended)


def _label(goal: Goal) -> str | None:
    return None if goal.pool is None else goal.pool.label


def send(proxy: ProxyThread, source: str, data: bytes, *, ended: bool) -> None:
    """Send bytes that are all there before the accept, wait for an answer or the end, and end."""
    clients: list[socket.socket] = []

    def begin() -> None:
        client = proxy.connect(source=source)
        clients.append(client)
        client.sendall(data)
        if ended:
            client.shutdown(socket.SHUT_WR)

    proxy.block(begin)
    with clients[0] as client, suppress(ConnectionError):
        client.recv(1)
        with suppress(OSError):
            client.shutdown(socket.SHUT_WR)
        receive_all(client)


@pytest.mark.parametrize("source", [NEAR, FAR])
@pytest.mark.parametrize("ended", [False, True], ids=["waits", "ends"])
@pytest.mark.parametrize("setup", SETUPS.values(), ids=SETUPS)
def test_a_client_goes_where_the_forecast_says(setup: Setup, source: str, *, ended: bool) -> None:
    settings = quick(peek_timeout_ms=60, peek_grace_ms=10, **setup.settings)
    went: dict[str, tuple[str | None, str | None]] = {}
    told: dict[str, tuple[str | None, str | None]] = {}
    with (
        Backend(named("b")) as backend,
        ProxyThread(
            *setup.routes(backend.address),
            fallback=backend.address if setup.fallback else (),
            rules=setup.rules,
            settings=settings,
            expected=["refused a connection", "sent no valid PROXY header"],
        ) as proxy,
    ):
        for name, data in BYTES.items():
            way = predicted(settings, setup, backend.address, data, source, ended=ended)
            told[name] = _label(way.final), way.final.refusal
            before = proxy.counters.refused
            send(proxy, source, data, ended=ended)
            if proxy.counters.refused > before:
                went[name] = None, "access rules deny this address"
                continue
            end = proxy.next_end()
            went[name] = end.route, None if end.backend is not None else str(end.ended)
            if way.final.undecided is not None:
                told[name] = None, str(end.ended)
                assert end.missed is not None
                assert end.missed.protocol == way.final.undecided.protocol.name
    assert went == told


@pytest.mark.parametrize("setup", SETUPS.values(), ids=SETUPS)
def test_a_connection_that_need_not_wait_goes_to_the_same_goal_at_once(setup: Setup) -> None:
    """A decision of the first bytes is final, so the timeout of this proxy never passes."""
    settings = quick(peek_timeout_ms=600_000, peek_grace_ms=600_000, **setup.settings)
    with (
        Backend(named("b")) as backend,
        ProxyThread(
            *setup.routes(backend.address),
            fallback=backend.address if setup.fallback else (),
            rules=setup.rules,
            settings=settings,
            expected=["refused a connection", "sent no valid PROXY header"],
        ) as proxy,
    ):
        decided = 0
        for data in BYTES.values():
            way = predicted(settings, setup, backend.address, data, NEAR, ended=False)
            if isinstance(way.now, Wait):
                assert way.now.needed is None or way.now.needed > len(way.data)
                continue
            assert way.now == way.final or way.now.pool is way.final.pool
            decided += 1
            send(proxy, NEAR, data, ended=False)
            assert proxy.next_end().route == _label(way.final)
        assert decided


def datagrams(label: bytes) -> Protocol:
    @define_protocol(label.decode(), transport="udp", max_bytes=9, metadata_keys=frozenset({"user"}))
    def identify(data: bytes) -> Identification:
        return ProtocolMatch({"user": data[1:].decode()}) if data[:1] == label else NO

    return identify


ASKING, BANNED = datagrams(b"a"), datagrams(b"b")
OTHERS = AnyProtocol(Transport.UDP)


@pytest.mark.parametrize("has_rest", [False, True])
def test_a_datagram_goes_where_the_forecast_says(*, has_rest: bool) -> None:
    with UdpBackend(lambda _: [b"one"]) as one, UdpBackend(lambda _: [b"rest"]) as rest:
        routes = [
            Route(ASKING, one.address, id="one", match={"user": "joe"}),
            Route(ASKING, one.address, id="near", client=LAN, allow=["127.0.9.9"]),
            Route(BANNED, action="reject", id="banned"),
        ]
        routes += [Route(OTHERS, rest.address, id="rest")] if has_rest else []
        plan = Plan(EngineSpec(udp=routes))
        router = plan.routers[Transport.UDP][""]
        settings = quick(udp_session_timeout_ms=100)
        with ProxyThread(*routes, settings=settings, expected=["refused a session"]) as proxy:
            counters = proxy.engine.udp_counters
            for data in (b"", b"ajoe", b"aann", b"b", b"zzz"):
                for source in (NEAR, FAR):
                    goal = forecast(router, plan.settings, Transport.UDP, data, source).now
                    assert isinstance(goal, Goal)
                    refused = counters.unrouted + counters.refused
                    with udp_client(proxy.address, source=source) as client:
                        client.send(data)
                        if goal.refusal is None:
                            assert goal.pool is not None
                            assert client.recv(9) == (b"rest" if goal.pool.label == "rest" else b"one")
                            continue
                        eventually(
                            lambda least=refused: counters.unrouted + counters.refused > least,  # type: ignore[misc]
                            f"{data!r} from {source} is refused: {goal.refusal}",
                        )


def test_a_client_whose_backends_are_all_down_goes_to_the_fallback() -> None:
    plan = Plan(
        EngineSpec([Route(HTTP, "127.0.0.1:1"), Route(SSH, action="reject")], fallback_tcp="127.0.0.1:2")
    )
    router = plan.routers[Transport.TCP][""]
    for data, label in ((REQUEST, "fallback"), (b"SSH-2.0-x\r\n", None), (b"?", None)):
        way = forecast(router, plan.settings, Transport.TCP, data, None)
        found = instead_of(way.final, router)
        assert (found and found.label) == label


def test_an_unknown_client_meets_every_condition_and_may_be_a_trusted_proxy() -> None:
    settings = quick(proxy_protocol_from=("192.0.2.0/24",))
    spec = EngineSpec([Route(HTTP, "127.0.0.1:1", client=LAN, allow=[LAN])], settings=settings)
    plan = Plan(spec)
    router = plan.routers[Transport.TCP][""]
    plain = forecast(router, plan.settings, Transport.TCP, REQUEST, None)
    assert (plain.client, plain.final.refusal, plain.header_size) == (None, None, 0)
    named_client = forecast(router, plan.settings, Transport.TCP, HEADER + REQUEST, None)
    assert (named_client.client, named_client.named) == (NEAR, (NEAR, 4000))
    assert (named_client.header_size, named_client.data) == (len(HEADER), REQUEST)
    assert named_client.final.refusal is None
    far = forecast(
        router, plan.settings, Transport.TCP, HEADER.replace(b"127.0.1.9", b"10.0.0.1") + REQUEST, None
    )
    assert far.final.refusal == "no route"
    not_trusted = forecast(router, plan.settings, Transport.TCP, HEADER + REQUEST, "127.0.1.9")
    assert (not_trusted.header_size, not_trusted.final.refusal) == (0, "no route")
