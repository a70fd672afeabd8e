"""What was found of plugins, and what became of each."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

    from click import Command

    from refractium.contract import (
        Balancer,
        HealthCheck,
        PacketHook,
        Protocol,
    )


Kind: TypeAlias = Literal["protocol", "hook", "health_check", "balancer", "command", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginReport:
    """What became of one installed plugin.

    Attributes:
        id: the name of its entry point.
        kind: what it gives, of several things the first; ``unknown`` where it could not be asked.
        transports: those of its protocols, sorted.
        distribution: the name of the distribution that installed it.
        version: the version of that distribution.
        status: ``loaded``; ``blocked`` (left out, not even imported); ``incompatible`` (written for another
            `API_VERSION`); ``failed``.
        error: why it is not loaded, in one line; None where it is.
        summary: what the distribution says it is.
    """

    id: str
    kind: Kind = "unknown"
    transports: tuple[str, ...] = ()
    distribution: str
    version: str
    status: Literal["loaded", "blocked", "incompatible", "failed"] = "loaded"
    error: str | None = None
    summary: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The same by key, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"plugin {self.id!r} of {self.distribution} {self.version}"


@dataclass(frozen=True, slots=True)
class Given:
    """What one plugin gives, or all of them."""

    protocols: tuple[Protocol, ...] = ()
    health_checks: tuple[HealthCheck[Any], ...] = ()
    balancers: tuple[type[Balancer], ...] = ()
    hooks: tuple[type[PacketHook[Any]], ...] = ()
    commands: tuple[Command, ...] = ()

    @property
    def claims(self) -> tuple[tuple[str, str, str], ...]:
        """What only one plugin can give: what it is, its name and, of a protocol, its transport."""
        return (
            *(("protocol", one.name, one.transport.value) for one in self.protocols),
            *(("health check", one.name, "") for one in self.health_checks),
            *(("balancer", one.name, "") for one in self.balancers),
            *(("hook", one.name, "") for one in self.hooks),
            *(("command", str(one.name), "") for one in self.commands),
        )


@dataclass(frozen=True, slots=True)
class Plugins:
    """All that is installed.

    Attributes:
        reports: one for each plugin, sorted by id.
        protocols: those of the loaded plugins, sorted by name and transport.
        refused: the names of protocols that a plugin gave and that were not taken, with its report.
        given: what each loaded plugin gives, by its id.
    """

    reports: tuple[PluginReport, ...]
    protocols: tuple[Protocol, ...]
    refused: Mapping[str, PluginReport] = field(default_factory=dict)
    given: Mapping[str, Given] = field(default_factory=dict)

    @property
    def health_checks(self) -> dict[str, HealthCheck[Any]]:
        """Those of the loaded plugins, by name."""
        return {check.name: check for given in self.given.values() for check in given.health_checks}

    @property
    def balancers(self) -> dict[str, type[Balancer]]:
        """Those of the loaded plugins, by name."""
        return {balancer.name: balancer for given in self.given.values() for balancer in given.balancers}

    @property
    def hooks(self) -> dict[str, tuple[type[PacketHook[Any]], str]]:
        """Those of the loaded plugins, by name, each with the id of its plugin."""
        return {hook.name: (hook, id_) for id_, given in self.given.items() for hook in given.hooks}

    @property
    def commands(self) -> dict[str, Command]:
        """Those of the loaded plugins, by name."""
        return {str(one.name): one for given in self.given.values() for one in given.commands}

    def protocols_named(self, name: str) -> tuple[Protocol, ...]:
        """The protocols a route of this name means, at most one for each transport."""
        return tuple(protocol for protocol in self.protocols if protocol.name == name)

    def explain_missing(self, name: str) -> str:
        """Why `protocols_named` finds nothing of this name, and what to do about it; one line."""
        unloaded = {report.id: report for report in self.reports if report.status != "loaded"}
        if report := self.refused.get(name) or unloaded.get(name):
            return f"protocol {name!r} is not available: {report} ({report.status}): {report.error}"
        message = f"protocol {name!r} is not installed: pip install {shlex.quote(f'refractium-proto-{name}')}"
        if not any(report.kind in {"protocol", "unknown"} for report in self.reports):
            message += " (no protocol is; for all of them: pip install 'refractium-protocols[all]')"
        elif close := get_close_matches(name.lower(), {protocol.name for protocol in self.protocols}, n=1):
            message += f"; did you mean {close[0]!r}?"
        return message

    def explain_missing_hook(self, name: str) -> str:
        """The same for a packet hook."""
        if report := next((one for one in self.reports if one.id == name and one.status != "loaded"), None):
            return f"hook {name!r} is not available: {report} ({report.status}): {report.error}"
        close = get_close_matches(name.lower(), self.hooks, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"hook {name!r} is not installed: pip install {shlex.quote(f'refractium-hooks-{name}')}{hint}"
