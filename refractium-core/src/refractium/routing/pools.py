"""The pools of one transport: one for each route."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from refractium.addresses.address import Address
from refractium.backends.backend import Backend
from refractium.backends.state import BackendState
from refractium.hooks import HookSet, merged
from refractium.routing.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from refractium.backends.health_settings import Health, StateKey
    from refractium.guard.faults import Faults
    from refractium.hooks import RouteHooks, UsedHook
    from refractium.routing.route import Member, Route
    from refractium.settings import ProxyVersion


class Pools:
    """All pools of one configuration and transport, which the routers of all listeners share.

    Args:
        routes: all routes of the transport, in the order of the configuration.
        known: the `states` of the previous pools. A backend that is also in the previous pools keeps its
            state.
        hooks: the hooks of the configuration.
        for_all: the hooks that apply to every route.
        faults: the counts of the faults of protocols and balancers; None to count nothing.

    Attributes:
        routes: each route with its pool.

    Raises:
        ValueError: a hook cannot run in the thread or process that its class asks for.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        known: Mapping[StateKey, BackendState] | None = None,
        *,
        hooks: HookSet | None = None,
        for_all: Sequence[UsedHook] = (),
        faults: Faults | None = None,
    ) -> None:
        states = dict(known or {})
        hooks = hooks or HookSet()
        self.routes = tuple(
            (route, _pool(route, states, hooks.of_route(merged(for_all, route.used_hooks)), faults))
            for route in routes
        )

    def __iter__(self) -> Iterator[Pool]:
        for _, pool in self.routes:
            yield pool

    @property
    def backends(self) -> Iterator[Backend]:
        """Every backend of every pool."""
        for pool in self:
            yield from pool.backends

    @property
    def states(self) -> dict[StateKey, BackendState]:
        """The states of all backends, by key."""
        return {backend.state.key: backend.state for backend in self.backends}


def _pool(
    route: Route, known: dict[StateKey, BackendState], hooks: RouteHooks | None, faults: Faults | None
) -> Pool:
    return Pool(
        route.label,
        [_backend(member, route.health, known, route.proxy_protocol) for member in route.members],
        _of_sessions(route, "udp_session_timeout_ms"),
        route.balancer,
        route.proxy_protocol,
        access=route.access,
        action=route.action,
        protocol=route.name,
        hooks=hooks,
        idle_timeout_ms=route.idle_timeout_ms,
        protocols=route.protocols,
        faults=faults,
        half_close_timeout_ms=route.half_close_timeout_ms,
        udp_responses=_of_sessions(route, "udp_responses"),
    )


def _of_sessions(route: Route, key: Literal["udp_responses", "udp_session_timeout_ms"]) -> int | None:
    """Return the value of a key for UDP sessions: of the route, else of the first protocol that has a value.

    Return None if neither the route nor one of its protocols has a value.
    """
    values = (getattr(one, key) for one in (route, *route.protocols))
    return next((value for value in values if value is not None), None)


def _backend(
    member: Member,
    health: Health,
    known: dict[StateKey, BackendState],
    proxy_protocol: ProxyVersion | None,
) -> Backend:
    """Return a backend of a pool. All backends whose states have an equal key share one state."""
    state = BackendState(Address.parse(member.address), health, proxy_protocol=proxy_protocol)
    state = known.setdefault(state.key, state)
    return Backend(state.address, weight=member.weight, is_backup=member.backup, state=state)
