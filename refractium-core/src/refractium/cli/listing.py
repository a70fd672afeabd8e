"""Installed plugins as a table and as JSON, for the commands that show plugins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
import rich_click as click

from refractium import terminal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from refractium.plugins.installed import InstalledPlugin

_COLUMNS: Final = ("id", "kind", "transports", "distribution", "version", "status", "about")


def show(plugins: Iterable[InstalledPlugin], title: str | None = None) -> None:
    """Print plugins as a table, with the error of each plugin that is not loaded."""
    rows = [
        (
            plugin.id,
            plugin.kind,
            " ".join(plugin.transports),
            plugin.distribution,
            plugin.version,
            plugin.status,
            plugin.error or plugin.summary,
        )
        for plugin in plugins
    ]
    terminal.table(title, _COLUMNS, rows)


def print_json(value: object) -> None:
    """Print a value as indented JSON."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))
