"""Plugins that provide kinds of health checks and balancers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from refractium import Balancer, HealthCheck, Transport
from refractium.contract import hookimpl, problems_of_health_check
from refractium.plugins.loading import load_plugins

if TYPE_CHECKING:
    from collections.abc import Callable

    from refractium.plugins.installed import InstalledPlugin


class Frozen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    depth: int = 1


class Check(HealthCheck[Any]):
    settings = Frozen

    def __init__(self, name: str) -> None:
        self.name = name

    async def check(self, endpoint: object, settings: object, timeout: float) -> str | None:  # noqa: ASYNC109
        del endpoint, settings, timeout
        return None


def way(name_: str) -> type[Balancer]:
    class Way(Balancer):
        name = name_

        def order(self, backends: Any, client: str) -> Any:
            del client
            return backends

    return Way


class EntryPoint:
    """An installed plugin, without a distribution."""

    dist = None
    module = "not imported"

    def __init__(self, name: str, *, checks: Any = None, balancers: Any = None) -> None:
        self.name = name
        self._checks = checks
        self._balancers = balancers

    def load(self) -> object:
        class Plugin:
            @staticmethod
            @hookimpl
            def refractium_health_checks() -> Any:
                return self._checks

            @staticmethod
            @hookimpl
            def refractium_balancers() -> Any:
                return self._balancers

        return Plugin


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def install(*found: EntryPoint) -> None:
        monkeypatch.setattr("refractium.plugins.loading.entry_points", lambda **_: found)

    return install


def the_only_plugin() -> InstalledPlugin:
    (plugin,) = load_plugins().entries
    return plugin


def test_a_plugin_may_provide_both_checks_and_balancers(install: Callable[..., None]) -> None:
    deep, fair = Check("deep"), way("fair")
    install(EntryPoint("x", checks=[deep], balancers=[fair]))
    plugins = load_plugins()
    (plugin,) = plugins.entries
    assert (plugin.status, plugin.kind, plugin.transports) == ("loaded", "health_check", ())
    assert plugins.health_checks == {"deep": deep}
    assert plugins.balancers == {"fair": fair}
    assert plugins.protocols == ()


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"checks": [Check("tcp")]}, "gives health check 'tcp', which is built in"),
        ({"checks": [Check("none")]}, "gives health check 'none', which is built in"),
        ({"balancers": [way("first")]}, "gives balancer 'first', which is built in"),
        ({"checks": [Check("a"), Check("a")]}, "twice"),
        ({"balancers": [way("a"), way("a")]}, "twice"),
        ({"balancers": [dict]}, "is not a class derived from Balancer"),
        ({"checks": [Check("A B")]}, 'name "A B": '),
        ({"checks": ["deep"]}, '"deep" is not a HealthCheck'),
        ({}, "or it returns None"),
    ],
)
def test_a_check_or_balancer_that_breaks_a_rule_fails_its_plugin(
    install: Callable[..., None], given: dict[str, Any], error: str
) -> None:
    install(EntryPoint("x", **given))
    plugin = the_only_plugin()
    assert plugin.status == "failed"
    assert error in str(plugin.error)


def test_two_plugins_with_the_same_check_both_fail(install: Callable[..., None]) -> None:
    install(EntryPoint("x", checks=[Check("deep")]), EntryPoint("y", checks=[Check("deep"), Check("other")]))
    plugins = load_plugins()
    assert [plugin.status for plugin in plugins.entries] == ["failed", "failed"]
    assert "plugin 'x'" in str(plugins.entries[0].error)
    assert "give health check 'deep': uninstall or disable all but one" in str(plugins.entries[0].error)
    assert plugins.health_checks == {}


class Open(msgspec.Struct):
    depth: int = 1


class Shared(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rise: int = 1


@pytest.mark.parametrize(
    ("attributes", "problem"),
    [
        ({"settings": Open}, "not a Struct that is frozen and forbids unknown fields"),
        ({"settings": dict}, "not a Struct"),
        ({"settings": Shared}, "settings has rise, which every health check has already"),
        ({"transports": frozenset()}, "not a set of Transport"),
        ({"transports": {"tcp"}}, "not a set of Transport"),
        ({"transports": None}, "not a set of Transport"),
        ({"transports": frozenset({Transport.UDP})}, ""),
    ],
)
def test_an_object_that_is_not_a_health_check_is_refused_with_the_reason(
    attributes: dict[str, object], problem: str
) -> None:
    check = Check("deep")
    for name, value in attributes.items():
        setattr(check, name, value)
    found = "; ".join(problems_of_health_check(check))
    assert problem in found
    assert bool(found) is bool(problem)
