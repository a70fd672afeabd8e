"""The installed plugins: the result of loading each plugin, and the objects that loaded plugins provide."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from importlib_metadata import PackageNotFoundError, requires

from refractium.identify.everything import ANY_PROTOCOLS
from refractium.problems import suggestion

if TYPE_CHECKING:
    from collections.abc import Mapping

    from click import Command

    from refractium.contract import (
        Balancer,
        HealthCheck,
        PacketHook,
        Protocol,
        Scene,
    )
    from refractium.plugins.local import PluginFile


Kind: TypeAlias = Literal["protocol", "hook", "health_check", "balancer", "command", "scene", "unknown"]
"""The kind of object that a plugin provides; ``unknown`` if Refractium could not ask the plugin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledPlugin:
    """An installed plugin, with the result of loading it.

    Attributes:
        id: the name of the plugin's entry point.
        kind: the kind of object that the plugin provides, or the first of several kinds; ``unknown`` if
            Refractium could not ask the plugin.
        transports: the transports of the plugin's protocols, sorted.
        distribution: the name of the distribution that installed the plugin; for a local plugin, the path of
            its file.
        version: the version of that distribution. After an upgrade, a program that already runs keeps the
            old code, and the old version here. For a local plugin, the first digits of a hash of the file.
        status: ``loaded``; ``blocked`` (disabled and not imported); ``incompatible`` (written for another
            `API_VERSION`); ``failed``.
        error: the reason why the plugin is not loaded, in one line; None if the plugin is loaded.
        summary: the summary in the metadata of the distribution; for a local plugin, the first line of the
            docstring of the file.
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
        """Return all attributes by name, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"plugin '{self.id}' of {self.distribution} {self.version}"


@dataclass(frozen=True, slots=True)
class Given:
    """The objects that one plugin provides, by kind."""

    protocols: tuple[Protocol, ...] = ()
    health_checks: tuple[HealthCheck[Any], ...] = ()
    balancers: tuple[type[Balancer], ...] = ()
    hooks: tuple[type[PacketHook[Any]], ...] = ()
    commands: tuple[Command, ...] = ()
    scenes: tuple[Scene, ...] = ()

    @property
    def claims(self) -> tuple[tuple[str, str, str], ...]:
        """The kind, name and transport of each object. Only protocols have a transport that is not empty.

        If two plugins have a claim in common, Refractium refuses both plugins.
        """
        return (
            *(("protocol", one.name, one.transport.value) for one in self.protocols),
            *(("health check", one.name, "") for one in self.health_checks),
            *(("balancer", one.name, "") for one in self.balancers),
            *(("hook", one.name, "") for one in self.hooks),
            *(("command", str(one.name), "") for one in self.commands),
            *(("scene", one.protocol, "") for one in self.scenes),
        )


