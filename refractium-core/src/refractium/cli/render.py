"""Output of listeners and routes, as tables and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import asdict

from refractium._version import __version__
from refractium.addresses.address import Address
from refractium.backends.health_settings import PASSIVE
from refractium.hooks import merged, used
from refractium.routing import Member
from refractium.routing.balancers import DEFAULT
from refractium.routing.route import SHORT_FORMS
from refractium.settings import HealthSettings
from refractium.terminal import heading, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from refractium.assembly.assembly import Assembly
    from refractium.backends.health_settings import Health
    from refractium.hooks import HookUse, UsedHook
    from refractium.routing import Route


def banner() -> None:
    """Print the name and version of the program."""
    heading(f"refractium {__version__} - one port, many protocols")


def routes(assembly: Assembly) -> None:
    """Print the routes as a table."""
    rows = [route_row(route, assembly.hooks) for route in (*assembly.tcp, *assembly.udp)]
    columns = ("protocol", "transport", "when", "forward to", *_OPTIONAL)
    shown = [at for at, name in enumerate(columns) if name not in _OPTIONAL or any(row[at] for row in rows)]
    table(None, [columns[at] for at in shown], [[row[at] for at in shown] for row in rows])


_OPTIONAL: Final = ("balance", "health", "proxy protocol", "id", "access", "hooks")
"""Columns of options. The table leaves out such a column if all routes have the default of the option."""


def listeners(assembly: Assembly) -> None:
    """Print the listeners as a table, if there are several, or if the only listener limits access."""
    rows = [
        (
            one.name,
            ", ".join(one.transports),
            "all" if one.routes is None else ", ".join(one.routes),
            access(one.allow, one.deny),
        )
        for one in assembly.listeners
    ]
    if len(rows) > 1 or any(who for *_, who in rows):
        table(None, ["listener", "transports", "routes", "access"], rows)


def access(allow: Sequence[str], deny: Sequence[str]) -> str:
    """Return the access rules as text; empty if all clients are allowed."""
    lists = (("allow", allow), ("deny", deny))
    return "; ".join(f"{key} {', '.join(networks)}" for key, networks in lists if networks)


def route_row(route: Route, hooks: Sequence[HookUse] = ()) -> tuple[str, ...]:
    """Return the cells of a route: protocol, transport, conditions, backends and options.

    The cell of an option is empty if the option has its default.

    Args:
        route: the route.
        hooks: the hooks that apply to all routes.
    """
    when = [f"{key} {' or '.join(values)}" for key, values in route.all_conditions.items()]
    if route.takes_silent:
        when.append("or silent" if when else "also if silent")
    return (
        route.name,
        route.transport.value,
        ", ".join(when),
        f"({route.action})" if route.action else ", ".join(map(_member, route.members)),
        "" if route.balancer.name == DEFAULT else route.balancer.name,
        "" if route.health == PASSIVE else _health(route.health),
        route.proxy_protocol or "",
        route.id or "",
        access(route.allow, route.deny),
        _hooks(hooks, route.hooks),
    )


def _hooks(for_all: Sequence[HookUse], own: Sequence[HookUse]) -> str:
    return ", ".join(one.hook.name for one in merged(list(map(used, for_all)), list(map(used, own))))


def _member(member: Member) -> str:
    weight = f" weight {member.weight}" if member.weight != 1 else ""
    return f"{Address.parse(member.address)}{weight}{' backup' if member.backup else ''}"


def _health(health: Health) -> str:
    options = "".join(f" {key}={value}" for key, value in health.options.items())
    every = f"every {health.interval_ms} ms, timeout {health.timeout_ms} ms, rise {health.rise}"
    kind = (
        f"{health.check.name}{options} {every}"
        if health.check
        else f"by clients, interval {health.interval_ms} ms"
    )
    return f"{kind}, fall {health.fall}"


def route_as_dict(route: Route, hooks: Sequence[HookUse] = ()) -> dict[str, Any]:
    """Return the attributes of a route for JSON. Leave out most options that have their default.

    Args:
        route: the route.
        hooks: the hooks that apply to all routes.
    """
    told = merged(list(map(used, hooks)), route.used_hooks)
    return {
        "protocol": route.name,
        "transport": route.transport.value,
        **_conditions_as_dict(route),
        "on_timeout": route.takes_silent,
        "forward_to": [
            str(address) if member == Member(member.address) else {**asdict(member), "address": str(address)}
            for member, address in zip(route.members, route.backends, strict=True)
        ],
        **({} if route.balancer.name == DEFAULT else {"balance": route.balancer.name}),
        **({} if route.health == PASSIVE else {"health": _health_as_dict(route.health)}),
        **{key: value for key in _PLAIN_OPTIONS if (value := getattr(route, key))},
        **({"hooks": [_hook_as_dict(one) for one in told]} if told else {}),
    }


def _conditions_as_dict(route: Route) -> dict[str, Any]:
    """Return the conditions of a route by their keys in the configuration file."""
    short = {key: list(patterns) for key, patterns in route.conditions.items() if key in SHORT_FORMS}
    match = {key: list(patterns) for key, patterns in route.conditions.items() if key not in SHORT_FORMS}
    client = {"client": list(route.clients)} if route.clients else {}
    return short | ({"match": match} if match else {}) | client


def _hook_as_dict(hook: UsedHook) -> dict[str, Any]:
    """Return the name of a hook, and all settings of the hook that are not empty."""
    return {
        "name": hook.hook.name,
        **{key: value for key, value in asdict(hook.settings).items() if value not in (None, (), [])},
    }


_PLAIN_OPTIONS: Final = (
    "proxy_protocol",
    "id",
    "allow",
    "deny",
    "action",
    "idle_timeout_ms",
    "half_close_timeout_ms",
)
"""Attributes of a route that the JSON output contains unchanged, but leaves out if they are empty."""


def _health_as_dict(health: Health) -> dict[str, Any]:
    shared = {key: getattr(health, key) for key in HealthSettings.__struct_fields__}
    return {"kind": health.check.name if health.check else health.kind, **shared, **health.options}
