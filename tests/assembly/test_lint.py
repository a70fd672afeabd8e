"""Warnings about valid settings: the code of each warning, and the keys that leave warnings out."""

from __future__ import annotations

import pytest

from refractium.assembly.lint.rules import RULES
from support.configurations import assembled, problems_of


def route(name: str = "https", to: str = '"10.0.0.1:1"', **keys: str) -> str:
    """Return the table of a route; each key has its value in TOML."""
    lines = [f'name = "{name}"', f"forward_to = {to}", *(f"{key} = {value}" for key, value in keys.items())]
    return "\n".join(("[[protocols]]", *lines, ""))


def warned(*tables: str) -> list[tuple[str | None, str]]:
    """Return the code and the place of each warning."""
    return [(one.code, one.where) for one in assembled("".join(tables)).warnings]


FTP = route("ftp")
TWICE = route(to='["10.0.0.1:1", "10.0.0.1:1"]')


@pytest.mark.parametrize(
    ("text", "code", "place"),
    [
        (route(client='"10.0.0.0/8"') + route(client='"10.1.0.0/16"'), "unreachable-route", "protocols[1]"),
        (
            route(client='"10.0.0.0/8"') + route(client='["::1", "10.1.0.0/16"]'),
            "unreachable-condition",
            "protocols[1].client[1]",
        ),
        (
            route(match='{ sni = "a" }', client='"::/0"')
            + route(match='{ sni = ["b", "a"] }', client='"::1"'),
            "unreachable-condition",
            "protocols[1].match.sni[1]",
        ),
        (route(sni='"*.a"') + route(to='"b:1"', alpn='"h2"'), "overlapping-routes", "protocols[1]"),
        (route(client='"10.1.1.1"', deny='["10.0.0.0/8"]'), "refusing-route", "protocols[0]"),
        (
            "[server]\ndeny = ['10.0.0.0/8']\n" + route(client='"10.1.1.1"'),
            "unreachable-route",
            "protocols[0]",
        ),
        (FTP + route("any", on_timeout="true", transport='"tcp"'), "silent-clients", "protocols[0]"),
        ('[[listeners]]\nport = 1\nroutes = ["ftp"]\n' + FTP + route(), "unserved-route", "protocols[1]"),
        (FTP + route(), "weak-before-strong", "protocols[1]"),
        ("[[protocols]]\nname = 'http'\naction = 'reject'\n", "no-backend", "protocols"),
        (route(to='"127.0.0.1:8080"'), "own-address", "protocols[0].forward_to"),
        (TWICE, "repeated-backend", "protocols[0].forward_to[1]"),
        ("[server]\npeek_timeout_ms = 5001\n" + route(), "long-peek-timeout", "server.peek_timeout_ms"),
        ("[server]\nmax_connections = 9\n" + route(), "wide-limit", "server.max_connections_per_ip"),
    ],
)
def test_a_warning_has_the_code_of_its_rule_and_can_be_ignored(text: str, code: str, place: str) -> None:
    assert warned(text) == [(code, place)]
    (warning,) = assembled(text).warnings
    assert str(warning).endswith(f" [{code}]")
    assert warned(text, f"[check]\nignore = ['{code}']\n") == []
    others = sorted(RULES.keys() - {code})
    assert warned(text, f"[check]\nignore = {others}\n") == [(code, place)]


def test_a_route_ignores_warnings_about_itself_only() -> None:
    ignoring = TWICE + "ignore = ['repeated-backend', 'wide-limit']\n"
    limit = "[server]\nmax_connections = 9\n"
    assert warned(ignoring, TWICE.replace("https", "http"), limit) == [
        ("wide-limit", "server.max_connections_per_ip"),
        ("repeated-backend", "protocols[1].forward_to[1]"),
    ]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[check]\nignore = ['wide-limit', 'wide-limits']\n", "check.ignore[1]"),
        ("ignore = ['unknown', 'wide-limit']\n", "protocols[0].ignore[0]"),
        ("[check]\nignore = 'wide-limit'\n", "check.ignore"),
        ("[check]\nignored = []\n", "check.ignored"),
    ],
)
def test_an_unknown_code_is_a_problem(text: str, place: str) -> None:
    (problem,) = problems_of(route() + text)
    assert problem.where == place
    if place == "check.ignore[1]":
        assert "did you mean 'wide-limit'?" in problem.message
    assert problem.code is None


def test_warnings_about_plugins_can_be_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFRACTIUM_DISABLE_PLUGINS", "shh")
    assert warned(route()) == [("unknown-plugin", "REFRACTIUM_DISABLE_PLUGINS")]
    assert warned(route(), "[check]\nignore = ['unknown-plugin']\n") == []


def test_the_messages_about_two_routes_name_both_by_place_and_label() -> None:
    (warning,) = assembled(route(client='"::/0"', id='"all"') + route(client='"::1"', id='"one"')).warnings
    assert (warning.where, warning.line) == ("protocols[1]", 6)
    assert "protocols[0] (all)" in warning.message
    assert "move this route above protocols[0]" in warning.message


@pytest.mark.parametrize(
    "text",
    [
        # The order of routes that never have a common client does not matter.
        route("ftp", client='"10.0.0.0/8"') + route(client='"11.0.0.0/8"'),
        # A route of any gets the clients that no other route matches, wherever it stands.
        route("any", transport='"tcp"') + route(),
        route(client='"10.1.0.0/16"') + route(client='"10.0.0.0/8"') + route(),
        route(sni='"a.b"') + route(sni='"*.b"') + route(sni='"**.b"') + route(),
        route(match="{ ech = true }") + route(),
        route(client='"10.0.0.0/8"', deny='["10.1.1.1"]'),
        "[server]\ndeny = ['10.0.0.0/8']\n" + route(client='"0.0.0.0/0"'),
        route("ssh", client='"::1"') + route("ftp"),
    ],
)
def test_a_near_miss_causes_no_warning(text: str) -> None:
    assert warned(text) == []
