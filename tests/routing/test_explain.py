"""The reasons for which a client got its route, and for which it did not get the other routes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refractium import EngineSpec, ListenerRules, NameRegex, Route, Transport, define_protocol
from refractium.contract import NO, Identification, NeedMore, ProtocolMatch, Strength
from refractium.contract.metadata import MetadataKind
from refractium.engine.plan import Plan
from refractium.identify.everything import AnyProtocol
from refractium.proxy.forecast import forecast
from refractium.routing.explain import Considered, Result, explain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

KEYS = {
    "sni": MetadataKind.HOST_NAME,
    "alpn": MetadataKind.TEXTS,
    "host": MetadataKind.HOST,
    "user": MetadataKind.TEXT,
    "tls": MetadataKind.FLAG,
    "any": MetadataKind.ANY,
}
TO = "127.0.0.1:1"
NEAR, FAR, LAN = "10.1.1.1", "192.0.2.1", "10.0.0.0/8"
GIVEN: dict[str, Any] = {
    "sni": "www.a.example",
    "alpn": ("h2", "http/1.1"),
    "user": "joe",
    "tls": True,
    "any": ("x", "y"),
}


@define_protocol("said", max_bytes=99, metadata_keys=KEYS)
def said(data: bytes) -> Identification:
    if data.startswith(b"more"):
        return NeedMore(50)
    return ProtocolMatch(GIVEN, frozenset({"host"}) if data == b"pending" else frozenset()) if data else NO


@define_protocol("weak", max_bytes=9, strength=Strength.WEAK, server_first=True)
def weak(data: bytes) -> Identification:
    return ProtocolMatch() if data else NO


@define_protocol("broken", max_bytes=9)
def broken(_: bytes) -> Identification:
    raise ZeroDivisionError


@dataclass(frozen=True)
class Case:
    """Routes, and the results that a client must get."""

    routes: Sequence[Route]
    results: Sequence[str]
    why: Mapping[int, str]
    data: bytes = b"hello"
    client: str | None = None
    rules: ListenerRules | None = None


def considered(case: Case) -> list[Considered]:
    plan = Plan(EngineSpec(case.routes, listeners={"": case.rules or ListenerRules()}))
    router = plan.routers[Transport.TCP][""]
    way = forecast(router, plan.settings, Transport.TCP, case.data, case.client)
    answers = list(way.router.table.explain(way.data)) if way.data else []
    routes = plan.pools[Transport.TCP].routes
    found = explain(routes, router, answers, way.client, way.final.pool, is_silent=not way.data)
    return list(found)


def one(**conditions: Any) -> Route:
    return Route(said, TO, **conditions)


ANY = Route(AnyProtocol(), TO, id="rest")
CASES = {
    "a more specific name": Case(
        [one(), one(sni="**.example"), one(sni="*.a.example")],
        ["lost", "lost", "chosen"],
        {0: "has more specific conditions", 1: "has more specific conditions"},
    ),
    "an equal route": Case(
        [one(alpn="h2"), one(alpn="http/1.1")],
        ["chosen", "lost"],
        {1: "ranks equal, and stands earlier in the configuration"},
    ),
    "the condition client": Case(
        [one(), one(client=LAN)],
        ["lost", "chosen"],
        {0: "has the condition client"},
        client=NEAR,
    ),
    "access rules": Case(
        [one(allow=[LAN]), one(allow=["192.0.2.0/24"])],
        ["fails", "chosen"],
        {},
        client=FAR,
    ),
    "an earlier protocol": Case(
        [Route(weak, TO), one(), ANY],
        ["lost", "chosen", "lost"],
        {0: "protocol said is asked earlier", 2: "takes only the clients that no other route takes"},
    ),
    "another listener": Case(
        [Route(said, TO, id="elsewhere"), ANY],
        ["fails", "chosen"],
        {},
        rules=ListenerRules(["rest"]),
    ),
    "a silent client": Case(
        [one(), Route(weak, TO), ANY],
        ["fails", "chosen", "lost"],
        {2: "takes only the clients"},
        data=b"",
    ),
    "a silent client that several routes take": Case(
        [Route(weak, TO), one(on_timeout=True)], ["lost", "chosen"], {0: "has on_timeout = true"}, data=b""
    ),
    "a protocol that needs more": Case([one(), ANY], ["waits", "chosen"], {}, data=b"more"),
    "a pending key": Case(
        [one(host="a.example"), one(), ANY],
        ["waits", "lost", "lost"],
        {1: "protocol said is asked earlier", 2: "protocol said is asked earlier"},
        data=b"pending",
    ),
    "a fault": Case([Route(broken, TO), ANY], ["fails", "chosen"], {}),
    "two routes for the rest": Case(
        [ANY, Route(AnyProtocol(), TO, id="near", client=LAN)],
        ["lost", "chosen"],
        {0: "near has the condition client"},
        client=NEAR,
        data=b"x",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_each_route_has_a_result_and_a_reason(case: Case) -> None:
    found = considered(case)
    assert [route.result for route in found] == list(case.results)
    for at, why in case.why.items():
        assert why in found[at].why
    for at, route in enumerate(found):
        assert bool(route.why) == (at in case.why), route
        if route.result in (Result.FAILS, Result.WAITS):
            assert route.result in [condition.result for condition in route.conditions]


CONDITIONS: list[tuple[dict[str, Any], str, str, object]] = [
    ({"sni": "www.a.example"}, "sni", "holds", "www.a.example"),
    ({"sni": ("b.example", "*.b.example")}, "sni", "fails", "www.a.example"),
    ({"alpn": "h3"}, "alpn", "fails", ("h2", "http/1.1")),
    ({"host": "a.example"}, "host", "fails", None),
    ({"match": {"user": "j*"}}, "match.user", "holds", "joe"),
    ({"match": {"user": NameRegex("[a-c]+")}}, "match.user", "fails", "joe"),
    ({"match": {"tls": False}}, "match.tls", "fails", True),
    ({"match": {"any": "y"}}, "match.any", "holds", ("x", "y")),
    ({"client": LAN}, "client", "fails", FAR),
    ({"allow": ["192.0.2.1"], "deny": ["192.0.2.2"]}, "allow, deny", "holds", FAR),
    ({"deny": ["192.0.2.0/24"]}, "allow, deny", "fails", FAR),
]


@pytest.mark.parametrize(("conditions", "key", "result", "actual"), CONDITIONS)
def test_each_condition_is_told_with_the_value_of_the_client(
    conditions: dict[str, Any], key: str, result: str, actual: object
) -> None:
    (route, _) = considered(Case([one(**conditions), ANY], [], {}, client=FAR))
    (told,) = [condition for condition in route.conditions if condition.key == key]
    assert (told.result, told.actual) == (result, actual)
    assert told.wanted


sni = st.sampled_from([(), "www.a.example", "*.a.example", "**.example", "b.example"])
alpn = st.sampled_from([(), "h2", "h3", "http/*"])
user = st.sampled_from([None, "joe", "jane", "j*"])
networks = st.sampled_from([(), LAN, "192.0.2.0/24"])


@given(
    st.lists(st.tuples(sni, alpn, user, networks), min_size=1, max_size=6, unique=True),
    st.sampled_from([NEAR, FAR]),
    st.booleans(),
)
def test_the_chosen_route_is_the_first_choice_among_the_routes_whose_conditions_hold(
    conditions: list[tuple[Any, Any, Any, Any]],
    client: str,
    has_rest: bool,  # noqa: FBT001
) -> None:
    routes = [
        Route(
            said, TO, id=f"r{at}", sni=sni, alpn=alpn, match={"user": user} if user else {}, client=networks
        )
        for at, (sni, alpn, user, networks) in enumerate(conditions)
    ]
    found = considered(Case([*routes, ANY] if has_rest else routes, [], {}, client=client))
    holding = [
        route
        for route in found
        if all(condition.result is Result.HOLDS for condition in route.conditions)
        and not route.route.takes_the_rest
    ]
    assert {route.result for route in holding} <= {Result.CHOSEN, Result.LOST}
    chosen = [route for route in found if route.result is Result.CHOSEN]
    assert len(chosen) == (1 if holding or has_rest else 0)
    if holding:
        assert chosen[0] in holding
    assert all(route.why for route in found if route.result is Result.LOST)
