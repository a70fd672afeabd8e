"""Finds the installed plugins, asks each for what it gives and reports on every one.

This is the only user of pluggy's manager and of entry points. A broken plugin becomes a report, never an
exception, and the order in which plugins are found decides nothing: what two of them claim, neither gets.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import sys
import traceback
import warnings
from collections import defaultdict
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final, Literal

import pluggy
from importlib_metadata import EntryPoint, entry_points

from refractium.contract import API_VERSION, ENTRY_POINT_GROUP, Protocol, hookspecs, problems_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

DISABLE_VARIABLE: Final = "REFRACTIUM_DISABLE_PLUGINS"
"""The environment variable that lists ids to leave out, separated by commas."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginReport:
    """What became of one installed plugin.

    Attributes:
        id: the name of its entry point.
        kind: what it gives; ``unknown`` where it could not be asked.
        transports: those of its protocols, sorted.
        distribution: the name of the distribution that installed it.
        version: the version of that distribution.
        status: ``loaded``; ``blocked`` (left out, not even imported); ``incompatible`` (written for another
            `API_VERSION`); ``failed``.
        error: why it is not loaded, in one line; None where it is.
        summary: what the distribution says it is.
    """

    id: str
    kind: Literal["protocol", "unknown"] = "unknown"
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
class Plugins:
    """All that is installed.

    Attributes:
        reports: one for each plugin, sorted by id.
        protocols: those of the loaded plugins, sorted by name and transport.
        refused: the names of protocols that a plugin gave and that were not taken, with its report.
        given: the protocols of each loaded plugin, by its id.
    """

    reports: tuple[PluginReport, ...]
    protocols: tuple[Protocol, ...]
    refused: Mapping[str, PluginReport] = field(default_factory=dict)
    given: Mapping[str, tuple[Protocol, ...]] = field(default_factory=dict)

    def protocols_named(self, name: str) -> tuple[Protocol, ...]:
        """The protocols a route of this name means, at most one for each transport."""
        return tuple(protocol for protocol in self.protocols if protocol.name == name)

    def explain_missing(self, name: str) -> str:
        """Why `protocols_named` finds nothing of this name, and what to do about it; one line."""
        unloaded = {report.id: report for report in self.reports if report.status != "loaded"}
        if report := self.refused.get(name) or unloaded.get(name):
            return f"protocol {name!r} is not available: {report} ({report.status}): {report.error}"
        message = f"protocol {name!r} is not installed: pip install {shlex.quote(f'refractium-proto-{name}')}"
        if not self.reports:
            message += " (no protocol is; for all of them: pip install 'refractium-protocols[all]')"
        elif close := get_close_matches(name.lower(), {protocol.name for protocol in self.protocols}, n=1):
            message += f"; did you mean {close[0]!r}?"
        return message


def load_plugins(disabled: Collection[str] = ()) -> Plugins:
    """Load every installed plugin that is not disabled.

    Args:
        disabled: ids to leave out, before they are imported; those of `DISABLE_VARIABLE` are added.

    Returns:
        A report on each plugin, and the protocols of those that loaded.
    """
    by_environment = (id_.strip() for id_ in os.environ.get(DISABLE_VARIABLE, "").split(","))
    blocked = dict.fromkeys(by_environment, f"disabled by {DISABLE_VARIABLE}")
    blocked |= dict.fromkeys(disabled, "disabled by --disable-plugin or by disable under [plugins]")
    found = [(_describe(entry_point), entry_point) for entry_point in entry_points(group=ENTRY_POINT_GROUP)]
    found.sort(key=lambda one: (one[0].id, one[0].distribution, one[0].version))
    claimants: defaultdict[str, list[str]] = defaultdict(list)
    for report, _ in found:
        claimants[report.id].append(f"{report.distribution} {report.version}")

    loaded: list[tuple[PluginReport, list[Protocol]]] = []
    for report, entry_point in found:
        if report.id in blocked:
            loaded.append((replace(report, status="blocked", error=blocked[report.id]), []))
        elif len(names := claimants[report.id]) > 1:
            error = f"{' and '.join(names)} claim the id {report.id!r}: uninstall all but one"
            loaded.append((replace(report, status="failed", error=error), []))
        else:
            loaded.append(_load(report, entry_point))
    return _without_contested(loaded)


