"""Resolution of a configuration: installed protocols, hooks and checks replace the names of these objects."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from refractium.assembly.hooks import plugin_table_problems, resolve_hooks
from refractium.assembly.protocols import configured
from refractium.assembly.routes import resolve_route
from refractium.config.decode import MAX_FINDINGS
from refractium.errors import ConfigError
from refractium.routing import Route
from refractium.routing.route import fallback_route

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refractium.assembly.sources import Overlaid
    from refractium.hooks import HookUse
    from refractium.plugins.installed import Plugins
    from refractium.problems import Finding, Problem
    from refractium.routing.judge import PlacedRoutes


@dataclass(frozen=True, slots=True)
class Resolved:
    """A configuration whose names are resolved.

    Attributes:
        overlaid: the file and the flags.
        plugins: the installed plugins.
        routes: the routes without problems, each with its key path or flag.
        hooks: the packet hooks of ``[server]``, which apply to every route and to the fallbacks.
        problems: the mistakes in file and flags, and the problems that `resolve` has found, such as a name
            that no plugin resolves.
    """

    overlaid: Overlaid
    plugins: Plugins
    routes: PlacedRoutes
    hooks: tuple[HookUse, ...]
    problems: tuple[Problem, ...]


def resolve(overlaid: Overlaid, plugins: Plugins) -> Resolved:
    """Resolve the names of a configuration. Mistakes raise no exception; the result contains them."""
    tables = overlaid.decoded.config.plugins.settings
    faults: list[Finding] = list(_unknown_disabled(overlaid, plugins))
    faults += plugin_table_problems(tables, plugins)
    plugins = configured(plugins, tables, faults)
    hooks = resolve_hooks("server.hooks", overlaid.server.hooks, tables, plugins, faults)
    mistakes = overlaid.decoded.problems
    unsound = {one.where.partition(".")[0] for one in mistakes}
    all_are_known = len(mistakes) < MAX_FINDINGS
    routes: list[tuple[str, Route]] = []
    for path, route in overlaid.routes:
        is_sound = all_are_known and path not in unsound
        for found in resolve_route(path, route, overlaid.server, tables, plugins, is_sound=is_sound):
            if isinstance(found, Route):
                routes.append((path, found))
            else:
                faults.append(found)
    for transport, address in overlaid.server.fallbacks:
        with suppress(ConfigError):  # `overlaid.problems` contains the problem of the address
            routes.append((f"server.fallback_{transport}", fallback_route(transport, (address,))))
    problems = [*overlaid.problems, *(overlaid.problem(*fault) for fault in faults)]
    return Resolved(overlaid, plugins, tuple(routes), hooks, tuple(problems))


def _unknown_disabled(overlaid: Overlaid, plugins: Plugins) -> Iterator[Finding]:
    """Yield each id that a file or flag disables although no installed plugin has the id."""
    ids = {plugin.id for plugin in plugins.entries}
    named = [
        *((f"plugins.disable[{at}]", id_) for at, id_ in enumerate(overlaid.decoded.config.plugins.disable)),
        *((f"--disable-plugin {id_}", id_) for id_ in overlaid.overrides.disabled),
    ]
    for where, id_ in named:
        if id_ not in ids:
            yield where, plugins.explain_unknown_id(id_)
