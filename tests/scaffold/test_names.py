"""The names that a new plugin may have."""

from __future__ import annotations

from typing import Any

import pytest

from refractium.contract import Protocol, define_protocol
from refractium.contract.protocol import NO, valid_name
from refractium.plugins import InstalledPlugin, Plugins
from refractium.plugins.installed import Given
from refractium.scaffold import KINDS, Kind, problem_of_new_name

NOTHING = Plugins((), ())


def plugins_with(id_: str, **given: Any) -> Plugins:
    plugin = InstalledPlugin(id=id_, distribution=f"other-{id_}", version="2.0")
    return Plugins((plugin,), (), given={id_: Given(**given)})


def protocol_named(name: str) -> Protocol:
    return define_protocol(name, max_bytes=1)(lambda _: NO)


@pytest.mark.parametrize("name", ["q", "redis", "my-thing", "my_thing", "a1-b2_c3", "x" * 32])
@pytest.mark.parametrize("kind", KINDS)
def test_valid_names_are_accepted(kind: str, name: str) -> None:
    assert valid_name(name)
    assert problem_of_new_name(KINDS[kind], name, NOTHING) is None


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("Redis", "redis"),
        ("my thing", "my-thing"),
        ("my.thing", "my-thing"),
        ("my--thing", "my-thing"),
        ("my-", "my"),
        ("_my", "my"),
        ("redis\n", "redis"),
        ("../redis", "redis"),
        ("2fast", None),
        ("", None),
        ("-", None),
        ("x" * 33, None),
        ("ärger", None),
        ("redis\u0660", None),
    ],
)
def test_an_invalid_name_is_refused_with_a_similar_name(name: str, meant: str | None) -> None:
    problem = problem_of_new_name(KINDS["protocol"], name, NOTHING)
    assert problem
    assert "lower-case letters" in problem
    assert problem.partition("did you mean ")[2] == (f"'{meant}'?" if meant else "")


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_the_name_of_a_distribution_is_refused_with_the_name_alone(kind: Kind) -> None:
    for name in (f"{kind.prefix}redis", "refractium-proto-redis", "refractium_hooks_redis"):
        problem = problem_of_new_name(kind, name, NOTHING)
        assert str(problem).endswith(": did you mean 'redis'?")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *[("protocol", "any"), ("protocol", "fallback"), ("balancer", "round_robin")],
        *[("health-check", "tcp"), ("health-check", "none"), ("command", "status")],
    ],
)
def test_the_name_of_a_built_in_object_is_refused(kind: str, name: str) -> None:
    assert f"'{name}' is built in" in str(problem_of_new_name(KINDS[kind], name, NOTHING))
    assert problem_of_new_name(KINDS["hook"], name, NOTHING) is None


@pytest.mark.parametrize("name", ["http", "https", "ssh", "dns", "ftp", "pcap"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_id_of_a_plugin_of_the_project_is_refused_even_if_it_is_not_installed(
    kind: str, name: str
) -> None:
    problem = str(problem_of_new_name(KINDS[kind], name, NOTHING))
    assert f"-{name})" in problem or f"{name}' is built in" in problem


def test_the_id_of_an_installed_plugin_is_refused_for_every_kind() -> None:
    for kind in KINDS.values():
        assert "other-mine 2.0" in str(problem_of_new_name(kind, "mine", plugins_with("mine")))


def test_the_name_of_an_object_of_an_installed_plugin_is_refused_for_its_kind() -> None:
    plugins = plugins_with("pack", protocols=(protocol_named("mine"),))
    assert "other-pack 2.0" in str(problem_of_new_name(KINDS["protocol"], "mine", plugins))
    assert problem_of_new_name(KINDS["balancer"], "mine", plugins) is None
