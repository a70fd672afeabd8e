"""The hooks that a configuration names: for each name, the hook class of a plugin and the hook's settings."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from refractium.config import HookConfig
from refractium.guard.faults import problems_found
from refractium.problems import table_problems

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from msgspec import Struct

    from refractium.hooks import HookUse
    from refractium.plugins.installed import Plugins
    from refractium.problems import Finding


def resolve_hooks(
    where: str,
    named: Sequence[str | HookConfig],
    tables: Mapping[str, Mapping[str, Any]],
    plugins: Plugins,
    findings: list[Finding],
) -> tuple[HookUse, ...]:
    """Return the hooks that a route or ``[server]`` names, with their settings.

    Args:
        where: the key path of the list of hooks.
        named: the list of hooks in the configuration.
        tables: the tables ``[plugins.ID]``, by the id of the plugin.
        plugins: the installed plugins.
        findings: the list to which this function adds the problems, with their key paths. The result omits
            each hook with a problem.
    """
    return tuple(
        use
        for at, one in enumerate(named)
        for use in _resolve(f"{where}[{at}]", one, tables, plugins, findings)
    )


def _resolve(
    where: str,
    named: str | HookConfig,
    tables: Mapping[str, Mapping[str, Any]],
    plugins: Plugins,
    findings: list[Finding],
) -> Iterator[HookUse]:
    name, options = (named.name, named.options) if isinstance(named, HookConfig) else (named, {})
    found = plugins.hooks.get(name)
    if found is None:
        findings.append((where, plugins.explain_missing_hook(name)))
        return
    hook, id_ = found
    table = tables.get(id_, {})
    merged = {**table, **options}
    what = f"plugin '{id_}'"
    settings: Struct | None = None

    def problems_of_settings() -> Iterable[tuple[str, str]]:
        nonlocal settings
        settings = msgspec.convert(merged, hook.settings_type)
        return hook.problems(settings)

    wrong = problems_found(lambda: table_problems(hook.settings_type, merged, what, ("name",)))
    wrong = wrong or problems_found(problems_of_settings)
    for key, message in wrong:
        # Name the table of the plugin if only this table has the key; else name the place that uses the hook.
        top = key.partition("[")[0].partition(".")[0]
        place = f"plugins.{id_}" if top in table and top not in options else where
        findings.append((f"{place}.{key}".rstrip("."), message))
    if settings is not None and not wrong:
        yield hook, settings


def plugin_table_problems(tables: Mapping[str, Mapping[str, Any]], plugins: Plugins) -> Iterator[Finding]:
    """Yield the problems of all ``[plugins.ID]`` tables, used or not.

    If an installed plugin did not load, this function does not check its table, because the keys are unknown.
    """
    by_id = {plugin.id: plugin for plugin in plugins.entries}
    for id_, table in tables.items():
        where = f"plugins.{id_}"
        plugin = by_id.get(id_)
        if plugin is None:
            yield where, plugins.explain_unknown_id(id_)
        elif plugin.status == "loaded":
            given = plugins.given[id_]
            types = dict.fromkeys(one.settings_type for one in given.protocols)
            types |= dict.fromkeys(one.settings_type for one in given.hooks)
            structs = [one for one in types if one.__struct_fields__]
            if not structs:
                yield where, "this plugin takes no settings"
            else:
                yield from _table_problems(where, table, structs, id_)


def _table_problems(
    where: str, table: Mapping[str, Any], structs: Iterable[type[msgspec.Struct]], id_: str
) -> Iterator[Finding]:
    """Yield the problems of the keys in one table.

    A missing key is not a problem here, because the place that uses the hook may contain the key.
    """
    for struct in structs:
        for key, message in problems_found(partial(table_problems, struct, table, f"plugin '{id_}'")):
            if key in table or message != "is missing":
                yield f"{where}.{key}".rstrip("."), message
