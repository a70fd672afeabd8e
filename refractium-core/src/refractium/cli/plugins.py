"""``plugins``: show the installed plugins. For a plugin that is not loaded, show the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import rich_click as click

from refractium import terminal
from refractium.assembly import assembly
from refractium.assembly.sources import read_file
from refractium.cli import install, listing, new, plugin_check
from refractium.cli.options import Flags
from refractium.contract.metadata import kinds_of
from refractium.errors import ConfigError
from refractium.plugins.installed import Given
from refractium.problems import Problem

if TYPE_CHECKING:
    from refractium.contract import Protocol
    from refractium.plugins.installed import Plugins

_THINGS: Final = ("protocols", "health_checks", "balancers", "hooks", "commands", "scenes")
"""The kinds of object that a plugin can provide, as keys of the JSON output."""
_LINE: Final = 100
"""Largest number of characters to show of a command's help."""

_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group("plugins", cls=click.RichGroup)
def command() -> None:
    """Show, check, install and remove plugins, and write new plugins."""


command.add_command(new.command)
command.add_command(install.install)
command.add_command(install.uninstall)
command.add_command(plugin_check.command)


@command.command("list")
@_as_json
@click.pass_context
def list_(context: click.Context, *, as_json: bool) -> None:
    """List every installed plugin, loaded or not."""
    plugins = installed(Flags.of(context))
    if as_json:
        listing.print_json([plugin.as_dict() for plugin in plugins.entries])
        return
    if not plugins.entries:
        click.echo("No plugins are installed. For all protocols: pip install 'refractium-protocols[all]'")
        return
    listing.show(plugins.entries)


@command.command("info")
@click.argument("id_", metavar="ID")
@_as_json
@click.pass_context
def info(context: click.Context, id_: str, *, as_json: bool) -> None:
    """Show one plugin, with its protocols, hooks, health checks, balancing methods and commands."""
    plugins = installed(Flags.of(context))
    matching = [plugin for plugin in plugins.entries if plugin.id == id_]
    if not matching:
        raise ConfigError([Problem(plugins.explain_unknown_id(id_))])
    found = [{**one.as_dict(), **_describe_given(plugins.given.get(id_, Given()))} for one in matching]
    if as_json:
        listing.print_json(found[0] if len(found) == 1 else found)
        return
    for one in found:
        things = [thing for key in _THINGS for thing in one.pop(key, ())]
        rows = [(key, _text(value)) for key, value in one.items() if value]
        for thing in things:
            rows += [(key, _text(value)) for key, value in thing.items() if value is not None]
        terminal.table(None, ("", ""), rows)


def installed(flags: Flags) -> Plugins:
    """Load the plugins that a run with these flags would load. Ignore a file that cannot be read."""
    try:
        decoded = read_file(flags.overrides)
    except ConfigError:
        decoded = None
    return assembly.installed(flags.overrides, decoded)


def _describe_given(given: Given) -> dict[str, list[dict[str, Any]]]:
    """Return the objects that a plugin provides, by kind. Leave out empty kinds, except protocols."""
    checks = [
        {"health check": one.name, "about": one.summary, "options": list(one.settings.__struct_fields__)}
        for one in given.health_checks
    ]
    balancers = [{"balancer": one.name, "about": one.summary} for one in given.balancers]
    hooks = [
        {
            "hook": one.name,
            "about": one.summary,
            "isolation": one.isolation,
            "settings": list(one.settings_type.__struct_fields__),
        }
        for one in given.hooks
    ]
    commands = [{"command": one.name, "about": one.get_short_help_str(_LINE)} for one in given.commands]
    scenes = [{"scene": one.protocol, "by_hand": one.by_hand} for one in given.scenes]
    found: dict[str, list[dict[str, Any]]] = {
        "health_checks": checks,
        "balancers": balancers,
        "hooks": hooks,
        "commands": commands,
        "scenes": scenes,
    }
    return {
        "protocols": [_describe(protocol) for protocol in given.protocols],
        **{kind: things for kind, things in found.items() if things},
    }


def _describe(protocol: Protocol) -> dict[str, Any]:
    return {
        "protocol": f"{protocol.name}/{protocol.transport}",
        "aliases": list(protocol.aliases),
        "evidence": protocol.summary,
        "strength": protocol.strength.name.lower(),
        "max_bytes": protocol.max_bytes,
        "metadata": {key: kind.value for key, kind in kinds_of(protocol.metadata_keys).items()},
        "server_first": protocol.server_first,
        "udp_responses": protocol.udp_responses,
        "udp_session_timeout_ms": protocol.udp_session_timeout_ms,
        "settings": list(protocol.settings_type.__struct_fields__),
    }


def _text(value: object) -> str:
    if isinstance(value, dict):
        value = [f"{key} ({kind})" for key, kind in value.items()]
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
