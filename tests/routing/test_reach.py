"""The routes that no client reaches: what `reaches` says is what the router does with every client."""

from __future__ import annotations

import time
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refractium import (
    ConfigError,
    Identification,
    ListenerRules,
    NameRegex,
    Protocol,
    ProtocolMatch,
    Refractium,
    Route,
    Transport,
    define_protocol,
)
from refractium.addresses.networks import Networks, models_of, parse_network
from refractium.contract import MetadataKind
from refractium.identify.everything import AnyProtocol
from refractium.routing import Pools, Router
from refractium.routing.reach import reaches

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from refractium.contract import MetadataValue

KINDS: Final = {
    "sni": MetadataKind.HOST_NAME,
    "alpn": MetadataKind.TEXTS,
    "user": MetadataKind.TEXT,
    "ssl": MetadataKind.FLAG,
    "other": MetadataKind.ANY,
}


class Said:
    """A protocol that matches every client, with the metadata in `metadata`."""

    def __init__(self, name: str, *, server_first: bool = False) -> None:
        self.metadata: Mapping[str, MetadataValue] = {}

        @define_protocol(name, max_bytes=1, metadata_keys=KINDS, server_first=server_first)
        def identify(_: bytes) -> Identification:
            return ProtocolMatch(self.metadata)

        self.protocol: Protocol = identify


def routes_of(protocol: Protocol, *keys: dict[str, Any]) -> list[Route]:
    return [Route(protocol, f"127.0.0.1:{at + 1}", **one) for at, one in enumerate(keys)]


def unreached(*keys: dict[str, Any], rules: ListenerRules | None = None) -> list[int]:
    """Return the numbers of the routes of one protocol that no client reaches."""
    found = reaches(routes_of(Said("said").protocol, *keys), [(Transport.TCP, rules or ListenerRules())])
    assert all(one.is_judged and one.is_served for one in found)
    return [at for at, one in enumerate(found) if not one.is_reached]


R: Final = NameRegex("a.*")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        # networks: one earlier route, and several earlier routes together
        (({"client": "10.0.0.0/8"}, {"client": "10.1.0.0/16"}), [1]),
        (({"client": "10.0.0.0/9"}, {"client": "10.128.0.0/9"}, {"client": "10.0.0.0/8"}), [2]),
        (({"client": ["0.0.0.0/0", "::/0"]}, {}), [1]),
        (({"client": ["0.0.0.0/1", "128.0.0.0/1"]}, {"client": ["::/0"]}, {}), [2]),
        # access rules: the first route that admits a client wins
        (({"allow": ["10.0.0.0/8"]}, {"deny": ["10.0.0.0/8"]}, {"allow": ["10.1.0.0/16"]}), [2]),
        # patterns of several routes together
        (
            (
                {"sni": "a", "client": "10.0.0.0/8"},
                {"sni": "b", "client": "10.0.0.0/8"},
                {"sni": ["a", "b"], "client": "10.1.0.0/16"},
            ),
            [2],
        ),
        # patterns with *, of which an earlier one matches more texts
        (({"match": {"user": "*a*"}}, {"match": {"user": "a*"}}), [1]),
        (({"match": {"user": "*"}}, {"match": {"user": "**"}}), [1]),
        # flags: a route for each value
        (({"match": {"ssl": True}}, {"match": {"ssl": False}}, {}), [2]),
        (({"match": {"ssl": True}}, {"match": {"ssl": False}}, {"client": "10.0.0.0/8"}), [2]),
        (({"sni": R, "client": "10.0.0.0/8"}, {"sni": R, "client": "10.1.0.0/16"}), [1]),
    ],
)
def test_a_route_whose_clients_all_go_to_other_routes_is_not_reached(
    keys: Sequence[dict[str, Any]], expected: list[int]
) -> None:
    assert unreached(*keys) == expected


@pytest.mark.parametrize(
    "keys",
    [
        ({"client": "10.1.0.0/16"}, {"client": "10.0.0.0/8"}),
        ({"client": "10.0.0.0/8"}, {"client": ["10.1.0.0/16", "::1"]}),
        ({"client": "10.0.0.0/9"}, {"client": "10.128.0.0/10"}, {"client": "10.0.0.0/8"}),
        ({"client": "0.0.0.0/0"}, {}),
        ({"allow": ["10.0.0.0/8"]}, {"allow": ["10.1.0.0/16", "::1"]}),
        ({"allow": ["10.0.0.0/8"], "deny": ["10.1.1.1"]}, {"allow": ["10.1.0.0/16"]}),
        ({"sni": "a"}, {"sni": "*.a"}, {"sni": "**.a"}, {}),
        ({"sni": "*.a"}, {"sni": "**.a"}),
        ({"match": {"user": "a*"}}, {"match": {"user": "*a*"}}),
        ({"match": {"user": "*a"}}, {"match": {"user": "a*"}}),
        ({"match": {"user": "*"}}, {}),
        ({"match": {"ssl": True}}, {}),
        ({"match": {"ssl": True}, "sni": "a"}, {"match": {"ssl": False}}, {}),
        ({"match": {"other": [True, False]}}, {}),
        # regexes: only equal regexes match the same names for certain
        ({"sni": NameRegex(".*")}, {"sni": R}),
        ({"sni": "a", "alpn": "h2"}, {"sni": "a"}, {"alpn": "h2"}, {}),
    ],
)
def test_a_route_that_a_client_reaches_is_reached(keys: Sequence[dict[str, Any]]) -> None:
    assert unreached(*keys) == []


