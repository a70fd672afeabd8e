"""The hookspecs: the functions that a plugin may implement.

Refractium calls each function once each time that it loads the plugins. The functions only return objects.
Refractium serves clients with these objects later.
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
    from refractium.contract.scene import Scene

API_VERSION: Final = 1
"""Version number of the contract, which grows with each incompatible change. A plugin may state the version
for which it was written in the attribute ``refractium_api_version`` (an int). Refractium also loads plugins
that lack this attribute."""

ENTRY_POINT_GROUP: Final = "refractium"
"""Group of the entry points by which Refractium finds plugins."""

hookspec = pluggy.HookspecMarker("refractium")
hookimpl = pluggy.HookimplMarker("refractium")
"""A decorator that marks a function of a plugin as the implementation of the hookspec with the same name."""


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
    """Return the packet hooks of the plugin, one class for each hook.

    The table ``[plugins.ID]`` contains the settings of the hooks.
    """


@hookspec
def refractium_commands() -> Iterable[Command]:  # type: ignore[empty-body]
    """Return the commands that the plugin adds to ``refractium``.

    Refractium also loads the commands to print the help. So a command should import its modules only when the
    command runs.
    """


@hookspec
def refractium_scenes() -> Iterable[Scene]:  # type: ignore[empty-body]
    """Return the scenes with which ``refractium demo`` shows protocols, at most one for each protocol."""
