"""Applies the settings of the tables ``[plugins.ID]`` to the protocols of plugins."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from refractium.contract import problems_of
from refractium.guard.faults import is_interrupt, problems_found, text_of
from refractium.guard.origins import origin_of, set_origin
from refractium.problems import table_problems

if TYPE_CHECKING:
    from collections.abc import Mapping

    from refractium.contract import Protocol
    from refractium.plugins.installed import Plugins
    from refractium.problems import Finding


def configured(plugins: Plugins, tables: Mapping[str, Mapping[str, Any]], findings: list[Finding]) -> Plugins:
    """Return the plugins, with protocols to which the settings of the plugins are applied.

    Args:
        plugins: the installed plugins.
        tables: the tables ``[plugins.ID]``, by the id of the plugin. This function ignores a table with
            mistakes: `refractium.assembly.hooks.plugin_table_problems` yields these mistakes.
        findings: the list to which this function adds the faults of plugins, with their key paths.
    """
    given = {
        id_: replace(
            one,
            protocols=tuple(_configured(id_, protocol, tables[id_], findings) for protocol in one.protocols),
        )
        if id_ in tables
        else one
        for id_, one in plugins.given.items()
    }
    protocols = [protocol for one in given.values() for protocol in one.protocols]
    protocols.sort(key=lambda protocol: (protocol.name, protocol.transport))
    return replace(plugins, protocols=tuple(protocols), given=given)


def _configured(id_: str, protocol: Protocol, table: Mapping[str, Any], findings: list[Finding]) -> Protocol:
    struct = protocol.settings_type
    if not struct.__struct_fields__ or problems_found(partial(table_problems, struct, table, id_)):
        return protocol
    found = protocol
    try:
        found = protocol.with_settings(msgspec.convert(table, struct))
        problems = list(problems_of(found))
        if not problems and (found.name, found.transport) != (protocol.name, protocol.transport):
            asked = f"with_settings of protocol {protocol.name} for {protocol.transport}"
            problems = [f"{asked} returned the protocol {found.name} for {found.transport}"]
    except BaseException as error:
        if is_interrupt(error):
            raise
        problems = [f"with_settings of protocol {protocol.name} failed: {text_of(error)}"]
    if problems:
        findings.append((f"plugins.{id_}", "; ".join(problems)))
        return protocol
    set_origin(found, origin_of(protocol))
    return found
