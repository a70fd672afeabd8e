"""Patterns for names: exact, wildcards of one label and of any depth, and regexes."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refractium import ConfigError, NameRegex, Protocol, ProtocolMatch, Route, define_protocol
from refractium.routing import Pools, Router
from refractium.routing.names import NameIndex, request_host, server_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from refractium.routing.names import NamePattern

TABLE: Final[dict[str, dict[str, bool]]] = {
    "a.example": {"a.example": True, "b.a.example": False, "aa.example": False},
    "*.example.org": {
        "a.example.org": True,
        "example.org": False,
        "b.a.example.org": False,
        ".example.org": False,
        "aexample.org": False,
    },
    "**.example.org": {
        "a.example.org": True,
        "b.a.example.org": True,
        "c.b.a.example.org": True,
        "example.org": False,
        ".example.org": False,
        "aexample.org": False,
        "a.example.org.evil": False,
        f"{'a.' * 120}example.org": True,
    },
}
REGEXES: Final[dict[str, dict[str, bool]]] = {
    r"[a-z]+\.example\.org": {
        "a.example.org": True,
        "a1.example.org": False,
        "b.a.example.org": False,
        "a.example.org.evil": False,
        "evil a.example.org": False,
        "a.example.org\n": False,
    },
    r"^(www|api)-\d+\.example$": {"www-1.example": True, "api-22.example": True, "www-.example": False},
    r"WWW\.Example": {"www.example": True},
    ".*": {"a": True, "": True, "a.b": True, f"{'a.' * 126}a": True, f"{'a.' * 127}a": False},
    "a|b": {"a": True, "b": True, "ab": False, "c": False},
    r"\p{Greek}+": {"\u03b1\u03b2": True, "a": False, "\udc80": False},
}
CASES: Final = [
    *((pattern, name, holds) for pattern, names in TABLE.items() for name, holds in names.items()),
    *((NameRegex(regex), name, holds) for regex, names in REGEXES.items() for name, holds in names.items()),
]


@pytest.mark.parametrize(("pattern", "name", "holds"), CASES)
def test_a_pattern_stands_for_names(pattern: NamePattern, name: str, *, holds: bool) -> None:
    index = NameIndex(min)
    index.add(pattern, 1)
    assert list(index.lookup(name)) == ([1] if holds else [])
    assert list(index.lookup(None)) == []


@pytest.mark.parametrize(
    "name",
    [
        "*",
        "**",
        "***",
        "*.",
        "**.",
        "a.*.b",
        "*.*.b",
        "**.*.b",
        "*.**.b",
        "***.b",
        "a*.b",
        "*a.b",
        "a.**",
        "**b.c",
    ],
)
@pytest.mark.parametrize("check", [server_name, request_host])
def test_other_forms_of_wildcards_are_refused_with_the_possible_forms(name: str, check: Any) -> None:
    with pytest.raises(ValueError, match=r"\*\.example\.org"):
        check(name)


def test_names_are_compared_in_lower_case_without_a_final_dot() -> None:
    assert server_name("**.Example.ORG.") == "**.example.org"
    assert server_name("*.Example.ORG.") == "*.example.org"
    assert server_name("*.xn--bcher-kva.example") == "*.xn--bcher-kva.example"
    assert request_host("**.Example.ORG") == "**.example.org"
    for written in "[2001:DB8::1]", "[2001:db8:0:0:0:0:0:1]", "[2001:0db8::0001]":
        assert request_host(written) == "[2001:db8::1]"


@pytest.mark.parametrize(
    "regex", ["(", "[z-a]", "a(?=b)", r"(a)\1", "a{2000}", "*", "\ud800", "x" * (1 << 20)]
)
def test_a_regex_that_re2_refuses_is_not_a_pattern(regex: str) -> None:
    with pytest.raises(ValueError, match="regex"):
        server_name(NameRegex(regex))


def test_without_google_re2_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "re2", None)
    with pytest.raises(ConfigError) as caught:
        Route(telling("a"), "127.0.0.1:1", sni=["a.example", NameRegex("a")])
    (problem,) = caught.value.problems
    assert problem.where == "sni[1]"
    assert "pip install 'refractium-core[regex]'" in problem.message


def telling(name: str | None, key: str = "sni") -> Protocol:
    """Return a protocol that matches every client, with a name in its metadata."""

    @define_protocol("said", max_bytes=10, metadata_keys=frozenset({"sni", "host"}))
    def identify(_: bytes) -> ProtocolMatch:
        return ProtocolMatch({} if name is None else {key: name})

    return identify


def chosen(name: str | None, *patterns: Sequence[NamePattern], key: str = "sni") -> int | None:
    """Return the number of the route that takes a client with this name."""
    said = telling(name, key)
    routes = [Route(said, f"127.0.0.1:{at + 1}", **{key: one}) for at, one in enumerate(patterns)]  # type: ignore[arg-type]
    decision = Router(Pools(routes), 1024).table.decide(b"x")
    return decision[0].backends[0].address.port - 1 if isinstance(decision, tuple) else None


@pytest.mark.parametrize("key", ["sni", "host"])
@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("a.b.example.org", 0),
        ("c.b.example.org", 1),
        ("d.c.b.example.org", 2),
        ("c.example.org", 3),
        ("b.example.org", 3),
        ("example.org", 4),
        ("example.com", 5),
        (None, 6),
        ("x" * 254, 6),
    ],
)
def test_the_more_specific_pattern_wins_in_every_order_of_the_routes(
    key: str, name: str | None, number: int
) -> None:
    patterns: list[list[NamePattern]] = [
        ["a.b.example.org"],
        ["*.b.example.org"],
        ["**.b.example.org"],
        ["**.example.org"],
        [NameRegex(r".*\.org")],
        [NameRegex(".*")],
        [],
    ]
    for start in range(len(patterns)):  # a rotation keeps the two regexes in order, or swaps them
        order = [*range(start, len(patterns)), *range(start)]
        found = chosen(name, *(patterns[at] for at in order), key=key)
        expected = 5 if number == 4 and order.index(5) < order.index(4) else number
        assert found is not None
        assert order[found] == expected, order


def test_regexes_are_tried_in_the_order_of_the_configuration_whatever_the_clients() -> None:
    said = telling("www.example")
    one = Route(said, "127.0.0.1:1", sni=NameRegex(r"www\..*"))
    two = Route(said, "127.0.0.1:2", sni=NameRegex(r".*\.example"), client="10.0.0.0/8")
    for routes, port in (((one, two), 1), ((two, one), 2)):
        decision = Router(Pools(routes), 1024).for_client("10.0.0.1").table.decide(b"x")
        assert isinstance(decision, tuple)
        assert decision[0].backends[0].address.port == port


LABELS: Final = st.sampled_from(["a", "b", "c"])
names = st.lists(LABELS, min_size=1, max_size=4).map(".".join)
patterns = st.one_of(
    names,
    names.map(lambda name: f"*.{name}"),
    names.map(lambda name: f"**.{name}"),
    st.sampled_from([NameRegex(r"a.*"), NameRegex(r"(?:[a-z]\.)+b"), NameRegex(r"[ab]"), NameRegex(r".*c")]),
)


def rank(pattern: NamePattern, name: str, regexes: list[NamePattern]) -> tuple[int, ...] | None:
    """Return the rank of a pattern for a name, lowest for the most specific pattern; None without a match."""
    if isinstance(pattern, NameRegex):
        return (3, regexes.index(pattern)) if re.fullmatch(pattern.regex, name) else None
    if not pattern.startswith("*"):
        return (0,) if pattern == name else None
    suffix = pattern.lstrip("*")
    front = name.removesuffix(suffix)
    if front == name or not front:
        return None
    if pattern.startswith("**"):
        return (2, -len(suffix))
    return (1,) if "." not in front else None


@given(st.lists(st.lists(patterns, max_size=3), max_size=6), names)
def test_the_route_is_that_of_the_most_specific_pattern(routes: list[list[NamePattern]], name: str) -> None:
    regexes = list(dict.fromkeys(one for route in routes for one in route if isinstance(one, NameRegex)))
    best: tuple[tuple[int, ...], int] | None = None
    for number, route in enumerate(routes):
        ranks = [rank(one, name, regexes) for one in route] if route else [(4,)]  # type: ignore[arg-type]
        for found in ranks:
            if found is not None and (best is None or (found, number) < best):
                best = found, number
    assert chosen(name, *routes) == (None if best is None else best[1])


def test_a_long_name_of_a_client_costs_no_long_search() -> None:
    index = NameIndex(min)
    index.add("**.example.org", 1)
    index.add(NameRegex("(?:.*a){20}"), 2)
    assert list(index.lookup("a." * 500_000 + "example.org")) == []


def test_the_patterns_of_a_route_are_checked_with_their_places() -> None:
    with pytest.raises(ConfigError) as caught:
        Route(telling("a"), "127.0.0.1:1", sni=["a", "a.*.b", NameRegex("(")], host="*")
    assert [one.where for one in caught.value.problems] == ["sni[1]", "sni[2]", "host"]


def test_a_route_shows_its_patterns() -> None:
    route = Route(telling("a"), "127.0.0.1:1", sni=["**.a", NameRegex("^a$")])
    assert str(route) == "said sni=**.a,{ regex = '^a$' }"