@dataclass(frozen=True, slots=True)
class Plugins:
    """All installed plugins.

    Attributes:
        entries: the plugins, sorted by id.
        protocols: the protocols of the loaded plugins, sorted by name and transport.
        refused: each refused plugin, by the name of each protocol that the plugin provides.
        given: the objects that each loaded plugin provides, by the id of the plugin.
        outdated: the installed version of each plugin whose running code has another version, by the id of
            the plugin.
        files: the files of the local plugins, blocked or not.
    """

    entries: tuple[InstalledPlugin, ...]
    protocols: tuple[Protocol, ...]
    refused: Mapping[str, InstalledPlugin] = field(default_factory=dict)
    given: Mapping[str, Given] = field(default_factory=dict)
    outdated: Mapping[str, str] = field(default_factory=dict)
    files: tuple[PluginFile, ...] = ()

    @property
    def health_checks(self) -> dict[str, HealthCheck[Any]]:
        """The health checks of the loaded plugins, by name."""
        return {check.name: check for given in self.given.values() for check in given.health_checks}

    @property
    def balancers(self) -> dict[str, type[Balancer]]:
        """The balancing methods of the loaded plugins, by name."""
        return {balancer.name: balancer for given in self.given.values() for balancer in given.balancers}

    @property
    def hooks(self) -> dict[str, tuple[type[PacketHook[Any]], str]]:
        """The packet hooks of the loaded plugins, by name. Each value is a hook and the id of its plugin."""
        return {hook.name: (hook, id_) for id_, given in self.given.items() for hook in given.hooks}

    @property
    def commands(self) -> dict[str, Command]:
        """The commands of the loaded plugins, by name."""
        return {str(one.name): one for given in self.given.values() for one in given.commands}

    @property
    def scenes(self) -> dict[str, Scene]:
        """The scenes of the loaded plugins, by the name of the protocol."""
        return {one.protocol: one for given in self.given.values() for one in given.scenes}

    def protocols_named(self, name: str) -> tuple[Protocol, ...]:
        """Return the loaded or built-in protocols with this name, at most one for each transport."""
        return tuple(protocol for protocol in (*self.protocols, *ANY_PROTOCOLS) if protocol.name == name)

    def explain_missing(self, name: str) -> str:
        """Return, in one line, the reason why no loaded protocol has this name, and a remedy."""
        unloaded = {plugin.id: plugin for plugin in self.entries if plugin.status != "loaded"}
        if plugin := self.refused.get(name) or unloaded.get(name):
            return f"protocol '{name}' is not available: {plugin} ({plugin.status}): {plugin.error}"
        known = (*self.protocols, *ANY_PROTOCOLS)
        aliases = {alias: protocol.name for protocol in known for alias in protocol.aliases}
        names = {protocol.name for protocol in known}
        alias = aliases.get(name.lower())
        meant = suggestion(name, names) if alias is None else f": did you mean '{alias}'?"
        remedy = _remedy("protocol", name, meant)
        if not any(plugin.kind in {"protocol", "unknown"} for plugin in self.entries):
            remedy += " (no protocol is installed; for all of them: pip install 'refractium-protocols[all]')"
        return f"protocol '{name}' is not installed{remedy}"

    def explain_unknown_id(self, id_: str) -> str:
        """Return a message in one line: no installed plugin has this id.

        The message suggests a similar id, or lists all ids. For the name or an alias of a protocol, the
        message suggests the plugin that provides the protocol.
        """
        ids = dict.fromkeys(plugin.id for plugin in self.entries)
        owners: dict[str, str] = {}
        for plugin, given in self.given.items():
            for protocol in given.protocols:
                owners |= dict.fromkeys((*protocol.aliases, protocol.name), plugin)
        owner = owners.get(id_.lower())
        meant = suggestion(id_, ids) if owner is None else f": did you mean '{owner}'?"
        installed = f"; installed: {', '.join(ids) or 'none'}"
        return f"no plugin has the id '{id_}'{meant or installed}"

    def explain_nothing(self) -> str:
        """Return, in one line, the reason why no plugin provides a protocol, and a remedy."""
        unloaded = (
            one for one in self.entries if one.status != "loaded" and "-hooks-" not in one.distribution
        )
        if reasons := "; ".join(f"{plugin} ({plugin.status}): {plugin.error}" for plugin in unloaded):
            return f"no protocol is loaded: {reasons}"
        return "no protocol is installed: pip install 'refractium-protocols[all]'"

    def explain_missing_hook(self, name: str) -> str:
        """Return, in one line, the reason why no loaded packet hook has this name, and a remedy."""
        if plugin := next((one for one in self.entries if one.id == name and one.status != "loaded"), None):
            return f"hook '{name}' is not available: {plugin} ({plugin.status}): {plugin.error}"
        remedy = _remedy("hook", name, suggestion(name, self.hooks))
        return f"hook '{name}' is not installed{remedy}"


def _remedy(kind: str, name: str, meant: str) -> str:
    """Return what to do about a name that is not installed.

    Args:
        kind: ``protocol`` or ``hook``.
        name: the name.
        meant: the suggestion of another name, or "".
    """
    distribution = own_distributions().get((kind, name))
    if distribution is None:
        return meant or f": install the plugin that provides this {kind}"
    return f"{meant}{' if not' if meant else ''}: pip install {distribution}"


def own_distributions() -> dict[tuple[str, str], str]:
    """Return the distributions of the project that provide plugins, by kind and id of the plugin.

    The extras of the project require these distributions. A message must not make up the name of a
    distribution from the user's text: anybody could register a distribution for a frequent misspelling.
    """
    found = {}
    for owner in ("refractium-core", "refractium-protocols"):
        with suppress(PackageNotFoundError):
            for requirement in requires(owner) or ():
                if plugin := _OWN_PLUGIN.match(requirement):
                    found[_KINDS[plugin["kind"]], plugin["id"]] = plugin[0]
    return found


_OWN_PLUGIN: Final = re.compile(r"refractium-(?P<kind>proto|hooks)-(?P<id>[a-z0-9-]+)")
_KINDS: Final = {"proto": "protocol", "hooks": "hook"}
