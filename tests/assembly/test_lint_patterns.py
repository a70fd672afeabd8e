"""Warnings about patterns and about limits beyond the descriptors, and near misses without a warning."""

from __future__ import annotations

import re
import resource
from itertools import permutations
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refractium.routing import Pools, Router
from support.configurations import assembled


def route(name: str, **keys: str) -> str:
    """Return the table of a route; each key has its value in TOML."""
    lines = [
        f'name = "{name}"',
        'forward_to = "10.0.0.1:1"',
        *(f"{key} = {one}" for key, one in keys.items()),
    ]
    return "\n".join(("[[protocols]]", *lines, ""))


def mine(patterns: str, **keys: str) -> str:
    return route("mine", patterns=patterns, transport='"tcp"', **keys)


def warned(text: str) -> list[tuple[str | None, str]]:
    """Return the code and the place of each warning, except for warnings about the order of strengths."""
    found = [(one.code, one.where) for one in assembled(text).warnings]
    return [one for one in found if one[0] != "weak-before-strong"]


PATTERNS: Final = st.text("abc", min_size=1, max_size=5)
INSTALLED = "".join(map(route, ("ssh", "https", "http", "dns")))
LISTENERS = "[[listeners]]\nport = 1\nroutes = ['mine']\n[[listeners]]\nport = 2\nroutes = ['http', 'dns']\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # patterns that match the first messages of other protocols
        (INSTALLED + mine('["GET "]'), [("pattern-takes-protocol", "protocols[4].patterns[0]")]),
        (
            INSTALLED + mine('["abc", { hex = "16 03 01" }]'),
            [("pattern-takes-protocol", "protocols[4].patterns[1]")],
        ),
        (
            mine("[{ regex = '^[A-Z]+ /' }]") + INSTALLED,
            [("pattern-takes-protocol", "protocols[0].patterns[0]")],
        ),
        (mine('["SSH-"]') + INSTALLED, [("pattern-takes-protocol", "protocols[0].patterns[0]")]),
        # patterns that other patterns shadow
        (
            mine('["ABC"]') + route("other", transport='"tcp"', patterns='["XYZ", "ABCD"]'),
            [("shadowed-pattern", "protocols[1].patterns[1]")],
        ),
        (
            mine('["ABC"]', client='"10.0.0.0/8"')
            + route("other", transport='"tcp"', patterns='["ABCD"]', client='"10.1.0.0/16"'),
            [("shadowed-pattern", "protocols[1].patterns[0]")],
        ),
        (
            route("mine", transport='"udp"', patterns='["ABC"]')
            + route("other", transport='"udp"', patterns='["ABCD"]'),
            [("shadowed-pattern", "protocols[1].patterns[0]")],
        ),
        # short patterns, and short messages beside DNS over TCP
        (route("http") + mine('[{ hex = "05 01" }]'), [("short-pattern", "protocols[1].patterns[0]")]),
        (
            route("dns") + mine('[{ hex = "05 01" }]'),
            [
                ("short-pattern", "protocols[1].patterns[0]"),
                ("delayed-message", "protocols[1].patterns[0]"),
            ],
        ),
        (
            mine('["ab"]') + '[server]\nfallback_tcp = "10.0.0.1:2"\n',
            [("short-pattern", "protocols[0].patterns[0]")],
        ),
    ],
)
def test_a_doubtful_pattern_causes_a_warning(text: str, expected: list[tuple[str, str]]) -> None:
    assert warned(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        INSTALLED + mine('["MY_PROTO_V1", "HELLO", { hex = "ff 00 ff", offset = 4 }]'),
        INSTALLED + mine('["SSH-2.0-libssh"]'),
        mine('["SSH-2.0-libssh"]') + INSTALLED,
        INSTALLED + mine('["GETX", { hex = "16 04 01" }]'),
        INSTALLED + mine("[{ regex = '^HELLO [0-9]+' }]"),
        # A text that can be anywhere is asked after http.
        route("http") + mine('["HTTP/1.1"]'),
        # Three bytes at a fixed place decide at once, also beside DNS.
        INSTALLED + mine('[{ hex = "05 01 00" }]'),
        # Datagrams are complete, so nobody waits for further bytes.
        route("dns", transport='"udp"') + route("mine", transport='"udp"', patterns='[{ hex = "05 01 00" }]'),
        # An equal beginning, of which the longer pattern is asked first.
        mine('["ABCD"]') + route("other", transport='"tcp"', patterns='["ABC"]'),
        # Other listeners and other clients.
        LISTENERS + mine('["GET ", "ab"]') + route("http") + route("dns"),
        mine('["GET "]', client='"10.0.0.0/8"') + route("http", client='"11.0.0.0/8"'),
        mine('["ABC"]', client='"10.0.0.0/8"') + route("other", transport='"tcp"', patterns='["ABCD"]'),
        # Clients of ftp wait for the server, so they do not wait for another protocol.
        mine('["EHLO"]') + route("ftp"),
        # A single route has no client of another protocol.
        mine('["ab"]'),
    ],
)
def test_a_pattern_that_is_only_similar_causes_no_warning(text: str) -> None:
    assert warned(text) == []


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(PATTERNS, min_size=1, max_size=3, unique=True), min_size=2, max_size=4),
    st.lists(st.text("abcx", max_size=4), max_size=5),
)
def test_no_client_that_begins_with_a_shadowed_pattern_reaches_its_route(
    several: list[list[str]], tails: list[str]
) -> None:
    found = assembled(
        "".join(route(f"p{at}", transport='"tcp"', patterns=f"{one}") for at, one in enumerate(several))
    )
    router = Router(Pools(found.tcp), 1024)
    for warning in found.warnings:
        if warning.code != "shadowed-pattern":
            continue
        at, which = (int(text) for text in re.findall(r"\d+", warning.where))
        for tail in tails:
            decision = router.table.decide((several[at][which] + tail).encode())
            assert isinstance(decision, tuple)
            assert decision[0].label != f"p{at}"


def test_the_installed_protocols_cause_no_warning_in_any_order() -> None:
    for names in permutations(("ssh", "https", "http", "dns", "ftp")):
        assert warned("".join(map(route, names))) == []


@pytest.mark.parametrize(
    ("server", "protocol", "places"),
    [
        ("max_connections = 501", "http", ["server.max_connections"]),
        ("max_connections = 500", "http", []),
        ("max_connections = 501\nworkers = 2", "http", []),
        ("max_connections = 1001\nworkers = 2", "http", ["server.max_connections"]),
        ("max_udp_sessions = 334\nmax_udp_sessions_per_ip = 9", "dns", ["server.max_udp_sessions"]),
        ("max_udp_sessions = 333\nmax_udp_sessions_per_ip = 9", "dns", []),
        ("max_udp_sessions = 334\nmax_udp_sessions_per_ip = 9", "http", []),
        # The defaults are no decision of the operator.
        ("max_connections = 10000", "http", []),
    ],
)
def test_a_limit_beyond_the_descriptors_of_all_processes_causes_a_warning(
    monkeypatch: pytest.MonkeyPatch, server: str, protocol: str, places: list[str]
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1000, 1000))
    found = assembled(f"[server]\n{server}\n{route(protocol)}").warnings
    assert [(one.code, one.where) for one in found] == [("too-few-descriptors", place) for place in places]


def test_a_machine_without_a_limit_of_descriptors_causes_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda _: unlimited)
    assert assembled("[server]\nmax_connections = 1000000\n" + route("http")).warnings == ()
