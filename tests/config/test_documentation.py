from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from refractium.backends.checks import CHECKS
from refractium.config import Config, Source, decode, json_schema, template
from support.configurations import assembled

REFERENCE = Path(__file__).parents[2] / "docs/reference/configuration.md"
TEXT = REFERENCE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```toml\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def uncommented(text: str) -> str:
    """Return the text with every commented key and table enabled."""
    return re.sub(r"^# (?=\[\[|[a-z_]+ = )", "", text, flags=re.MULTILINE)


def properties(struct: str) -> dict[str, Any]:
    found: dict[str, Any] = json_schema()["$defs"][struct]["properties"]
    return found


@pytest.mark.parametrize("block", BLOCKS)
def test_every_example_of_the_reference_is_valid(block: str) -> None:
    assert decode(Source(block, str(REFERENCE))).problems == ()


def test_the_template_states_the_defaults() -> None:
    (next_step,) = assembled(template()).warnings
    assert next_step.where == "protocols"
    assert "forward_to" in next_step.message
    # With one exception: a file without a route could not be served.
    config = decode(Source(template(), "refractium.toml")).config
    assert config == Config(protocols=config.protocols)


def test_the_template_sends_no_client_to_a_program_that_the_user_did_not_name() -> None:
    config = decode(Source(template(), "refractium.toml")).config
    assert (config.server.fallback_tcp, config.server.fallback_udp) == (None, None)
    assert [route.backends for route in config.protocols] == [()]


def test_the_template_with_every_key_enabled_is_valid() -> None:
    found = decode(Source(uncommented(template()), "refractium.toml"))
    assert found.problems == ()
    assert len(found.config.protocols) > 4


@pytest.mark.parametrize(
    "struct", ["ServerConfig", "RouteConfig", "LogConfig", "PluginsConfig", "CheckConfig"]
)
def test_the_template_shows_every_key(struct: str) -> None:
    shown = set(re.findall(r"^([a-z0-9_]+) = ", uncommented(template()), re.MULTILINE))
    assert set(properties(struct)) <= shown


def test_the_schema_describes_the_whole_file() -> None:
    schema = json_schema()
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert set(properties("Config")) == {
        "server",
        "listeners",
        "protocols",
        "log",
        "metrics",
        "plugins",
        "check",
        "fallback_tcp",
        "fallback_udp",
    }
    for struct in (
        "Config",
        "ServerConfig",
        "ListenerConfig",
        "RouteConfig",
        "Member",
        "PatternTable",
        "LogConfig",
        "MetricsConfig",
    ):
        assert schema["$defs"][struct]["additionalProperties"] is False
    assert schema["$defs"]["PluginsConfig"]["additionalProperties"] == {"type": "object"}
    assert schema["$defs"]["RouteConfig"]["required"] == ["name"]
    assert schema["$defs"]["RouteConfig"]["oneOf"] == [{"required": ["forward_to"]}, {"required": ["action"]}]
    assert schema["$defs"]["ListenerConfig"]["required"] == ["port"]


def test_the_schema_knows_the_keys_of_each_kind_of_check() -> None:
    health = json_schema()["$defs"]["HealthConfig"]
    assert set(health["properties"]) == {"kind", "interval_ms", "timeout_ms", "rise", "fall"}
    by_kind = {one["if"]["properties"]["kind"]["const"]: one["then"] for one in health["allOf"]}
    assert by_kind.keys() == {*CHECKS, "none"}
    assert by_kind["send_expect"]["required"] == ["expect"]
    assert set(by_kind["http"]["properties"]) == {"path", "host", "status"}
    assert "path" in by_kind["http"]["propertyNames"]["enum"]
    assert "path" not in by_kind["tcp"]["propertyNames"]["enum"]
