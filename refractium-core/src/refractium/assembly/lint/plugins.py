"""Warnings about plugins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refractium.assembly.lint.rules import (
    BROKEN_PLUGIN,
    EXPOSED_PLUGIN,
    OUTDATED_PLUGIN,
    UNKNOWN_PLUGIN,
    Warned,
)
from refractium.plugins.loading import DISABLE_VARIABLE, disabled_by_environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refractium.plugins.installed import Plugins


def broken(plugins: Plugins) -> Iterator[Warned]:
    """Yield each installed plugin that did not load. A file that cannot be a plugin is a problem instead."""
    of_files = {file.problem for file in plugins.files}
    for one in plugins.entries:
        if one.status not in {"loaded", "blocked"} and one.error not in of_files:
            yield Warned(BROKEN_PLUGIN, f"plugin {one.id}", f"{one} is not used: {one.error}")


def exposed(plugins: Plugins) -> Iterator[Warned]:
    """Yield each local plugin that other users can change, and that is not blocked."""
    blocked = {one.id for one in plugins.entries if one.status == "blocked"}
    for file in plugins.files:
        if file.doubt and file.id not in blocked:
            yield Warned(EXPOSED_PLUGIN, file.where, f"other users could change this plugin: {file.doubt}")


def outdated(plugins: Plugins) -> Iterator[Warned]:
    """Yield each plugin that still runs, although another version has been installed since."""
    for one in plugins.entries:
        if one.id in plugins.outdated:
            message = (
                f"{one} still runs, although {plugins.outdated[one.id]} is installed: restart Refractium"
            )
            yield Warned(OUTDATED_PLUGIN, f"plugin {one.id}", message)


def unknown_in_environment(plugins: Plugins) -> Iterator[Warned]:
    """Yield each id that the environment disables although no plugin has the id.

    This is a warning and no error, because several programs may share one environment.
    """
    ids = {plugin.id for plugin in plugins.entries}
    for id_ in disabled_by_environment():
        if id_ not in ids:
            yield Warned(UNKNOWN_PLUGIN, DISABLE_VARIABLE, plugins.explain_unknown_id(id_))
