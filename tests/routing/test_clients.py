"""The route of a client by its address: the condition `client`, and access rules among equal routes."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from refractium import (
    ConfigError,
    Identification,
    ListenerRules,
    Protocol,
    ProtocolMatch,
    Refractium,
    Route,
    Transport,
    define_protocol,
)
from refractium.identify.everything import AnyProtocol
from refractium.routing import Pools, Router
from refractium.routing.route import fallback_route

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from refractium.contract import MetadataValue
    from refractium.routing import Pool

LAN: Final = "10.0.0.0/8"


def protocol(
    name: str, metadata: Mapping[str, MetadataValue] | None = None, *, server_first: bool = False
) -> Protocol:
    """Return a protocol that matches every client with this metadata."""

    @define_protocol(
        name, max_bytes=10, metadata_keys=frozenset({"sni", "alpn", "host"}), server_first=server_first
    )
    def identify(_: bytes) -> Identification:
        return ProtocolMatch(metadata or {})

    return identify


def route(number: int, protocol: Protocol, **keys: Any) -> Route:
    return Route(protocol, f"127.0.0.1:{number + 1}", **keys)


def number_of(pool: Pool | None, client: str) -> int | str | None:
    """Return the number of the route of a pool, or "denied" if the pool does not admit the client."""
    if pool is None:
        return None
    return pool.backends[0].address.port - 1 if pool.admits(client) else "denied"


def chosen(client: str, *routes: Route) -> int | str | None:
    """Return the number of the route that takes a client, "denied", or None without a route."""
    decision = Router(Pools(routes), 1024).for_client(client).table.decide(b"x")
    return number_of(decision[0], client) if isinstance(decision, tuple) else None


def chosen_for_silence(client: str, *routes: Route) -> int | str | None:
    return number_of(Router(Pools(routes), 1024).for_client(client).silent, client)


def table(*keys: dict[str, Any]) -> tuple[Route, ...]:
    """Return routes of one protocol, which offers sni a.b and the ALPN protocol h2."""
    said = protocol("said", {"sni": "a.b", "alpn": ("h2",)})
    return tuple(route(number, said, **one) for number, one in enumerate(keys))


@pytest.mark.parametrize(
    ("routes", "expected"),
    [
        # the condition
        (({"client": LAN},), {"10.1.2.3": 0, "11.0.0.1": None, "::1": None}),
        (({"client": [LAN, "2001:db8::/32", "::1"]},), {"2001:db8::9": 0, "::1": 0, "2001:db9::": None}),
        (({"client": LAN}, {}), {"10.0.0.1": 0, "192.0.2.1": 1}),
        (({}, {"client": LAN}), {"10.0.0.1": 1, "192.0.2.1": 0}),
        # the order of the file, however narrow a network is
        (({"client": LAN}, {"client": "10.1.0.0/16"}), {"10.1.0.1": 0, "10.2.0.1": 0}),
        (({"client": "10.1.0.0/16"}, {"client": LAN}), {"10.1.0.1": 0, "10.2.0.1": 1}),
        (
            ({"client": "10.1.0.0/16"}, {"client": LAN}, {"client": "0.0.0.0/0"}, {}),
            {"11.0.0.1": 2, "::1": 3},
        ),
        # names and alpn first
        (({"client": LAN}, {"sni": "a.b"}), {"10.0.0.1": 1, "11.0.0.1": 1}),
        (
            ({"client": LAN}, {"sni": "*.b"}, {"sni": "a.b", "client": "10.1.0.0/16"}),
            {"10.1.0.1": 2, "10.2.0.1": 1},
        ),
        (({"client": LAN}, {"alpn": "h2"}), {"10.0.0.1": 1}),
        (({"alpn": "h2"}, {"alpn": "h2", "client": LAN}), {"10.0.0.1": 1, "11.0.0.1": 0}),
        # access rules of equal routes
        (({"allow": [LAN]}, {}), {"10.0.0.1": 0, "11.0.0.1": 1}),
        (({"deny": [LAN]}, {}), {"10.0.0.1": 1, "11.0.0.1": 0}),
        (({"allow": [LAN]}, {"allow": ["11.0.0.0/8"]}), {"10.0.0.1": 0, "11.0.0.1": 1, "12.0.0.1": "denied"}),
        (
            ({"allow": [LAN], "deny": ["10.6.0.0/16"]}, {"deny": ["10.6.6.6"]}),
            {"10.6.0.1": 1, "10.6.6.6": "denied"},
        ),
        (
            ({"client": LAN, "allow": ["10.1.0.0/16"]}, {"client": LAN}),
            {"10.1.0.1": 0, "10.2.0.1": 1, "11.0.0.1": None},
        ),
        # access rules never lead to a route that ranks lower
        (({"allow": [LAN]},), {"11.0.0.1": "denied"}),
        (({"client": LAN, "allow": ["10.1.0.0/16"]}, {}), {"10.2.0.1": "denied", "11.0.0.1": 1}),
        (({"sni": "a.b", "allow": [LAN]}, {"sni": "*.b"}, {}), {"11.0.0.1": "denied"}),
        (({"alpn": "h2", "allow": [LAN]}, {}), {"11.0.0.1": "denied"}),
    ],
)
def test_a_client_gets_the_route_for_its_address(
    routes: Sequence[dict[str, Any]], expected: Mapping[str, int | str | None]
) -> None:
    assert {client: chosen(client, *table(*routes)) for client in expected} == expected


def test_a_route_whose_client_does_not_hold_leaves_the_client_to_the_next_protocol() -> None:
    one, other = protocol("one"), protocol("other")
    routes = [route(0, one, client=LAN), route(1, other, client="192.0.2.0/24")]
    assert [chosen(client, *routes) for client in ("10.0.0.1", "192.0.2.1", "11.0.0.1")] == [0, 1, None]
    routes = [route(0, one, client=LAN, allow=["10.1.0.0/16"]), route(1, other)]
    assert [chosen(client, *routes) for client in ("10.1.0.1", "10.2.0.1", "11.0.0.1")] == [0, "denied", 1]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"client": LAN}, {"10.0.0.1": 0, "11.0.0.1": 1}),
        ({"allow": [LAN]}, {"10.0.0.1": 0, "11.0.0.1": 1}),
        ({"client": LAN, "deny": ["10.6.6.6"]}, {"10.6.6.6": "denied", "11.0.0.1": 1}),
    ],
)
def test_the_routes_for_all_other_clients_go_by_the_client_as_well(
    keys: dict[str, Any], expected: Mapping[str, int | str]
) -> None:
    routes = [route(0, AnyProtocol(), **keys), fallback_route(Transport.TCP, ["127.0.0.1:2"])]
    router = Router(Pools(routes), 1024)
    assert {client: number_of(router.for_client(client).fallback, client) for client in expected} == expected


@pytest.mark.parametrize(
    ("routes", "expected"),
    [
        (({"client": LAN}, {}), {"10.0.0.1": 0, "11.0.0.1": 1}),
        (({}, {"client": LAN}), {"10.0.0.1": 1, "11.0.0.1": 0}),
        (({"client": LAN},), {"11.0.0.1": None}),
        (({"allow": [LAN]}, {}), {"10.0.0.1": 0, "11.0.0.1": 1}),
        (({"allow": [LAN]}, {"name": "other"}), {"10.0.0.1": 0, "11.0.0.1": "denied"}),
        (({"client": LAN}, {"name": "other"}), {"10.0.0.1": 0, "11.0.0.1": 1}),
        (({"client": LAN, "on_timeout": None}, {"name": "other"}), {"10.0.0.1": 1}),
        (
            ({"on_timeout": None}, {"client": LAN, "on_timeout": None, "name": "other"}),
            {"10.0.0.1": 1, "11.0.0.1": 0},
        ),
        (({"client": LAN, "on_timeout": False}, {}), {"10.0.0.1": 1}),
    ],
)
def test_a_silent_client_gets_the_route_for_its_address(
    routes: Sequence[dict[str, Any]], expected: Mapping[str, int | str | None]
) -> None:
    made = []
    for number, one in enumerate(routes):
        keys = {"on_timeout": True, "name": "quiet", **one}
        made.append(route(number, protocol(keys.pop("name"), server_first=True), **keys))
    assert {client: chosen_for_silence(client, *made) for client in expected} == expected


# The lists draw from a few networks, so that two lists overlap in every way.
NETWORKS: Final = (
    "0.0.0.0/0",
    LAN,
    "10.0.0.0/9",
    "10.0.0.0/30",
    "10.0.0.1",
    "11.0.0.0/8",
    "::/0",
    "2001:db8::/32",
)
CLIENTS: Final = (
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.9",
    "10.200.0.1",
    "11.0.0.1",
    "12.0.0.1",
    "2001:db8::1",
    "fe80::1%1",
)
lists_of = st.lists(st.sampled_from(NETWORKS), max_size=2, unique=True).map(tuple)


@dataclass(frozen=True)
class Keys:
    """The keys of a route that decide about a client."""

    protocol: str
    sni: tuple[str, ...]
    host: tuple[str, ...]
    alpn: tuple[str, ...]
    client: tuple[str, ...]
    allow: tuple[str, ...]
    deny: tuple[str, ...]

    def rank(self, sni: str, host: str) -> tuple[object, ...]:
        """Return the rank of a matching route: the route with the lowest rank is the most specific."""
        return specific(self.sni, sni), specific(self.host, host), not self.alpn, not self.client

    def matches(self, sni: str, host: str, client: str) -> bool:
        return (
            (not self.sni or specific(self.sni, sni) < NO_NAME)
            and (not self.host or specific(self.host, host) < NO_NAME)
            and (not self.alpn or "h2" in self.alpn)
            and (not self.client or contains(self.client, client))
        )

    def admits(self, client: str) -> bool:
        return (not self.allow or contains(self.allow, client)) and not contains(self.deny, client)


NO_NAME: Final = 9


def specific(names: tuple[str, ...], name: str) -> int:
    return min((0 if one == name else 1 for one in names if one in {name, f"*.{name[2:]}"}), default=NO_NAME)


def contains(networks: tuple[str, ...], client: str) -> bool:
    return any(ip_address(client) in ip_network(network) for network in networks)


def expected_of(routes: Sequence[Keys], sni: str, host: str, client: str) -> int | str | None:
    """Return the number of the route that a client gets, by the documented order in its plainest form."""
    for name in dict.fromkeys(
        one.protocol for one in routes if not one.client or contains(one.client, client)
    ):
        matching = [one for one in routes if one.protocol == name and one.matches(sni, host, client)]
        if matching:
            best = min(one.rank(sni, host) for one in matching)
            equal = [one for one in matching if one.rank(sni, host) == best]
            admitting = [one for one in equal if one.admits(client)]
            return next((at for at, one in enumerate(routes) if admitting and one is admitting[0]), "denied")
    return None


names = st.lists(st.sampled_from(["a.b", "*.b", "c.b"]), max_size=2, unique=True).map(tuple)
keys = st.builds(
    Keys,
    st.sampled_from(["one", "other"]),
    names,
    names,
    st.sampled_from([(), ("h2",), ("h3",), ("h3", "h2")]),
    lists_of,
    lists_of,
    lists_of,
)


@given(st.lists(keys, max_size=6), st.sampled_from(["a.b", "c.b"]), st.sampled_from(["a.b", "d.b"]))
@example([Keys("one", (), (), (), (), ("10.0.0.1",), ()), Keys("one", (), (), (), (), (), ())], "a.b", "a.b")
def test_every_client_gets_the_route_of_the_documented_order(routes: list[Keys], sni: str, host: str) -> None:
    protocols = {
        name: protocol(name, {"sni": sni, "host": host, "alpn": ("h2",)}) for name in ("one", "other")
    }
    router = Router(
        Pools(
            [
                route(number, protocols[one.protocol], **{key: getattr(one, key) for key in CONDITIONS})
                for number, one in enumerate(routes)
            ]
        ),
        1024,
    )
    for client in CLIENTS:
        decision = router.for_client(client).table.decide(b"x")
        found = number_of(decision[0], client) if isinstance(decision, tuple) else None
        assert found == expected_of(routes, sni, host, client), client


def expected_for_silence(
    routes: Sequence[Keys], taking: Sequence[bool | None], client: str
) -> int | str | None:
    """Return the number of the route that a silent client gets; each protocol lets the server speak first."""
    open_to = [
        (not asked, not one.client, at)
        for at, (one, asked) in enumerate(zip(routes, taking, strict=True))
        if asked is not False and (not one.client or contains(one.client, client))
    ]
    if not open_to:
        return None
    *best, first = min(open_to)
    equal = [
        at for *rank, at in sorted(open_to) if rank == best and routes[at].protocol == routes[first].protocol
    ]
    return next((at for at in equal if routes[at].admits(client)), "denied")


@given(st.lists(st.tuples(keys, st.sampled_from([None, True, False])), max_size=6))
def test_every_silent_client_gets_the_route_of_the_documented_order(
    drawn: list[tuple[Keys, bool | None]],
) -> None:
    protocols = {name: protocol(name, server_first=True) for name in ("one", "other")}
    router = Router(
        Pools(
            [
                route(
                    number,
                    protocols[one.protocol],
                    on_timeout=asked,
                    **{key: getattr(one, key) for key in CONDITIONS},
                )
                for number, (one, asked) in enumerate(drawn)
            ]
        ),
        1024,
    )
    for client in CLIENTS:
        expected = expected_for_silence([one for one, _ in drawn], [asked for _, asked in drawn], client)
        assert number_of(router.for_client(client).silent, client) == expected, client


CONDITIONS: Final = ("sni", "host", "alpn", "client", "allow", "deny")


def test_a_router_without_conditions_on_clients_does_not_look_at_the_client() -> None:
    routes = table({"sni": "a.b", "allow": [LAN]}, {"deny": [LAN]})
    router = Router(Pools(routes), 1024)
    assert not router.depends_on_client
    assert router.for_client("10.0.0.1") is router


def test_clients_with_the_same_routes_share_a_router() -> None:
    access = [f"10.0.{number}.0/24" for number in range(256)]
    router = Router(Pools(table({"allow": access}, {})), 1024)
    routers = {router.for_client(f"{first}.0.{third}.9") for first in (10, 11) for third in range(256)}
    assert len(routers) == 2


def test_each_listener_judges_its_own_routes() -> None:
    said = protocol("said")
    routes = [route(0, said, id="lan", client=LAN), route(1, said, id="all")]
    only = Router(Pools(routes), 1024, ListenerRules(["all"]))
    assert not only.depends_on_client
    decision = only.for_client("10.0.0.1").table.decide(b"x")
    assert isinstance(decision, tuple)
    assert decision[0].label == "all"


def test_the_networks_of_a_condition_are_checked() -> None:
    with pytest.raises(ConfigError) as caught:
        route(0, protocol("said"), client=["10.0.0.1/8", LAN, "::ffff:10.0.0.1", "x"])
    assert [one.where for one in caught.value.problems] == ["client[0]", "client[2]", "client[3]"]


def test_a_program_cannot_have_a_route_that_no_client_reaches() -> None:
    said = protocol("said")
    with pytest.raises(ConfigError, match=r"tcp\[1\]: no client reaches this route"):
        Refractium([route(0, said), route(1, said, allow=[LAN])])
    Refractium([route(0, said, allow=[LAN]), route(1, said)])


def test_a_route_names_its_networks() -> None:
    assert (
        str(route(0, protocol("said"), client=LAN, sni=("a.b", "c.d")))
        == "said sni=a.b,c.d client=10.0.0.0/8"
    )