def _describe(entry_point: EntryPoint) -> PluginReport:
    """The report on a plugin before anything is known but who installed it."""
    about: Mapping[str, str] = {}
    with contextlib.suppress(Exception):  # a distribution without readable metadata still gets its row
        metadata = entry_point.dist.metadata  # type: ignore[union-attr]
        about = {key: metadata.get(key) or "" for key in ("Name", "Version", "Summary")}
    return PluginReport(
        id=entry_point.name,
        distribution=about.get("Name") or "unknown",
        version=about.get("Version") or "unknown",
        summary=about.get("Summary", ""),
    )


def _load(report: PluginReport, entry_point: EntryPoint) -> tuple[PluginReport, list[Protocol]]:
    """Import one plugin and ask it, in a manager of its own so that it cannot disturb another."""
    try:
        # What a plugin prints or warns about must not end up in the data of a command, nor stop it.
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(sys.stderr):
            plugin = entry_point.load()
            version = getattr(plugin, "refractium_api_version", API_VERSION)
            if version != API_VERSION:
                error = f"written for version {version!r} of the plugin contract, not for {API_VERSION}"
                return replace(report, status="incompatible", error=error), []
            manager = pluggy.PluginManager("refractium")
            manager.add_hookspecs(hookspecs)
            manager.register(plugin, report.id)
            manager.check_pending()
            report = replace(report, kind="protocol")
            protocols = _protocols_of(manager)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a plugin may raise anything
        _log.debug("%s failed", report, exc_info=error)
        # One line, with the place of a SyntaxError, and safe from an exception that cannot be printed.
        text = " ".join("".join(traceback.format_exception_only(error)).split())
        return replace(report, status="failed", error=text), []
    return replace(report, transports=tuple(sorted({p.transport.value for p in protocols}))), protocols


def _protocols_of(manager: pluggy.PluginManager) -> list[Protocol]:
    """What the one plugin of `manager` gives; raises whatever shows that the plugin is broken."""
    results = manager.hook.refractium_protocols()
    if not results:  # pluggy drops None
        raise TypeError("no @hookimpl function refractium_protocols(), or it returns None")
    protocols = [protocol for result in results for protocol in result]
    if problems := [problem for protocol in protocols for problem in problems_of(protocol)]:
        raise TypeError("; ".join(problems))
    if len({(protocol.name, protocol.transport) for protocol in protocols}) < len(protocols):
        raise ValueError(f"gives a protocol twice: {protocols}")
    return protocols


def _without_contested(loaded: Collection[tuple[PluginReport, list[Protocol]]]) -> Plugins:
    """Refuse all plugins that give the same protocol for the same transport as another."""
    givers: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for report, given in loaded:
        for protocol in given:
            givers[protocol.name, protocol.transport].append(str(report))
    reports: list[PluginReport] = []
    protocols: list[Protocol] = []
    refused: dict[str, PluginReport] = {}
    taken: dict[str, tuple[Protocol, ...]] = {}
    for report, given in loaded:
        if contested := [p for p in given if len(givers[p.name, p.transport]) > 1]:
            who = " and ".join(givers[contested[0].name, contested[0].transport])
            error = f"{who} give protocol {contested[0].name!r}: uninstall or disable all but one"
            reports.append(replace(report, status="failed", error=error))
            refused |= dict.fromkeys((protocol.name for protocol in given), reports[-1])
        else:
            reports.append(report)
            protocols += given
            taken[report.id] = tuple(given)
    protocols.sort(key=lambda protocol: (protocol.name, protocol.transport))
    return Plugins(tuple(reports), tuple(protocols), refused, taken)
