"""The routes that a match leads to, by their conditions."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from refractium import ConfigError, Refractium, Route
from refractium.contract import (
    NO,
    Identification,
    Protocol,
    ProtocolMatch,
    Transport,
    define_protocol,
)
from refractium.identify import Undecided, Waiting
from refractium.routing import Pools, Router
from refractium.routing.route import fallback_route

if TYPE_CHECKING:
    from collections.abc import Mapping

    from refractium.contract import MetadataValue

KEYS = frozenset({"sni", "alpn", "host"})


def telling(metadata: Mapping[str, MetadataValue], pending: frozenset[str] = frozenset()) -> Protocol:
    """Return a protocol that matches every client with this metadata."""

    @define_protocol("said", max_bytes=10, metadata_keys=KEYS)
    def identify(_: bytes) -> Identification:
        return ProtocolMatch(metadata, pending)

    return identify


def chosen(metadata: Mapping[str, MetadataValue], *conditions: dict[str, Any]) -> int | None:
    """Return the number of the route that takes a client with this metadata."""
    protocol = telling(metadata)
    routes = [Route(protocol, f"127.0.0.1:{number + 1}", **one) for number, one in enumerate(conditions)]
    decision = Router(Pools(routes), 1024).table.decide(b"x")
    return decision[0].backends[0].address.port - 1 if isinstance(decision, tuple) else None


SNI: list[dict[str, Any]] = [
    {},
    {"sni": "*.example.org"},
    {"sni": "www.example.org"},
    {"sni": ("a.example", "B.Example.")},
    {"sni": "*.deep.example.org"},
]


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("www.example.org", 2),
        ("ftp.example.org", 1),
        ("example.org", 0),
        ("a.b.example.org", 0),
        ("x.deep.example.org", 4),
        ("deep.example.org", 1),
        ("a.example", 3),
        ("b.example", 3),
        ("*.example.org", 1),
        ("org", 0),
        ("", 0),
        (None, 0),
    ],
)
@pytest.mark.parametrize("order", [1, -1])
def test_an_exact_name_comes_before_a_wildcard_and_a_wildcard_before_no_name(
    name: str | None, number: int, order: int
) -> None:
    found = chosen({} if name is None else {"sni": name}, *SNI[::order])
    assert found == (number if order == 1 else len(SNI) - 1 - number)


def test_a_name_without_a_route_matches_no_route() -> None:
    assert chosen({"sni": "c.example"}, *SNI[1:]) is None
    assert chosen({}, *SNI[1:]) is None


ALPN: list[dict[str, Any]] = [{}, {"alpn": "h2"}, {"alpn": ("imap", "xmpp-client")}]


@pytest.mark.parametrize(
    ("offered", "number"),
    [
        (("h2", "http/1.1"), 1),
        (("http/1.1", "h2"), 1),
        (("xmpp-client",), 2),
        (("H2",), 0),
        ((), 0),
        (None, 0),
    ],
)
def test_a_route_with_an_alpn_comes_before_one_without(offered: tuple[str, ...] | None, number: int) -> None:
    assert chosen({} if offered is None else {"alpn": offered}, *ALPN) == number


def test_a_route_may_have_a_host_as_its_condition() -> None:
    routes: list[dict[str, Any]] = [{"host": "a.example"}, {"host": "*.b.example"}, {}]
    assert chosen({"host": "a.example"}, *routes) == 0
    assert chosen({"host": "x.b.example"}, *routes) == 1
    assert chosen({"host": "c.example"}, *routes) == 2


def test_all_conditions_of_a_route_must_be_met() -> None:
    routes: list[dict[str, Any]] = [
        {"sni": "a.example", "alpn": "h2", "host": "b.example"},
        {"sni": "a.example", "alpn": "h2"},
        {"alpn": "h2"},
    ]
    h2 = {"alpn": ("h2",)}
    assert chosen({"sni": "a.example", "host": "b.example", **h2}, *routes) == 0
    assert chosen({"sni": "a.example", "host": "c.example", **h2}, *routes) == 1
    assert chosen({"sni": "c.example", "host": "b.example", **h2}, *routes) == 2
    assert chosen({"sni": "a.example", "host": "b.example"}, *routes) is None


def test_the_wildcard_route_takes_clients_that_fail_another_condition_of_the_exact_one() -> None:
    routes: list[dict[str, Any]] = [{"sni": "a.example.org", "alpn": "h2"}, {"sni": "*.example.org"}, {}]
    assert chosen({"sni": "a.example.org", "alpn": ("h2",)}, *routes) == 0
    assert chosen({"sni": "a.example.org", "alpn": ("http/1.1",)}, *routes) == 1
    assert chosen({"sni": "a.other.org"}, *routes) == 2


def test_the_router_waits_for_metadata_that_a_route_requires() -> None:
    protocol = telling({}, pending=frozenset({"host"}))
    asking = Router(Pools([Route(protocol, "127.0.0.1:1", host="a.example")]), 1024)
    indifferent = Router(Pools([Route(protocol, "127.0.0.1:1")]), 1024)
    assert isinstance(asking.table.decide(b"x"), Waiting)
    assert isinstance(asking.table.decide(b"x", final=True), Undecided)
    assert isinstance(indifferent.table.decide(b"x"), tuple)


def test_a_list_that_is_not_completely_read_decides_only_for_the_names_in_it() -> None:
    protocol = telling({"alpn": ("h2",)}, pending=frozenset({"alpn"}))
    read = Router(Pools([Route(protocol, "127.0.0.1:1"), Route(protocol, "127.0.0.1:2", alpn="h2")]), 1024)
    decision = read.table.decide(b"x")
    assert isinstance(decision, tuple)
    assert decision[0].backends[0].address.port == 2
    unread = Router(Pools([Route(protocol, "127.0.0.1:1"), Route(protocol, "127.0.0.1:2", alpn="h3")]), 1024)
    assert isinstance(unread.table.decide(b"x"), Waiting)
    assert isinstance(unread.table.decide(b"x", final=True), Undecided)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {}),
        ({"sni": "a.example"}, {"sni": "A.Example."}),
        ({"sni": ("a.example", "b.example")}, {"sni": ("c.example", "b.example")}),
        ({"sni": "a.example", "alpn": ("h2", "h3")}, {"sni": "a.example", "alpn": "h3"}),
        ({"on_timeout": True}, {"on_timeout": True, "sni": "a.example"}),
        ({"id": "a"}, {"id": "a", "sni": "a.example"}),
        ({}, {"id": "said", "sni": "a.example"}),
    ],
)
def test_routes_that_exclude_each_other_are_refused(one: dict[str, Any], other: dict[str, Any]) -> None:
    protocol = telling({})
    with pytest.raises(ConfigError) as caught:
        Refractium([Route(protocol, "127.0.0.1:1", **one), Route(protocol, "127.0.0.1:2", **other)])
    assert [problem.where.startswith("tcp[1]") for problem in caught.value.problems] == [True]


def test_every_duplicate_is_reported() -> None:
    protocol = telling({})
    with pytest.raises(ConfigError) as caught:
        Refractium([Route(protocol, f"127.0.0.1:{port}") for port in (1, 2, 3)])
    assert [problem.where for problem in caught.value.problems] == ["tcp[1]", "tcp[2]"]


def test_a_thousand_names_cost_no_more_than_ten() -> None:
    def seconds(count: int) -> float:
        protocol = telling({"sni": f"n{count - 1}.example"})
        routes = [Route(protocol, f"127.0.0.1:{n + 1}", sni=f"n{n}.example") for n in range(count)]
        router = Router(Pools(routes), 1024)
        begun = time.process_time()
        for _ in range(2000):
            router.table.decide(b"x")
        elapsed = time.process_time() - begun
        decision = router.table.decide(b"x")
        assert isinstance(decision, tuple)
        assert decision[0].backends[0].address.port == count
        return elapsed

    assert min(seconds(1000) for _ in range(3)) < 3 * min(seconds(10) for _ in range(3))


def test_silent_clients_go_to_the_route_with_on_timeout_or_else_to_the_first_server_first_route() -> None:
    def quiet(name: str, *, server_first: bool) -> Protocol:
        return define_protocol(name, max_bytes=1, server_first=server_first)(lambda _: NO)

    first, second = quiet("first", server_first=True), quiet("second", server_first=False)

    def silent(*routes: Route) -> str | None:
        pool = Router(Pools(routes), 1024).silent
        return None if pool is None else pool.label

    assert silent(Route(second, "127.0.0.1:1")) is None
    assert silent(Route(second, "127.0.0.1:1"), Route(first, "127.0.0.1:2")) == "first"
    assert silent(Route(first, "127.0.0.1:1", on_timeout=False)) is None
    assert silent(Route(second, "127.0.0.1:1", on_timeout=True), Route(first, "127.0.0.1:2")) == "second"


def test_a_route_with_on_timeout_gets_silent_clients_wherever_it_stands() -> None:
    first = define_protocol("first", max_bytes=1, server_first=True)(lambda _: NO)
    second = define_protocol("second", max_bytes=1)(lambda _: NO)
    router = Router(Pools([Route(first, "127.0.0.1:1"), Route(second, "127.0.0.1:2", on_timeout=True)]), 1024)
    assert router.silent is not None
    assert router.silent.label == "second"


def test_several_values_may_be_given_as_any_sequence() -> None:
    protocol = telling({"sni": "a.example"})
    pools = Pools([Route([protocol], ["127.0.0.1:1", "127.0.0.1:2"], sni=["a.example"])])
    assert len(next(iter(pools)).backends) == 2


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ({"forward_to": "nonsense"}, "forward_to"),
        ({"forward_to": ()}, "forward_to"),
        ({"forward_to": "127.0.0.1:1", "sni": "a.example"}, "sni"),
        ({"forward_to": "127.0.0.1:1", "protocol": ()}, "protocol"),
    ],
)
def test_an_invalid_route_is_refused_with_the_reason(arguments: dict[str, Any], where: str) -> None:
    plain = define_protocol("plain", max_bytes=1)(lambda _: NO)
    with pytest.raises(ConfigError) as caught:
        Route(**{"protocol": plain, **arguments})
    assert [problem.where for problem in caught.value.problems] == [where]


def test_the_fallback_is_a_pool_like_any_other() -> None:
    pools = Pools([fallback_route(Transport.TCP, ["127.0.0.1:1", "[::1]:2"])])
    router = Router(pools, 1024)
    assert router.fallback is not None
    assert router.fallback.label == "fallback"
    assert [str(backend.address) for backend in pools.backends] == ["127.0.0.1:1", "[::1]:2"]
    assert Router(Pools([]), 1024).fallback is None


def test_a_pool_begins_with_a_different_backend_each_time_and_names_each_once() -> None:
    (pool,) = Pools([fallback_route(Transport.TCP, [f"127.0.0.1:{n}" for n in (1, 2, 3)])])
    orders = [[backend.address.port for backend in pool.candidates()] for _ in range(4)]
    assert orders == [[1, 2, 3], [2, 3, 1], [3, 1, 2], [1, 2, 3]]
