"""`balance` and `health` in the file: resolved with plugins, refused with their key, shown by `check`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from click.testing import CliRunner

from refractium import Balancer, Endpoint, Health, HealthCheck, Member, Route, Transport
from refractium.backends.checks import CHECKS
from refractium.cli.app import app
from refractium.config import json_schema
from refractium.plugins.installed import Given, Plugins
from support import configurations
from support.proxy import starting_with

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from refractium.assembly.assembly import Assembly
    from refractium.problems import Problem


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    greeting: str
    lines: int = 1


class GreetingCheck(HealthCheck[Settings]):
    name = "greeting"
    settings = Settings

    async def check(self, endpoint: Endpoint, settings: Settings, timeout: float) -> str | None:  # noqa: ASYNC109
        del endpoint, settings, timeout
        return None


class Last(Balancer):
    name = "last"

    def order(self, backends: Sequence[Any], client: str) -> Sequence[Any]:
        del client
        return backends[::-1]


GREETING = GreetingCheck()
ON_TCP = starting_with(b"web", name="web")
ON_BOTH = starting_with(b"both", name="both")
ON_UDP = starting_with(b"both", name="both")
ON_UDP.transport = Transport.UDP
PROTOCOLS = (ON_BOTH, ON_UDP, ON_TCP)
PLUGINS = Plugins((), PROTOCOLS, {}, {"x": Given(PROTOCOLS, (GREETING,), (Last,))})
WEB = '[[protocols]]\nname = "web"\nforward_to = ["10.0.0.1:1", "10.0.0.2:1"]\n'
BOTH = WEB.replace("web", "both")


def assembled(text: str) -> Assembly:
    return configurations.assembled(text, PLUGINS)


def problems(text: str) -> list[Problem]:
    return list(configurations.problems_of(text, PLUGINS))


def test_a_route_has_members_balance_and_health() -> None:
    text = WEB.replace('"10.0.0.2:1"', '{ address = "10.0.0.2:1", weight = 3, backup = true }')
    (route,) = assembled(
        text + 'balance = "first"\nhealth = { kind = "http", path = "/x", status = [200, 204], rise = 1 }'
    ).tcp
    assert route.members == (Member("10.0.0.1:1"), Member("10.0.0.2:1", weight=3, backup=True))
    assert route.balance == "first"
    assert route.health == Health(kind=CHECKS["http"], options={"path": "/x", "status": [200, 204]}, rise=1)


class Strict(Settings, frozen=True, forbid_unknown_fields=True):
    def __post_init__(self) -> None:
        if self.greeting == "made":
            raise SystemExit(3)


class HostileCheck(GreetingCheck):
    settings = Strict

    def problems(self, settings: Settings) -> Sequence[tuple[str, str]]:
        if settings.greeting == "raised":
            raise KeyboardInterrupt
        return [("greeting",)]  # type: ignore[list-item]


@pytest.mark.parametrize("greeting", ["made", "raised", "returned"])
def test_a_check_that_fails_on_its_settings_is_a_problem_of_the_route(greeting: str) -> None:
    plugins = Plugins((), PROTOCOLS, {}, {"x": Given(PROTOCOLS, (HostileCheck(),), (Last,))})
    text = f'{WEB}health = {{ kind = "greeting", greeting = "{greeting}" }}'
    (problem,) = configurations.problems_of(text, plugins)
    assert problem.where == "protocols[0].health"
    assert "the plugin failed when it checked its settings" in problem.message


def test_checks_and_balancers_of_plugins_are_chosen_by_name() -> None:
    (route,) = assembled(WEB + 'balance = "last"\nhealth = { kind = "greeting", greeting = "220" }').tcp
    assert route.balancer is Last
    assert route.health.check is GREETING
    assert route.health.settings == Settings("220")


def test_without_a_health_table_only_clients_mark_backends() -> None:
    (route,) = assembled(WEB).tcp
    assert route.health == Health(kind="none")
    (route,) = assembled(WEB + 'health = { kind = "none", fall = 1 }').tcp
    assert route.health == Health(kind="none", fall=1)


def test_a_check_for_one_transport_leaves_the_other_to_passive_marking() -> None:
    found = assembled(BOTH + 'health = { kind = "tcp", fall = 7 }')
    assert found.tcp[0].health == Health(kind=CHECKS["tcp"], fall=7)
    assert found.udp[0].health == Health(kind="none", fall=7)
    found = assembled(BOTH + 'health = { kind = "dns" }')
    assert found.tcp[0].health == found.udp[0].health == Health(kind=CHECKS["dns"])


def test_a_route_may_have_only_backups() -> None:
    text = WEB.replace('"10.0.0.1:1"', '{ address = "10.0.0.1:1", backup = true }').replace(
        ', "10.0.0.2:1"', ""
    )
    assert assembled(text).warnings == ()


@pytest.mark.parametrize(
    ("text", "where", "line", "message"),
    [
        ("balance = 'least_conections'", "balance", 4, "did you mean 'least_connections'?"),
        (
            "balance = 'fair'",
            "balance",
            4,
            "first, last, least_connections, random_two, round_robin, source_hash",
        ),
        ("health = { kind = 'htpp' }", "health.kind", 4, "did you mean 'http'?"),
        (
            "health = { kind = 'icmp' }",
            "health.kind",
            4,
            "there are dns, greeting, http, none, send_expect, tcp",
        ),
        ("[protocols.health]\nkind = 'tcp'\npath = '/'", "health.path", 6, 'for a check of kind "tcp"'),
        (
            "[protocols.health]\nkind = 'tcp'\ninterval = 9",
            "health.interval",
            6,
            "did you mean 'interval_ms'?",
        ),
        ("[protocols.health]\nkind = 'none'\npath = '/'", "health.path", 6, 'for a check of kind "none"'),
        ("health = { kind = 'http', pth = '/' }", "health.pth", 4, "did you mean 'path'?"),
        ("health = { kind = 'http', path = 'x' }", "health.path", 4, "must begin with /"),
        ("health = { kind = 'http', status = [1] }", "health.status", 4, "between 100 and 599"),
        ("health = { kind = 'http', status = ['a'] }", "health.status[0]", 4, "expected int, got str"),
        ("health = { kind = 'send_expect' }", "health.expect", 4, "is missing"),
        ("health = { kind = 'send_expect', expect = { hex = '0' } }", "health.expect", 4, "pairs of hex"),
        ("health = { kind = 'send_expect', expect = '€' }", "health.expect", 4, "not one byte"),
        ("health = { kind = 'dns', type = 'ANY' }", "health.type", 4, "'ANY'"),
        ("health = { kind = 'dns', type = 'object | null' }", "health.type", 4, "'object | null'"),
        ("health = { kind = 'dns', query = {} }", "health.query", 4, "expected str, got table"),
        ("health = { kind = 'send_expect', expect = {} }", "health.expect", 4, "table missing"),
        ("health = { kind = 'greeting' }", "health.greeting", 4, "is missing"),
        ("health = { kind = 'greeting', greeting = '', lines = 'x' }", "health.lines", 4, "expected int"),
    ],
)
def test_each_mistake_is_named_with_its_key_and_line(text: str, where: str, line: int, message: str) -> None:
    (problem,) = problems(WEB + text)
    assert (problem.where, problem.line) == (f"protocols[0].{where}", line)
    assert message in problem.message


def test_all_mistakes_are_reported_at_once() -> None:
    text = WEB + "balance = 'x'\n[protocols.health]\nkind = 'http'\npth = 1\nhost = 2\nrise = 0\n" + BOTH
    assert [problem.where.partition("].")[2] for problem in problems(text + "balance = 'y'")] == [
        "balance",
        "health.pth",
        "health.host",
        "health.rise",
        "balance",
    ]


def test_a_check_that_only_supports_the_other_transport_is_refused() -> None:
    (problem,) = problems(BOTH + 'transport = "udp"\nhealth = { kind = "http" }')
    assert problem.where == "protocols[0].health.kind"
    assert problem.message == 'a check of kind "http" is not for udp: there are dns, send_expect'


# The schema


@pytest.mark.parametrize(
    ("health", "is_valid"),
    [
        ({"kind": "tcp"}, True),
        ({"kind": "tcp", "fall": 1, "interval_ms": 500}, True),
        ({"kind": "http", "path": "/", "status": [200, 204]}, True),
        ({"kind": "send_expect", "expect": {"hex": "ff"}}, True),
        ({"kind": "brought_by_a_plugin", "what": 1}, True),
        ({}, False),
        ({"kind": "tcp", "rise": 0}, False),
        ({"kind": "tcp", "path": "/"}, False),
        ({"kind": "none", "path": "/"}, False),
        ({"kind": "http", "status": "ok"}, False),
        ({"kind": "send_expect"}, False),
        ({"kind": "send_expect", "expect": {"hx": "ff"}}, False),
    ],
)
def test_the_schema_lists_the_settings_of_each_kind(health: dict[str, Any], *, is_valid: bool) -> None:
    jsonschema: Any = pytest.importorskip("jsonschema")
    route = {"name": "web", "forward_to": ["a:1", {"address": "b:1", "weight": 2}], "health": health}
    assert jsonschema.Draft202012Validator(json_schema()).is_valid({"protocols": [route]}) is is_valid


# Output of `check`


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "refractium.toml"
    path.write_text(
        """
        [[protocols]]
        name = "mine"
        patterns = [{ hex = "cafe01" }]
        transport = "tcp"
        forward_to = [
            "10.0.0.1:1", { address = "10.0.0.2:1", weight = 3 }, { address = "a:1", backup = true },
        ]
        balance = "source_hash"
        health = { kind = "http", path = "/x" }

        [[protocols]]
        name = "other"
        patterns = [{ hex = "cafe02" }]
        transport = "udp"
        forward_to = "10.0.0.1:1"
        """
    )
    return path


def test_check_shows_values_that_differ_from_the_default(file: Path) -> None:
    done = CliRunner().invoke(app, ["check", "-c", str(file)])
    assert done.exit_code == 0, done.output
    header, mine, other, _ = done.stdout.splitlines()
    assert header.split() == ["protocol", "transport", "when", "forward", "to", "balance", "health"]
    assert "10.0.0.1:1, 10.0.0.2:1 weight 3, a:1 backup " in mine
    assert " source_hash " in mine
    assert mine.endswith("http path=/x every 10000 ms, timeout 1000 ms, rise 2, fall 3")
    assert other.split() == ["other", "udp", "10.0.0.1:1"]


def test_check_json_has_the_values_of_balance_and_health(file: Path) -> None:
    done = CliRunner().invoke(app, ["check", "--json", "-c", str(file)])
    mine, other = json.loads(done.stdout)["routes"]
    assert mine["forward_to"] == [
        "10.0.0.1:1",
        {"address": "10.0.0.2:1", "weight": 3, "backup": False},
        {"address": "a:1", "weight": 1, "backup": True},
    ]
    assert mine["balance"] == "source_hash"
    assert mine["health"] == {
        "kind": "http",
        "interval_ms": 10_000,
        "timeout_ms": 1000,
        "rise": 2,
        "fall": 3,
        "path": "/x",
    }
    assert not {"balance", "health"} & other.keys()


def test_a_route_in_a_program_takes_a_class_and_an_object() -> None:
    route = Route(
        ON_TCP, "10.0.0.1:1", balance=Last, health=Health(kind=GREETING, options={"greeting": "220"})
    )
    assert route.balancer is Last
