"""The hookspecs: what a plugin may implement.

They are called once, when plugins are loaded, and *return* objects. Nothing here runs while bytes move.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pluggy

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from click import Command

    from refractium.contract.balancer import Balancer
    from refractium.contract.health import HealthCheck
    from refractium.contract.hook import PacketHook
    from refractium.contract.protocol import Protocol

API_VERSION: Final = 1
"""Counts incompatible changes of the contract. A plugin may state the one it was written for in its
attribute ``refractium_api_version`` (an int); without it, it is taken to fit."""

ENTRY_POINT_GROUP: Final = "refractium"

hookspec = pluggy.HookspecMarker("refractium")
hookimpl = pluggy.HookimplMarker("refractium")
"""Marks a plugin's function as the implementation of the hookspec of the same name."""


@hookspec
def refractium_protocols() -> Iterable[Protocol]:  # type: ignore[empty-body]
    """Return the protocols that the plugin recognises, one object for each name and transport."""


@hookspec
def refractium_health_checks() -> Iterable[HealthCheck[Any]]:  # type: ignore[empty-body]
    """Return the kinds of health check of the plugin, one object for each kind."""


@hookspec
def refractium_balancers() -> Iterable[type[Balancer]]:  # type: ignore[empty-body]
    """Return the balancing methods of the plugin, one class for each method."""


@hookspec
def refractium_hooks() -> Iterable[type[PacketHook[Any]]]:  # type: ignore[empty-body]
    """Return the packet hooks of the plugin, one class for each hook. Their settings are ``[plugins.ID]``."""


@hookspec
def refractium_commands() -> Iterable[Command]:  # type: ignore[empty-body]
    """Return the commands that the plugin adds to ``refractium``. Help loads them, too: import late."""
