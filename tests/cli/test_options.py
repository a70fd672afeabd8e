"""Flags and file together: where each value comes from, and which one takes precedence."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

import refractium

if TYPE_CHECKING:
    from support.cli import Cli

FILE = """
[server]
{server}

[[protocols]]
name = "http"
forward_to = "127.0.0.1:9000"
{route}
"""


def check(cli: Cli, *arguments: object) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(cli(*arguments, "--json").out)
    return answer


def warned(cli: Cli, *arguments: object) -> list[str]:
    """Return the keys that ``check`` warns about. It warns of strange values, so the keys show which values
    apply."""
    answer = check(cli, "check", *arguments)
    assert answer["ok"], answer
    return [one["where"] for one in answer["warnings"]]


SETTINGS = {
    "port": ("port = 9000", ["-p", "9000"], ["-p", "9001"], "protocols[0].forward_to"),
    "bind": (
        'port = 9000\nbind = "127.0.0.1"',
        ["-p", "9000", "-b", "127.0.0.1"],
        ["-b", "127.0.0.2"],
        "protocols[0].forward_to",
    ),
    "peek timeout": (
        "peek_timeout_ms = 5001",
        ["--peek-timeout", "5001"],
        ["--peek-timeout", "5000"],
        "server.peek_timeout_ms",
    ),
    "connections": (
        "max_connections = 50",
        ["--max-connections", "50"],
        ["--max-connections", "51"],
        "server.max_connections_per_ip",
    ),
    "connections of one address": (
        "max_connections_per_ip = 201",
        ["--max-connections-per-ip", "201"],
        ["--max-connections-per-ip", "200"],
        "server.max_connections_per_ip",
    ),
}
"""A line of the file and flags whose values cause a warning, flags whose values do not, and the key of the
warning."""


@pytest.mark.parametrize(("in_file", "strange", "usual", "key"), SETTINGS.values(), ids=SETTINGS)
def test_a_flag_takes_precedence_over_the_file_only_if_it_is_given(
    cli: Cli, in_file: str, strange: list[str], usual: list[str], key: str
) -> None:
    cli.write(FILE.format(server=in_file, route=""))
    assert warned(cli) == [key]
    assert warned(cli, *usual) == []
    cli.write(FILE.format(server="", route=""))
    assert warned(cli) == []
    assert warned(cli, *strange) == [key]


def test_patterns_must_fit_the_peek_buffer_of_the_flag(cli: Cli) -> None:
    cli.write(
        """\
        [[protocols]]
        name = "mine"
        patterns = [{ hex = "0102", offset = 30 }]
        transport = "tcp"
        forward_to = "127.0.0.1:9000"
        """
    )
    assert warned(cli) == []
    done = cli("check", "--peek-buffer", 31)
    assert done.code == 2
    assert "refractium.toml:3: protocols[0].patterns[0]: " in done.err
    assert warned(cli, "--peek-buffer", 32) == []


@pytest.mark.parametrize(
    ("before", "after", "is_own_port"),
    [
        (["-p", 9000], [], True),
        ([], ["-p", 9000], True),
        (["-p", 9001], ["-p", 9000], True),
        (["-p", 9000], ["-p", 9001], False),
    ],
)
def test_options_may_stand_before_or_after_the_command_and_the_later_wins(
    cli: Cli, before: list[object], after: list[object], *, is_own_port: bool
) -> None:
    answer = check(cli, *before, "-f", "http=127.0.0.1:9000", "check", *after)
    assert [one["where"] for one in answer["warnings"]] == (["-f http"] if is_own_port else [])


def test_forwards_before_and_after_the_command_add_up(cli: Cli) -> None:
    answer = check(cli, "-f", "http=127.0.0.1:1", "check", "-f", "http=127.0.0.1:2", "-f", "ssh=127.0.0.1:3")
    assert [(one["protocol"], one["forward_to"]) for one in answer["routes"]] == [
        ("http", ["127.0.0.1:1", "127.0.0.1:2"]),
        ("ssh", ["127.0.0.1:3"]),
    ]


def test_a_forward_replaces_only_the_routes_of_its_protocol_in_the_file(cli: Cli) -> None:
    cli.write(FILE.format(server="", route='[[protocols]]\nname = "ssh"\nforward_to = "127.0.0.1:22"'))
    routes = check(cli, "check", "-f", "http=[::1]:80")["routes"]
    assert {one["protocol"]: one["forward_to"] for one in routes} == {
        "http": ["[::1]:80"],
        "ssh": ["127.0.0.1:22"],
    }


def test_a_forward_replaces_a_route_of_the_file_whose_plugin_is_not_installed(cli: Cli) -> None:
    cli.write(FILE.format(server="", route='[[protocols]]\nname = "ssh"\nforward_to = "127.0.0.1:22"'))
    assert cli("check", "--disable-plugin", "ssh").code == 2
    assert cli("check", "--disable-plugin", "ssh", "-f", "ssh=127.0.0.1:22").code == 2
    assert cli("check", "--disable-plugin", "dns").code == 0


def test_the_file_may_have_another_name(cli: Cli) -> None:
    path = cli.write(FILE.format(server="", route=""), "other.toml")
    assert cli("check").code == 2
    assert cli("check", "-c", path).code == 0
    assert cli("--config", path, "check").code == 0


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["tcp"],
        ["init"],
        ["check"],
        ["plugins"],
        ["plugins", "list"],
        ["plugins", "info"],
        ["plugins", "new"],
        ["identify"],
        ["schema"],
        ["demo"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_every_command_explains_itself(cli: Cli, command: list[str], option: str) -> None:
    done = cli(*command, option)
    assert (done.code, done.err) == (0, "")
    assert "Usage: refractium" in done.out
    assert " ".join(command) in done.out


def test_the_help_names_every_command_and_option(cli: Cli) -> None:
    help_ = cli("--help").out
    for command in ("tcp", "init", "check", "plugins", "identify", "schema", "demo"):
        assert f" {command} " in help_
    for option in (
        *("--bind", "--port", "--config", "--forward", "--peek-timeout", "--peek-buffer"),
        *("--max-connections", "--max-connections-per-ip", "--disable-plugin", "--strict-plugins"),
        *("--log-format", "--debug", "--version", "--help"),
    ):
        assert option in help_
        assert option in cli("tcp", "--help").out or option == "--version"


def test_the_version_is_the_distributions(cli: Cli) -> None:
    done = cli("--version")
    assert (done.code, done.out) == (0, f"refractium, version {refractium.__version__}\n")