def test_a_route_whose_clients_the_listener_refuses_is_not_reached() -> None:
    keys = {"client": "10.0.0.0/8"}, {"client": "192.0.2.1"}
    assert unreached(*keys, rules=ListenerRules(deny=["10.0.0.0/8"])) == [0]
    assert unreached(*keys, rules=ListenerRules(allow=["10.1.0.0/16"])) == [1]
    assert unreached(*keys, rules=ListenerRules(deny=["10.0.0.0/9"])) == []
    routes = routes_of(Said("said").protocol, *keys)
    everywhere = [(Transport.TCP, ListenerRules(deny=["10.0.0.0/8"])), (Transport.TCP, ListenerRules())]
    assert all(one.is_reached for one in reaches(routes, everywhere))


def test_a_route_that_only_silent_clients_reach_is_reached() -> None:
    keys = {"client": "10.0.0.0/8"}, {"client": "10.1.0.0/16", "on_timeout": True}
    first, second = reaches(routes_of(Said("said").protocol, *keys), [(Transport.TCP, ListenerRules())])
    assert (first.is_reached, second.is_reached) == (True, True)


def test_the_rivals_for_silent_clients_are_those_of_each_listener() -> None:
    ftp, smtp = Said("ftp", server_first=True).protocol, Said("smtp").protocol
    routes = [Route(ftp, "a:1"), Route(smtp, "a:2", on_timeout=True), Route(AnyProtocol(), "a:3")]
    alone = [(Transport.TCP, ListenerRules(["ftp"])), (Transport.TCP, ListenerRules(["smtp"]))]
    assert [list(one.silent_rivals) for one in reaches(routes, alone)] == [[], [], []]
    both = [*alone, (Transport.TCP, ListenerRules())]
    assert [list(one.silent_rivals) for one in reaches(routes, both)] == [[1], [], []]


@pytest.mark.parametrize(
    ("keys", "losers"),
    [
        (({"sni": "*.a"}, {"alpn": "h2"}), {1: 0}),
        (({"alpn": "h2"}, {"sni": "*.a"}), {0: 1}),
        (({"client": "10.0.0.0/8"}, {"sni": "a"}), {0: 1}),
        (({"match": {"ssl": True}}, {"sni": "a", "alpn": "h2"}), {0: 1}),
        (({"sni": "*.a", "match": {"user": "x"}}, {"sni": ["b", "c.a"], "alpn": "h2"}), {0: 1}),
        (({"sni": R, "match": {"user": "x"}}, {"sni": R, "alpn": "h2"}), {0: 1}),
    ],
)
def test_routes_with_conditions_on_different_keys_overlap(
    keys: Sequence[dict[str, Any]], losers: dict[int, int]
) -> None:
    found = reaches(routes_of(Said("said").protocol, *keys), [(Transport.TCP, ListenerRules())])
    assert {at: one.overlaps for at, one in enumerate(found) if one.overlaps is not None} == losers


@pytest.mark.parametrize(
    "keys",
    [
        # One route has the conditions of the other, and more.
        ({"sni": "*.a"}, {"sni": "*.a", "alpn": "h2"}, {}),
        ({"sni": "a"}, {"sni": "*.a"}, {"sni": "b"}),
        # No client can match both.
        ({"sni": "a", "match": {"user": "x"}}, {"sni": "b", "alpn": "h2"}),
        ({"match": {"ssl": True, "user": "x"}}, {"match": {"ssl": False}, "sni": "a"}),
        ({"client": "10.0.0.0/8", "alpn": "h2"}, {"client": "11.0.0.0/8", "sni": "a"}),
        # A route with the conditions of both gets these clients.
        ({"sni": "a"}, {"alpn": "h2"}, {"sni": "a", "alpn": "h2"}),
        # Both routes lead to the same backends.
        ({"sni": "a", "forward_to": "a:1"}, {"alpn": "h2", "forward_to": "a:1"}),
        # Regexes: nothing is known about the texts that two of them match.
        ({"sni": R, "match": {"user": "x"}}, {"sni": NameRegex(".*"), "alpn": "h2"}),
    ],
)
def test_routes_that_only_look_like_overlapping_do_not_overlap(keys: Sequence[dict[str, Any]]) -> None:
    protocol = Said("said").protocol
    routes = [Route(protocol, **{"forward_to": f"b:{at + 1}", **one}) for at, one in enumerate(keys)]
    assert [one.overlaps for one in reaches(routes, [(Transport.TCP, ListenerRules())])] == [None] * len(keys)


