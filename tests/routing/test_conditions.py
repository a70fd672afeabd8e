"""Conditions on the metadata keys that protocols declare."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from refractium import (
    ConfigError,
    Identification,
    NameRegex,
    ProtocolMatch,
    Refractium,
    Route,
    define_protocol,
)
from refractium.contract import MetadataKind
from refractium.contract.metadata import kinds_of
from refractium.identify import Undecided, Waiting
from refractium.routing import Pools, Router

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from refractium import Protocol
    from refractium.contract import MetadataValue
    from refractium.identify import Decision

KINDS: Final = {
    "name": MetadataKind.HOST_NAME,
    "address": MetadataKind.HOST,
    "database": MetadataKind.TEXT,
    "offers": MetadataKind.TEXTS,
    "ssl": MetadataKind.FLAG,
    "thing": MetadataKind.ANY,
}


def protocol(
    metadata: Mapping[str, MetadataValue],
    pending: frozenset[str] = frozenset(),
    keys: Mapping[str, MetadataKind] | frozenset[str] = KINDS,
) -> Protocol:
    """Return a protocol that matches every client with this metadata."""

    @define_protocol("pg", max_bytes=10, metadata_keys=keys)
    def identify(_: bytes) -> Identification:
        return ProtocolMatch(metadata, pending)

    return identify


def decided(said: Protocol, *matches: Mapping[str, Any]) -> Decision[Any] | Waiting:
    routes = [Route(said, f"127.0.0.1:{at + 1}", match=one) for at, one in enumerate(matches)]
    return Router(Pools(routes), 1024).table.decide(b"x")


def chosen(metadata: Mapping[str, MetadataValue], *matches: Mapping[str, Any]) -> int | None:
    """Return the number of the route that takes a client with this metadata."""
    decision = decided(protocol(metadata), *matches)
    return decision[0].backends[0].address.port - 1 if isinstance(decision, tuple) else None


TABLE: Final[list[tuple[str, Any, dict[Any, bool]]]] = [
    # the semantics of host names
    ("name", "A.Example.", {"a.example": True, "b.a.example": False}),
    ("name", "*.example", {"a.example": True, "b.a.example": False, "example": False}),
    ("name", "**.example", {"a.example": True, "b.a.example": True, "example": False}),
    ("name", NameRegex("A.*"), {"a.example": True, "b.example": False}),
    ("address", "10.0.0.1", {"10.0.0.1": True, "10.0.0.2": False}),
    ("address", ["[2001:DB8::1]", "*.a"], {"[2001:db8::1]": True, "b.a": True, "c.b.a": False}),
    # the semantics of texts
    ("database", "shop", {"shop": True, "Shop": False, "shop2": False, "": False}),
    ("database", "*", {"shop": True, "": True, "a\nb": True}),
    ("database", "report_*", {"report_1": True, "report_": True, "a_report_1": False, "REPORT_1": False}),
    ("database", "*_report", {"a_report": True, "_report": True, "a_report2": False}),
    ("database", "a*b*c", {"abc": True, "axbxc": True, "abbc": True, "ac": False, "abcx": False}),
    ("database", "ab*ba", {"abba": True, "aba": False, "abxba": True}),
    ("database", "a**b", {"ab": True, "axb": True, "a": False}),
    ("database", "*a*a*", {"aa": True, "a": False, "xaxax": True}),
    ("database", "a.b?[c]*", {"a.b?[c]": True, "axb?[c]": False, "a.bx[c]": False, "a.b?c": False}),
    ("database", NameRegex("r[0-9]+"), {"r1": True, "R1": False, "r1x": False, "xr1": False}),
    ("database", NameRegex("(?i)r[0-9]+"), {"R1": True}),
    ("database", NameRegex(r"\*"), {"*": True, "a": False}),
    ("database", ["a", "b*", NameRegex("c+")], {"a": True, "bb": True, "cc": True, "d": False}),
    ("database", "\u00fc*", {"\u00fcb": True, "u": False}),
    # one of several texts must match
    ("offers", "h2", {("h2", "h3"): True, ("h3", "h2"): True, ("h3",): False, (): False}),
    ("offers", "h*", {("x", "h2"): True, ("x",): False, (): False}),
    ("offers", NameRegex("h[23]"), {("x", "h2"): True, ("h4",): False, ("h", "2"): False}),
    # flags
    ("ssl", True, {True: True, False: False}),
    ("ssl", False, {True: False, False: True}),
    ("ssl", [True, False], {True: True, False: True}),
    # keys without a kind
    ("thing", "a", {"a": True, ("b", "a"): True, "b": False, True: False}),
    ("thing", "a*", {"ab": True, ("b", "ab"): True, False: False}),
    ("thing", True, {True: True, False: False, "True": False, ("true",): False}),
    ("thing", [False, NameRegex("a")], {False: True, "a": True, True: False}),
]


@pytest.mark.parametrize(("key", "patterns", "values"), TABLE)
def test_the_kind_of_a_key_says_which_values_a_pattern_stands_for(
    key: str, patterns: Any, values: dict[MetadataValue, bool]
) -> None:
    others: dict[str, Any] = {"ssl": True} if key != "ssl" else {"database": "*"}
    known: dict[str, MetadataValue] = {"ssl": True} if key != "ssl" else {"database": "d"}
    for value, holds in values.items():
        assert chosen({key: value}, {key: patterns}) == (0 if holds else None), value
        # Several keys take another way through the table.
        assert chosen({key: value, **known}, {key: patterns, **others}) == (0 if holds else None), value


@pytest.mark.parametrize("key", [key for key in KINDS if key != "ssl"])
def test_a_condition_on_an_unknown_value_does_not_hold(key: str) -> None:
    assert chosen({}, {key: NameRegex(".*")}) is None
    assert chosen({}, {key: NameRegex(".*")}, {"ssl": False}) == 1


def test_a_flag_that_a_match_lacks_is_false() -> None:
    assert chosen({}, {"ssl": True}) is None
    assert chosen({}, {"ssl": True}, {"ssl": False}) == 1
    assert chosen({"database": "a"}, {"ssl": True}, {"ssl": False, "database": "a"}) == 1


def test_a_client_must_match_one_pattern_of_each_key() -> None:
    asked = {"database": "shop", "thing": ["app", "report_*"]}
    for database, user, number in [
        ("shop", "app", 0),
        ("shop", "report_1", 0),
        ("shop", "other", None),
        ("other", "app", None),
    ]:
        assert chosen({"database": database, "thing": user}, asked) == number


@pytest.mark.parametrize(
    "order",
    [
        ["shop_1", "shop_*", "sh*", "*", NameRegex("s.*"), NameRegex(".*"), None],
        [("h2", "x"), "h2*", "h*", NameRegex("h.*"), None],
        [True, None],
    ],
)
def test_the_more_specific_pattern_wins_in_every_order_of_the_routes(order: list[Any]) -> None:
    key = {str: "database", tuple: "offers", bool: "ssl"}[type(order[0])]
    value: MetadataValue = order[0]
    for first in range(len(order)):
        patterns = order[first:]
        matches = [{} if one is None else {key: one} for one in patterns]
        assert chosen({key: value}, *matches) == 0
        if not isinstance(patterns[0], NameRegex):  # regexes keep the order of the configuration
            assert chosen({key: value}, *matches[::-1]) == len(matches) - 1


def test_the_order_of_the_declaration_decides_between_keys() -> None:
    one, other = {"database": "a"}, {"ssl": True}
    metadata: dict[str, MetadataValue] = {"database": "a", "ssl": True}
    assert chosen(metadata, one, other) == 0
    assert chosen(metadata, other, one) == 1
    assert chosen(metadata, other, one, one | other) == 2


def test_keys_without_kinds_have_the_well_known_keys_first() -> None:
    assert kinds_of(frozenset({"b", "alpn", "a", "host", "sni"})) == {
        "sni": MetadataKind.HOST_NAME,
        "host": MetadataKind.HOST,
        "alpn": MetadataKind.TEXTS,
        "a": MetadataKind.ANY,
        "b": MetadataKind.ANY,
    }
    assert list(kinds_of(frozenset({"b", "alpn", "a", "host", "sni"}))) == ["sni", "host", "alpn", "a", "b"]


def test_a_long_text_with_many_stars_takes_a_time_of_its_length() -> None:
    text = "a" * 200_000
    assert chosen({"database": text + "c"}, {"database": "*a" * 50 + "*b"}) is None
    assert chosen({"database": text + "c"}, {"database": "*" + "a" * 50 + "b*c"}) is None
    assert chosen({"database": text}, {"database": "*a" * 50 + "*"}) == 0


# Waiting for keys


@pytest.mark.parametrize("key", KINDS)
def test_a_route_waits_for_its_key_while_the_key_is_pending(key: str) -> None:
    value: Any = key == "ssl" or "a"
    waiting = protocol({}, frozenset({key}))
    for matches in ([{key: value}], [{key: value}, {}], [{key: value, "database": "a"}, {key: value}]):
        assert isinstance(decided(waiting, *matches), Waiting)
        routes = [Route(waiting, f"127.0.0.1:{at + 1}", match=one) for at, one in enumerate(matches)]
        refused = Router(Pools(routes), 1024).table.decide(b"x", final=True)
        assert isinstance(refused, Undecided)
    assert isinstance(decided(protocol({}, frozenset(KINDS.keys() - {key})), {key: value}, {}), tuple)


def test_a_pending_key_that_can_decide_nothing_is_not_awaited() -> None:
    waiting = protocol({"name": "a.b"}, frozenset({"database"}))
    assert isinstance(decided(waiting, {"name": "a.b"}, {"name": "*.b", "database": "x"}), tuple)
    assert isinstance(decided(waiting, {"name": "a.b", "database": "x"}, {"name": "*.b"}), Waiting)
    assert not isinstance(decided(waiting, {"name": "c.b", "database": "x"}), tuple | Waiting)


@pytest.mark.parametrize(
    ("matches", "result"),
    [
        ([{"offers": "a"}], 0),
        ([{"offers": "a"}, {}], 0),
        ([{"offers": "a"}, {"offers": "z"}], 0),  # the first of two equal routes, whatever arrives
        ([{"offers": "z"}, {"offers": "a"}], Waiting),
        ([{"offers": "z"}, {}], Waiting),
        ([{"offers": "a*"}, {"offers": "z"}], Waiting),  # an exact text may still arrive
        ([{"database": "d"}, {"offers": "a"}], 0),
        ([{"database": "d", "offers": "z"}, {"database": "d"}], Waiting),
        ([{"database": "d", "offers": "a"}, {"database": "d", "offers": "z"}], 0),
        ([{"offers": "z", "database": "d"}, {"offers": "a", "database": "d"}], Waiting),
        ([{"offers": "z", "database": "x"}, {"offers": "a", "database": "d"}], 1),
        ([{"offers": "a", "ssl": True}, {"offers": "z", "ssl": False}, {}], 0),
    ],
)
def test_the_known_texts_of_an_unfinished_list_may_decide(
    matches: list[dict[str, Any]], result: int | type[Waiting]
) -> None:
    said = protocol({"database": "d", "offers": ("b", "a"), "ssl": True}, frozenset({"offers"}))
    decision = decided(said, *matches)
    if isinstance(result, int):
        assert isinstance(decision, tuple)
        assert decision[0].backends[0].address.port - 1 == result
    else:
        assert isinstance(decision, result)


# Wrong types


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", 5),
        ("name", ("a",)),
        ("address", True),
        ("database", True),
        ("database", ("a",)),
        ("database", b"a"),
        ("offers", "a"),
        ("offers", ["a"]),
        ("offers", ("a", 5)),
        ("ssl", "true"),
        ("ssl", 1),
        ("thing", 5),
        ("thing", ["a"]),
        ("thing", (None,)),
    ],
)
def test_a_value_of_another_kind_is_a_fault_and_refuses_the_client(key: str, value: Any) -> None:
    asked: dict[str, Any] = {key: True if key == "ssl" else NameRegex(".*")}
    for matches in ([asked], [asked, {}], [{**asked, "database": "*"}, {"database": "*"}]):
        decision = decided(protocol({"database": "a", key: value}), *matches)
        assert isinstance(decision, Undecided), matches
        assert decision.is_fault


# Routes that are refused


@pytest.mark.parametrize(
    ("match", "where", "message"),
    [
        ({"databse": "a"}, "match.databse", "did you mean 'database'?"),
        ({"xyz": "a"}, "match.xyz", "address, database, name, offers, ssl, thing"),
        ({"x y": "a"}, 'match."x y"', "carries no x y"),
        ({"sni": "a"}, "match.sni", "carries no sni"),
        ({"database": ()}, "match.database", "is empty"),
        ({"database": ["a", ""]}, "match.database[1]", "is empty"),
        ({"database": True}, "match.database", "write a text in quotes"),
        ({"database": ["a", 5]}, "match.database[1]", "got int"),
        ({"database": 5}, "match.database", "got int"),
        ({"database": None}, "match.database", "got NoneType"),
        ({"database": NameRegex("(")}, "match.database", "not a valid regex"),
        ({"offers": [NameRegex("a(?=b)")]}, "match.offers[0]", "not a valid regex"),
        ({"ssl": "true"}, "match.ssl", "write true or false"),
        ({"ssl": NameRegex("a")}, "match.ssl", "write true or false"),
        ({"name": "a*b"}, "match.name", "*.example.org"),
        ({"name": "10.0.0.1"}, "match.name", "not a host name"),
        ({"name": True}, "match.name", "write a text in quotes"),
        ({"address": ["a", "b:80"]}, "match.address[1]", "without a port"),
    ],
)
def test_a_condition_that_cannot_hold_is_refused_with_its_place(
    match: dict[str, Any], where: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Route(protocol({}), "127.0.0.1:1", match=match)
    (problem,) = caught.value.problems
    assert problem.where == where
    assert message in problem.message


def test_a_protocol_without_metadata_says_so() -> None:
    with pytest.raises(ConfigError, match="this protocol has no metadata"):
        Route(protocol({}, keys=frozenset()), "127.0.0.1:1", match={"database": "a"})


def test_all_wrong_conditions_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Route(protocol({}), "127.0.0.1:1", match={"a": "a", "ssl": "x", "database": ["", "b", ""]})
    assert [one.where for one in caught.value.problems] == [
        "match.a",
        "match.ssl",
        "match.database[0]",
        "match.database[2]",
    ]


SHORT: Final = frozenset({"sni", "host", "alpn"})


@pytest.mark.parametrize("key", sorted(SHORT))
def test_a_short_form_is_the_condition_on_its_key(key: str) -> None:
    said = protocol({}, keys=SHORT)
    short = Route(said, "127.0.0.1:1", **{key: ["B.a", "*.c"]})  # type: ignore[arg-type]
    long = Route(said, "127.0.0.1:1", match={key: ["B.a", "*.c"]})
    assert short.conditions == long.conditions
    assert short.all_conditions == long.all_conditions
    assert str(short) == str(long)
    with pytest.raises(ConfigError, match=f"{key} is given twice"):
        Route(said, "127.0.0.1:1", match={key: "b"}, **{key: "a"})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="the same protocol and conditions"):
        Refractium([short, long])


def test_the_protocols_of_a_route_must_agree_about_a_key() -> None:
    one, other = protocol({}), protocol({}, keys={"database": MetadataKind.TEXTS})
    with pytest.raises(ConfigError, match="declare database with different kinds"):
        Route([one, other], "127.0.0.1:1", match={"database": "a"})
    with pytest.raises(ConfigError, match="carries no ssl"):
        Route([one, other], "127.0.0.1:1", match={"ssl": True})
    with pytest.raises(ConfigError, match="declares database as text"):
        Refractium([Route(one, "127.0.0.1:1"), Route(other, "127.0.0.1:2", match={"database": "a"})])


@pytest.mark.parametrize(
    ("one", "other", "is_refused"),
    [
        ({"database": "a"}, {"database": "a"}, True),
        ({"database": ["a", "b"]}, {"database": ["c", "b"]}, True),
        ({"database": "a", "offers": ["x", "y"]}, {"offers": "y", "database": ["z", "a"]}, True),
        ({"name": "A.b"}, {"name": "a.B."}, True),
        ({"database": NameRegex("a")}, {"database": NameRegex("a")}, True),
        ({"ssl": True}, {"ssl": [False, True]}, True),
        ({"database": "a*"}, {"database": "a*"}, True),
        ({"database": "a"}, {"database": "b"}, False),
        ({"database": "a"}, {"database": "A"}, False),
        ({"database": "a"}, {"database": "a*"}, False),
        ({"database": "a"}, {"offers": "a"}, False),
        ({"database": "a"}, {"database": "a", "ssl": True}, False),
        ({"database": "a", "offers": "x"}, {"database": "a", "offers": "y"}, False),
        ({"ssl": True}, {"ssl": False}, False),
        ({"thing": True}, {"thing": "true"}, False),
    ],
)
def test_routes_that_share_a_pattern_of_every_key_are_duplicates(
    one: dict[str, Any], other: dict[str, Any], *, is_refused: bool
) -> None:
    said = protocol({})
    routes = [Route(said, "127.0.0.1:1", match=one), Route(said, "127.0.0.1:2", match=other)]
    for pair in (routes, routes[::-1]):
        if is_refused:
            with pytest.raises(ConfigError) as caught:
                Refractium(pair)
            assert [problem.where for problem in caught.value.problems] == ["tcp[1]"]
        else:
            Refractium(pair)


def test_many_patterns_of_many_keys_take_no_time_of_their_product() -> None:
    said = protocol(dict.fromkeys("abcdefgh", "v39"), keys=frozenset("abcdefgh"))
    values = [f"v{number}" for number in range(40)]
    match = dict.fromkeys("abcdefgh", values)
    route = Route(said, "127.0.0.1:1", match=match, allow=["10.0.0.0/8"])
    other = Route(said, "127.0.0.1:2", match={**match, "h": ["other"]}, deny=["10.0.0.0/8"])
    Refractium([route, other])
    decision = Router(Pools([route, other]), 1024).table.decide(b"x")
    assert isinstance(decision, tuple)
    assert decision[0].backends[0].address.port == 1


def test_a_route_shows_its_conditions_by_their_keys_in_the_file() -> None:
    said = protocol({}, keys={**KINDS, "client": MetadataKind.TEXT, "sni": MetadataKind.HOST_NAME})
    route = Route(
        said,
        "127.0.0.1:1",
        client="10.0.0.0/8",
        match={"ssl": [True, False], "client": "c", "database": ["a*", NameRegex("b")], "sni": "a.b"},
    )
    assert route.all_conditions == {
        "match.database": ("a*", "{ regex = 'b' }"),
        "match.ssl": ("true", "false"),
        "match.client": ("c",),
        "sni": ("a.b",),
        "client": ("10.0.0.0/8",),
    }


# The documented order in its plainest form


@dataclass(frozen=True)
class Client:
    """A client: its metadata, and the keys that are pending."""

    metadata: Mapping[str, MetadataValue]
    pending: frozenset[str]


EXACT, STAR, REGEX, NONE = range(4)
Rank = tuple[int, ...]


def rank_of(pattern: Any, value: MetadataValue | None, patterns: Sequence[Any]) -> Rank | None:
    """Return how specific a pattern is for a value, the lowest rank first; None if it does not match.

    Args:
        pattern: the pattern.
        value: the value.
        patterns: all patterns of the key, in the order of the configuration.
    """
    texts = value if isinstance(value, tuple) else (value,)
    if isinstance(pattern, NameRegex):
        holds = any(isinstance(one, str) and re.fullmatch(pattern.regex, one) for one in texts)
        return (REGEX, patterns.index(pattern)) if holds else None
    if isinstance(pattern, str) and "*" in pattern:
        regex = ".*".join(map(re.escape, pattern.split("*")))
        holds = any(isinstance(one, str) and re.fullmatch(regex, one) for one in texts)
        return (STAR, pattern.count("*") - len(pattern), patterns.index(pattern)) if holds else None
    return (EXACT,) if pattern in texts and any(type(one) is type(pattern) for one in texts) else None


def expected(
    matches: Sequence[Mapping[str, Sequence[Any]]], client: Client, arriving: int | None = None
) -> int | None:
    """Return the number of the route for a client.

    No condition on a pending key holds, except for the conditions of the route of the number `arriving`.
    """
    best: tuple[list[Rank], int] | None = None
    for number in range(len(matches)):
        ranks = [rank_of_key(key, matches, number, client, arriving) for key in TEXT_KINDS]
        found = [rank for rank in ranks if rank is not None]
        if len(found) == len(ranks) and (best is None or (found, number) < best):
            best = found, number
    return None if best is None else best[1]


def rank_of_key(
    key: str,
    matches: Sequence[Mapping[str, Sequence[Any]]],
    number: int,
    client: Client,
    arriving: int | None,
) -> Rank | None:
    """Return the rank of the best pattern of a route for a key; None if the condition does not hold."""
    if key not in matches[number]:
        return (NONE,)
    if key in client.pending:
        return (EXACT,) if number == arriving else None
    value = client.metadata.get(key, False if TEXT_KINDS[key] is MetadataKind.FLAG else None)
    patterns = [one for match in matches for one in match.get(key, ())]
    ranks = [rank_of(one, value, patterns) for one in matches[number][key]]
    return min((one for one in ranks if one is not None), default=None)


TEXT_KINDS: Final = {
    "database": MetadataKind.TEXT,
    "offers": MetadataKind.TEXTS,
    "ssl": MetadataKind.FLAG,
}
TEXTS: Final = ("a", "b", "ab", "ba", "")
texts = st.sampled_from([*("a", "b", "ab", "*", "a*", "*b", "a*b"), NameRegex("a.*"), NameRegex("[ab]")])
VALUES: Final[Mapping[str, Sequence[MetadataValue | None]]] = {
    "database": (*TEXTS, None),
    "offers": ((), *((one,) for one in TEXTS), *product(TEXTS[:3], repeat=2), None),
    "ssl": (True, False, None),
}
matches_of = st.fixed_dictionaries(
    {},
    optional={
        "database": st.lists(texts, min_size=1, max_size=2),
        "offers": st.lists(texts, min_size=1, max_size=2),
        "ssl": st.lists(st.booleans(), min_size=1, max_size=2),
    },
)
clients = st.builds(
    lambda pending, **known: Client(
        {key: value for key, value in known.items() if value is not None and key not in pending}, pending
    ),
    st.frozensets(st.sampled_from(list(TEXT_KINDS))),
    **{key: st.sampled_from(values) for key, values in VALUES.items()},
)


@given(st.lists(matches_of, max_size=5), clients)
@example(  # the most specific database leads to a route whose other condition does not hold
    [{"database": ["a"], "ssl": [True]}, {"database": ["*"]}, {}], Client({"database": "a"}, frozenset())
)
@example(  # two patterns with the same number of characters
    [{"database": ["a*"]}, {"database": ["*b"], "ssl": [True]}],
    Client({"database": "ab", "ssl": True}, frozenset()),
)
@example([{"database": ["a"], "offers": ["b"]}, {}], Client({"offers": ("a",)}, frozenset({"database"})))
def test_every_client_gets_the_route_of_the_documented_order(
    matches: list[dict[str, list[Any]]], client: Client
) -> None:
    said = protocol(client.metadata, client.pending, TEXT_KINDS)
    decision = decided(said, *matches)
    results = {expected(matches, client, arriving) for arriving in (None, *range(len(matches)))}
    if len(results) > 1:
        assert isinstance(decision, Waiting)
    elif results == {None}:
        assert not isinstance(decision, tuple | Waiting)
    else:
        assert isinstance(decision, tuple)
        assert results == {decision[0].backends[0].address.port - 1}
