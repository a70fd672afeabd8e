"""The kinds of plugin for which there are templates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of plugin.

    Attributes:
        name: the name on the command line, and the folder of the templates.
        prefix: the beginning of the name of a distribution, before the id of the plugin.
        base: the class of the contract from which the class of the plugin derives; empty for a command, which
            is a function.
        summary: the end of a sentence about the example in the templates. ``$id`` stands for the plugin's id.
        requires: the requirements of the distribution, in addition to ``refractium-core``.
    """

    name: str
    prefix: str
    base: str
    summary: str
    requires: tuple[str, ...] = ()


KINDS: Final[Mapping[str, Kind]] = {
    kind.name: kind
    for kind in (
        Kind("protocol", "refractium-proto-", "Protocol", "recognises the protocol $id by its first line"),
        Kind(
            "hook",
            "refractium-hooks-",
            "PacketHook",
            "logs the size of the largest packet of each session",
            ("msgspec>=0.19",),
        ),
        Kind(
            "balancer",
            "refractium-balancer-",
            "Balancer",
            "fills one backend before it uses the next backend",
        ),
        Kind(
            "health-check",
            "refractium-health-",
            "HealthCheck",
            "checks the greeting of a server that speaks first",
            ("msgspec>=0.19",),
        ),
        Kind(
            "command",
            "refractium-command-",
            "",
            "adds the command $id, which connects to addresses",
            ("click>=8.4",),
        ),
    )
}
"""Each kind, by its name."""