NETWORKS: Final = [
    "10.0.0.0/8",
    "10.0.0.0/9",
    "10.128.0.0/9",
    "10.1.0.0/16",
    "0.0.0.0/0",
    "::/0",
    "::1",
    "::2/127",
]


@given(st.lists(st.sampled_from(NETWORKS)), st.ip_addresses())
def test_a_model_address_lies_in_the_same_networks_as_each_client(texts: list[str], client: Any) -> None:
    models = list(models_of(map(parse_network, texts)))
    assert len(models) <= len(set(texts)) + 2
    if client.version == 6 and client.ipv4_mapped is not None:
        return

    def around(address: str) -> set[str]:
        return {text for text in texts if address in Networks([text])}

    assert around(str(client)) in list(map(around, models))


FLAGS: Final = (True, False)


def some(*values: Any) -> st.SearchStrategy[Any]:
    return st.lists(st.sampled_from(values), min_size=1, max_size=3, unique=True)


CONDITIONS: Final = st.fixed_dictionaries(
    {},
    optional={
        "sni": some("a", "b.a", "*.a", "**.a", "**.b.a", NameRegex("[ab]"), NameRegex(".*")),
        "alpn": some("h2", "h*", "*", "*2", NameRegex("h.")),
        "user": some("a", "b", "a*", "*a", "*a*", "a*b", "**", NameRegex("a+")),
        "ssl": some(*FLAGS),
        "other": some("a", "a*", *FLAGS),
    },
)
ROUTES: Final = st.lists(
    st.fixed_dictionaries(
        {"match": CONDITIONS},
        optional={
            "client": some(*NETWORKS),
            "allow": some(*NETWORKS),
            "deny": some(*NETWORKS),
            "on_timeout": st.booleans(),
        },
    ),
    min_size=2,
    max_size=6,
)
METADATA: Final = st.fixed_dictionaries(
    {},
    optional={
        "sni": st.sampled_from(["a", "b", "b.a", "c.a", "x.b.a", "x.y.z.a", "", "aa"]),
        "alpn": st.lists(st.sampled_from(["h2", "h3", "x", "x2"])).map(tuple),
        "user": st.sampled_from(["", "a", "b", "ab", "ba", "aab", "bab", "aa", "c"]),
        "ssl": st.booleans(),
        "other": st.sampled_from(["a", "ab", "b", True, False, ("a", "b"), ()]),
    },
)
ADDRESSES: Final = st.sampled_from(
    ["10.0.0.1", "10.1.0.1", "10.128.0.1", "10.200.1.1", "192.0.2.1", "::1", "::2", "::9"]
)


@pytest.mark.slow
@settings(max_examples=200)
@given(ROUTES, st.lists(st.tuples(METADATA, ADDRESSES), max_size=30))
def test_no_client_reaches_a_route_or_an_entry_that_is_said_not_to_be_reached(
    keys: list[dict[str, Any]], clients: list[tuple[Mapping[str, MetadataValue], str]]
) -> None:
    said = Said("said")
    routes = routes_of(said.protocol, *keys)
    try:
        Refractium(routes)
    except ConfigError:
        return
    found = reaches(routes, [(Transport.TCP, ListenerRules())])
    router = Router(Pools(routes), 1)
    for metadata, address in clients:
        said.metadata = metadata
        mine = router.for_client(address)
        decision = mine.table.decide(b"x", final=True)
        for pool in (decision[0] if isinstance(decision, tuple) else None, mine.silent):
            if pool is None:
                continue
            reach = found[pool.backends[0].address.port - 1]
            assert reach.is_reached
            assert reach.is_open or not pool.admits(address)
            for text in reach.route.clients:
                assert address not in Networks([text]) or ("client", text) in reach.reached


@pytest.mark.slow
def test_the_time_to_judge_routes_grows_with_their_number_only() -> None:
    """800 routes that differ in their clients took 3 s, because each was compared with all earlier routes."""
    networks = [str(ip_address(0x0A000000 + 256 * at)) + "/24" for at in range(800)]
    said = Said("said").protocol
    for key in ("client", "allow"):
        routes = routes_of(said, *({key: [one], "on_timeout": key == "client"} for one in networks))
        began = time.process_time()
        Refractium(routes)
        judged = time.process_time() - began
        reaches(routes, [(Transport.TCP, ListenerRules())])
        took = time.process_time() - began
        assert judged < 1, key
        assert took < 2, key
