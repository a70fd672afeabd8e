"""Loading of the installed plugins and the local plugins, with the result for each plugin.

Only this module uses pluggy's manager and entry points. A broken plugin gets an entry, and raises no
exception. The result does not depend on the order of the plugins. If two plugins provide the same object,
Refractium refuses both.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import warnings
from collections import Counter, defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pluggy
from importlib_metadata import EntryPoint, entry_points

from refractium.contract import (
    API_VERSION,
    ENTRY_POINT_GROUP,
    hookspecs,
    problems_of,
    problems_of_balancer,
    problems_of_health_check,
    problems_of_hook,
    problems_of_scene,
)
from refractium.contract.protocol import problems_of_name
from refractium.contract.words import shown
from refractium.guard.faults import is_interrupt, text_of
from refractium.guard.origins import add_module, set_origin
from refractium.identify.everything import ANY, FALLBACK
from refractium.plugins.installed import Given, InstalledPlugin, Kind, Plugins
from refractium.plugins.local import PluginFile
from refractium.routing import BALANCERS
from refractium.wire.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from importlib_metadata import Distribution


DISABLE_VARIABLE: Final = "REFRACTIUM_DISABLE_PLUGINS"
"""The environment variable with the ids of plugins to leave out, separated by commas."""

COMMANDS: Final = ("tcp", "udp", "init", "check", "plugins", "identify", "schema", "demo", "status")
"""The names of the program's own commands. This module cannot import them from the layer `refractium.cli`."""


_log = logging.getLogger(__name__)


def load_plugins(disabled: Collection[str] = ()) -> Plugins:
    """Load every installed plugin that is not disabled.

    Args:
        disabled: ids of plugins that are not even imported, in addition to the ids in the environment
            variable ``REFRACTIUM_DISABLE_PLUGINS``.

    Returns:
        An entry for each plugin, and the objects that the loaded plugins provide.
    """
    return load_with_files(disabled, ())


def load_with_files(disabled: Collection[str], files: Sequence[PluginFile]) -> Plugins:
    """Load every installed plugin and every local plugin that is not disabled; see `load_plugins`."""
    disabled_by = dict.fromkeys(disabled_by_environment(), f"disabled by {DISABLE_VARIABLE}")
    disabled_by |= dict.fromkeys(disabled, "disabled by --disable-plugin or by disable under [plugins]")
    found: list[tuple[InstalledPlugin, EntryPoint | PluginFile]] = [
        *((_describe(entry_point), entry_point) for entry_point in entry_points(group=ENTRY_POINT_GROUP)),
        *((file.entry, file) for file in files),
    ]
    found.sort(key=lambda one: (one[0].id, one[0].distribution, one[0].version))
    claimants: defaultdict[str, list[str]] = defaultdict(list)
    for plugin, _ in found:
        claimants[plugin.id].append(f"{plugin.distribution} {plugin.version}")

    loaded: list[tuple[InstalledPlugin, Given]] = []
    for plugin, source in found:
        if plugin.id in disabled_by:
            loaded.append((replace(plugin, status="blocked", error=disabled_by[plugin.id]), Given()))
        elif len(names := claimants[plugin.id]) > 1:
            error = f"{' and '.join(names)} claim the id '{plugin.id}': remove all but one"
            loaded.append((replace(plugin, status="failed", error=error), Given()))
        elif isinstance(source, PluginFile) and source.problem:
            loaded.append((replace(plugin, status="failed", error=source.problem), Given()))
        elif problem := next(problems_of_name(plugin.id), None):
            error = f"the entry point has an invalid {problem}"
            loaded.append((replace(plugin, status="failed", error=error), Given()))
        else:
            loaded.append(_load(plugin, source))
    outdated = {
        on_disk.id: on_disk.version
        for (on_disk, _), (running, _) in zip(found, loaded, strict=True)
        if on_disk.version != running.version
    }
    return replace(_without_contested(loaded), outdated=outdated, files=tuple(files))


