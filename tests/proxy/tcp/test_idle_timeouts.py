"""The idle timeout of a route, which outranks the idle timeout of the settings."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Final

import pytest

from refractium import NO, ConfigError, EngineSpec, Identification, ListenerRules, Route, define_protocol
from refractium.proxy import snapshot
from support.backends import Backend, echo
from support.clients import connect, receive, receive_all
from support.lateness import fair_seconds_since, seconds_since
from support.process import free_port
from support.proxy import ProxyThread, quick, starting_with

if TYPE_CHECKING:
    from pathlib import Path

on_every_path = pytest.mark.usefixtures("data_path")

MAGIC: Final = starting_with(b"magic")
OTHER: Final = starting_with(b"other", name="other")
SHORT, LONG = 300, 60_000


def greet(client: socket.socket, first: bytes) -> None:
    client.sendall(first)
    assert receive(client, len(first)) == first


@on_every_path
def test_a_route_may_have_a_shorter_idle_timeout_than_the_settings() -> None:
    with Backend(echo) as backend:
        routes = Route(MAGIC, backend.address, idle_timeout_ms=SHORT), Route(OTHER, backend.address)
        with (
            ProxyThread(*routes, settings=quick(idle_timeout_ms=LONG)) as proxy,
            proxy.connect() as other,
            proxy.connect() as magic,
        ):
            greet(other, b"other")
            begun = time.monotonic()
            greet(magic, b"magic")
            assert receive_all(magic).end == "reset"
            assert seconds_since(begun) > 0.9 * SHORT / 1000
            assert fair_seconds_since(begun) < 5
            ended = proxy.next_end()
            assert (ended.route, ended.ended) == ("magic", "idle timeout")
            greet(other, b"?")


@on_every_path
def test_a_route_may_have_a_longer_idle_timeout_than_the_settings() -> None:
    with Backend(echo) as backend:
        routes = Route(MAGIC, backend.address, idle_timeout_ms=LONG), Route(OTHER, backend.address)
        with (
            ProxyThread(*routes, fallback=backend.address, settings=quick(idle_timeout_ms=SHORT)) as proxy,
            proxy.connect() as magic,
        ):
            greet(magic, b"magic")
            for first in (b"other", b"the fallback"):
                with proxy.connect() as client:  # begins later than `magic`, and ends
                    greet(client, first)
                    assert receive_all(client).end == "reset"
                assert proxy.next_end().ended == "idle timeout"
            greet(magic, b"?")


@on_every_path
def test_a_client_whose_route_is_down_has_the_idle_timeout_of_the_fallback() -> None:
    with Backend(echo) as backend:
        route = Route(MAGIC, f"127.0.0.1:{free_port()}", idle_timeout_ms=LONG)
        expected = ["cannot be reached"]
        settings = quick(idle_timeout_ms=SHORT)
        with (
            ProxyThread(route, fallback=backend.address, settings=settings, expected=expected) as proxy,
            proxy.connect() as client,
        ):
            greet(client, b"magic")
            assert receive_all(client).end == "reset"
            assert proxy.next_end().ended == "idle timeout"


@on_every_path
def test_each_listener_and_each_configuration_has_the_idle_timeouts_of_its_routes() -> None:
    with Backend(echo) as backend:

        def spec(timeout_ms: int | None) -> EngineSpec:
            rules = {"": ListenerRules(), "second": ListenerRules()}
            routes = [Route(MAGIC, backend.address, idle_timeout_ms=timeout_ms)]
            return EngineSpec(routes, settings=quick(idle_timeout_ms=LONG), listeners=rules)

        with ProxyThread(*spec(SHORT).tcp) as proxy:
            proxy.call(proxy.engine.apply(spec(None)))
            (address,) = proxy.call(proxy.engine.start_tcp("127.0.0.1", 0, "second"))
            second = "127.0.0.1", int(address.rpartition(":")[2])
            with connect(second) as one, proxy.connect() as other:
                for early in (one, other):
                    greet(early, b"magic")
                proxy.call(proxy.engine.apply(spec(SHORT)))
                for where in (second, proxy.address):
                    with connect(where) as late:
                        late.sendall(b"magic")
                        assert receive_all(late).end == "reset"
                for early in (one, other):
                    greet(early, b"?")


def test_a_route_for_datagrams_has_no_idle_timeout() -> None:
    @define_protocol("lines", transport="udp", max_bytes=1)
    def lines(_: bytes) -> Identification:
        return NO

    with pytest.raises(ConfigError, match="idle_timeout_ms: is for connections only"):
        Route(lines, "127.0.0.1:1", idle_timeout_ms=SHORT)


@pytest.mark.parametrize("key", ["idle_timeout_ms", "udp_session_timeout_ms"])
@pytest.mark.parametrize("value", [0, -1, True, 1.5, "5", 7 * 24 * 3600 * 1000 + 1])
def test_a_timeout_of_a_route_is_a_number_of_milliseconds_up_to_a_week(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{key}: expected int"):
        Route(MAGIC, "127.0.0.1:1", **{key: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("of_settings", "of_route", "keeps_alive"),
    [(LONG, 7_200_001, True), (7_200_001, LONG, False), (7_200_001, None, True), (LONG, None, False)],
)
def test_a_backend_is_probed_by_the_idle_timeout_of_its_route(
    of_settings: int,
    of_route: int | None,
    *,
    keeps_alive: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = tmp_path / "tcp_keepalive_time"
    told.write_text("7200\n")
    monkeypatch.setattr(snapshot, "_KEEPALIVE", told)
    with Backend(echo) as backend:
        route = Route(MAGIC, backend.address, idle_timeout_ms=of_route)
        settings = quick(idle_timeout_ms=of_settings)
        with ProxyThread(route, settings=settings) as proxy, proxy.connect() as client:
            greet(client, b"magic")
            (connection,) = proxy.service.connections
            assert connection._weld is not None
            sock = connection._weld.down.sock
            assert bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)) is keeps_alive
