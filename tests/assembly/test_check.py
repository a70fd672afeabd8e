from __future__ import annotations

import pytest

from refractium.assembly.check import problems, warnings
from refractium.config import Config, ListenerConfig, RouteConfig, ServerConfig, listeners_of
from refractium.contract import Transport
from refractium.routing import Member

ONE_LISTENER = [("server", ListenerConfig(port=8080))]


def route(name: str = "https", **keys: object) -> RouteConfig:
    return RouteConfig(**{"name": name, "forward_to": "10.0.0.1:1"} | keys)  # type: ignore[arg-type]


def places_of_problems(*routes: RouteConfig, **server: object) -> list[str]:
    numbered = [(str(number), one) for number, one in enumerate(routes)]
    config = ServerConfig(**server)  # type: ignore[arg-type]
    return [where for where, _ in problems(config, listeners_of(Config(), config), numbered)]


def places_of_warnings(*routes: RouteConfig, **server: object) -> list[str]:
    numbered = [(str(number), one) for number, one in enumerate(routes)]
    config = ServerConfig(**server)  # type: ignore[arg-type]
    return [where for where, _ in warnings(config, listeners_of(Config(), config), numbered)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (route(), route()),
        (route(sni="a"), route(sni=("b", "A."))),
        (route(sni="a", alpn="h2"), route(sni="a", alpn=("h3", "h2"))),
        (route(host="a"), route(host="a")),
        (route(transport=Transport.TCP), route(transport=Transport.TCP)),
        (route(transport=Transport.TCP), route()),
    ],
)
def test_routes_with_equal_conditions_are_duplicates(one: RouteConfig, other: RouteConfig) -> None:
    assert places_of_problems(one, other) == ["1"]
    assert places_of_problems(other, one) == ["1"]


def test_every_further_duplicate_names_the_first() -> None:
    found = list(problems(ServerConfig(), ONE_LISTENER, [("a", route()), ("b", route()), ("c", route())]))
    assert [(where, "as a:" in message) for where, message in found] == [("b", True), ("c", True)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (route("http"), route("https")),
        (route(sni="a"), route()),
        (route(sni="a"), route(sni="b")),
        (route(sni="*.a"), route(sni="x.a")),
        (route(sni="a", alpn="h2"), route(sni="a")),
        (route(sni="a", alpn="h2"), route(sni="a", alpn="h3")),
        (route(transport=Transport.TCP), route(transport=Transport.UDP)),
        (route(sni=("a", "a")), route(sni="b")),
    ],
)
def test_routes_that_differ_in_a_condition_are_not_duplicates(one: RouteConfig, other: RouteConfig) -> None:
    assert places_of_problems(one, other) == []


def test_only_one_route_of_a_transport_may_take_silent_clients() -> None:
    ftp, smtp = route("ftp", on_timeout=True), route("smtp", on_timeout=True)
    assert places_of_problems(ftp, smtp) == ["1.on_timeout"]
    assert places_of_problems(ftp, route("smtp", on_timeout=False), route("ssh")) == []


def test_a_unix_socket_is_no_target_for_datagrams() -> None:
    backends = ("10.0.0.1:1", "unix:/a")
    assert places_of_problems(route(forward_to=backends, transport=Transport.UDP)) == ["0.forward_to[1]"]
    assert places_of_problems(route(forward_to=backends, transport=Transport.TCP)) == []
    assert places_of_problems(fallback_udp="unix:/a") == ["server.fallback_udp"]
    assert places_of_problems(fallback_tcp="unix:/a") == []


def test_a_pattern_must_end_within_the_peek_buffer() -> None:
    long = route("mine", patterns=("a" * 16, "a" * 17))
    assert places_of_problems(long, peek_buffer_size=16) == ["0.patterns[1]"]
    assert places_of_problems(long) == []


def test_limits_that_are_too_wide_to_protect_cause_a_warning() -> None:
    assert places_of_warnings(peek_timeout_ms=5000, max_connections_per_ip=200) == []
    assert places_of_warnings(peek_timeout_ms=5001) == ["server.peek_timeout_ms"]
    assert places_of_warnings(max_connections_per_ip=201) == ["server.max_connections_per_ip"]
    assert places_of_warnings(max_connections=50) == ["server.max_connections_per_ip"]


def test_a_backend_listed_twice_in_one_route_causes_a_warning() -> None:
    twice = route(forward_to=("10.0.0.1:1", "10.0.0.2:1", "10.0.0.1:1", Member("10.0.0.2:1", weight=2)))
    assert places_of_warnings(twice, route("http")) == ["0.forward_to[2]", "0.forward_to[3]"]
    assert places_of_warnings(route(), route("http")) == []


def test_targets_that_are_the_listener_itself_cause_a_warning() -> None:
    loop = route(forward_to=("10.0.0.1:8080", "localhost:8080"))
    fallbacks = {"fallback_tcp": "127.0.0.1:8080", "fallback_udp": "127.0.0.1:8081"}
    assert places_of_warnings(loop, **fallbacks) == ["server.fallback_tcp", "0.forward_to[1]"]
    assert places_of_warnings(loop, **fallbacks, port=0) == []
    assert places_of_warnings(loop, **fallbacks, bind="10.0.0.1") == ["0.forward_to[0]"]