def disabled_by_environment() -> tuple[str, ...]:
    """Return the ids of the plugins that the environment variable disables, in its order."""
    ids = (id_.strip() for id_ in os.environ.get(DISABLE_VARIABLE, "").split(","))
    return tuple(id_ for id_ in ids if id_)


def _describe(entry_point: EntryPoint) -> InstalledPlugin:
    """Return the entry of a plugin before its import, when only its id and its distribution are known."""
    about: Mapping[str, str] = {}
    with contextlib.suppress(Exception):  # a distribution without readable metadata still gets an entry
        about = fields_of(entry_point.dist)  # type: ignore[arg-type]
    return InstalledPlugin(
        id=entry_point.name,
        distribution=about.get("name") or "unknown",
        version=about.get("version") or "unknown",
        summary=about.get("summary", ""),
    )


def fields_of(distribution: Distribution) -> dict[str, str]:
    """Return the single-line metadata fields of a distribution, by their names in lower case.

    `Distribution.metadata` would import the e-mail parser of Python, which takes 10 ms and 1 MiB. The fields
    end at the first empty line (https://packaging.python.org/specifications/core-metadata).
    """
    text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    fields: dict[str, str] = {}
    for line in text.split("\n"):
        if not line.strip():
            break
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.lower(), value.strip())
    return fields


_versions: Final[dict[str, str]] = {}
"""The version of each plugin whose code this process has imported, by the module of the plugin. Python keeps
this code until the process ends, even if another version is installed meanwhile."""
_ALONE: Final = threading.RLock()
"""The lock that a thread holds while it imports a plugin."""


def _load(plugin: InstalledPlugin, source: EntryPoint | PluginFile) -> tuple[InstalledPlugin, Given]:
    """Import one plugin and collect the objects that the plugin provides.

    Each plugin has its own pluggy manager, so that no plugin can disturb another plugin.
    """
    try:
        module = source.module  # raises an exception if the value of the entry point is malformed
        if module in sys.modules:
            plugin = replace(plugin, version=_versions.get(module, plugin.version))
        # Output of a plugin must not mix with the output of a command. A warning must not become an error.
        with (
            _ALONE,  # two threads that change the warnings and the stdout of the process would interfere
            warnings.catch_warnings(action="ignore"),
            contextlib.redirect_stdout(sys.stderr),
        ):
            add_module(module, str(plugin))
            implementation = source.load()
            _versions[module] = plugin.version
            version = getattr(implementation, "refractium_api_version", API_VERSION)
            if version != API_VERSION:
                error = f"written for version {shown(version)} of the plugin contract, not for {API_VERSION}"
                return replace(plugin, status="incompatible", error=error), Given()
            manager = pluggy.PluginManager("refractium")
            manager.add_hookspecs(hookspecs)
            manager.register(implementation, plugin.id)
            manager.check_pending()
            plugin = replace(plugin, kind=_kind(manager))
            if isinstance(source, PluginFile):
                plugin = replace(plugin, summary=_first_line(implementation.__doc__))
            given = _given_by(manager)
    except BaseException as error:
        if is_interrupt(error):
            raise
        _log.debug("%s failed", plugin, exc_info=error)
        text = source.explain(error) if isinstance(source, PluginFile) else text_of(error)
        return replace(plugin, status="failed", error=printable(text)), Given()
    for one in (*given.protocols, *given.health_checks, *given.balancers):
        set_origin(one, str(plugin))
    transports = {protocol.transport.value for protocol in given.protocols}
    return replace(plugin, transports=tuple(sorted(transports))), given


def _first_line(docstring: object) -> str:
    return docstring.strip().partition("\n")[0].strip() if isinstance(docstring, str) else ""


def _problems_of_command(command: object) -> Iterator[str]:
    from click import Command  # noqa: PLC0415 - only needed if a plugin provides a command

    if not (isinstance(command, Command) and command.name):
        yield f"{shown(command)} is not a click.Command with a name"


HOOKSPECS: Final[Mapping[str, tuple[Kind, Callable[..., Iterator[str]]]]] = {
    "refractium_protocols": ("protocol", problems_of),
    "refractium_health_checks": ("health_check", problems_of_health_check),
    "refractium_balancers": ("balancer", problems_of_balancer),
    "refractium_hooks": ("hook", problems_of_hook),
    "refractium_commands": ("command", _problems_of_command),
    "refractium_scenes": ("scene", problems_of_scene),
}
"""Each hookspec with the kind of its objects, and the function that yields the problems of one object."""


def _kind(manager: pluggy.PluginManager) -> Kind:
    """Return the kind of the only plugin in `manager`."""
    kinds = (
        kind for hookspec, (kind, _) in HOOKSPECS.items() if getattr(manager.hook, hookspec).get_hookimpls()
    )
    return next(kinds, "unknown")


def _given_by(manager: pluggy.PluginManager) -> Given:
    """Return the objects that the only plugin in `manager` provides.

    Raises:
        Exception: the plugin is broken; the code of a plugin may raise any exception.
        TypeError: the plugin implements no hookspec, or provides an object with problems.
        ValueError: the plugin provides an object twice, or an object with the name of a built-in object.
    """
    given: list[list[Any]] = []
    answers = 0
    for hookspec, (_, problems_in) in HOOKSPECS.items():
        results = getattr(manager.hook, hookspec)()
        answers += len(results)  # pluggy drops None
        given.append([one for result in results for one in result])
        if problems := [problem for one in given[-1] for problem in problems_in(one)]:
            raise TypeError("; ".join(problems))
    if not answers:
        raise TypeError(f"no @hookimpl function {'() or '.join(HOOKSPECS)}(), or it returns None")
    found = Given(*map(tuple, given))
    for claim, times in Counter(found.claims).items():
        what, name, _ = claim
        if times > 1:
            raise ValueError(f"gives {what} '{name}' twice")
        if name in built_in(what):
            raise ValueError(f"gives {what} '{name}', which is built in: give it another name")
    return found


def built_in(what: str) -> Collection[str]:
    """Return the names of the built-in objects of a kind, which no plugin may use."""
    if what == "protocol":
        return {ANY, FALLBACK}
    if what == "balancer":
        return BALANCERS
    if what == "command":
        return COMMANDS
    if what == "health check":
        from refractium.backends.checks import CHECKS, NONE  # noqa: PLC0415 - slow to import, and seldom needed

        return {*CHECKS, NONE}
    return ()


def _without_contested(loaded: Collection[tuple[InstalledPlugin, Given]]) -> Plugins:
    """Refuse every plugin that provides the same object as another plugin.

    Two protocols count as the same object if they have the same name and transport. Two other objects count
    as the same object if they have the same kind and name.
    """
    givers: defaultdict[tuple[str, str, str], list[str]] = defaultdict(list)
    for plugin, given in loaded:
        for claim in given.claims:
            givers[claim].append(str(plugin))
    entries: list[InstalledPlugin] = []
    refused: dict[str, InstalledPlugin] = {}
    taken: dict[str, Given] = {}
    for plugin, given in loaded:
        if contested := [claim for claim in given.claims if len(givers[claim]) > 1]:
            what, name, _ = contested[0]
            who = " and ".join(givers[contested[0]])
            error = f"{who} give {what} '{name}': uninstall or disable all but one"
            entries.append(replace(plugin, status="failed", error=error))
            refused |= dict.fromkeys((protocol.name for protocol in given.protocols), entries[-1])
        else:
            entries.append(plugin)
            taken[plugin.id] = given
    protocols = [protocol for given in taken.values() for protocol in given.protocols]
    protocols.sort(key=lambda protocol: (protocol.name, protocol.transport))
    return Plugins(tuple(entries), tuple(protocols), refused, taken)
