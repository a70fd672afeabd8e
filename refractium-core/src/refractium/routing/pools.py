"""The pools of one transport: one for each route, and one for what no route matches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refractium.addresses.address import Address
from refractium.backends.backend import Backend
from refractium.backends.health import PASSIVE
from refractium.backends.state import BackendState
from refractium.errors import ConfigError
from refractium.hooks import HookSet, merged
from refractium.problems import Problem
from refractium.routing.pool import Pool
from refractium.routing.route import Member

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from refractium.backends.health import Health, StateKey
    from refractium.hooks import Taps, UsedHook
    from refractium.routing.route import Route
    from refractium.settings import ProxyVersion


class Pools:
    """Made once of a configuration; every listener's router uses the same ones.

    Args:
        routes: all of one transport, in the order of the configuration.
        fallback: where what no route matches goes.
        known: the `states` of the pools that these take the place of, so that what was found out about
            backends that stay is not lost.
        hooks: the hooks of the configuration that these pools are of.
        for_all: those of every route and of the fallback.

    Attributes:
        routes: each with its pool.
        fallback: the pool for everything else, if there is one.

    Raises:
        ConfigError: two routes have one id; a hook cannot be had where it wants to run.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        fallback: Sequence[Address] = (),
        known: Mapping[StateKey, BackendState] | None = None,
        *,
        hooks: HookSet | None = None,
        for_all: Sequence[UsedHook] = (),
    ) -> None:
        _refuse_shared_ids(routes)
        states = dict(known or {})
        hooks = hooks or HookSet()
        self.routes = tuple(
            (route, _pool(route, states, hooks.taps(merged(for_all, route.used_hooks)))) for route in routes
        )
        members = [Member(str(address)) for address in fallback]
        self.fallback = (
            Pool(
                "fallback",
                [_backend(member, PASSIVE, states) for member in members],
                taps=hooks.taps(for_all),
            )
            if members
            else None
        )

    def __iter__(self) -> Iterator[Pool]:
        for _, pool in self.routes:
            yield pool
        if self.fallback is not None:
            yield self.fallback

    @property
    def backends(self) -> Iterator[Backend]:
        """Every backend of every pool."""
        for pool in self:
            yield from pool.backends

    @property
    def states(self) -> dict[StateKey, BackendState]:
        """What is known of the backends."""
        return {backend.state.key: backend.state for backend in self.backends}


def _refuse_shared_ids(routes: Sequence[Route]) -> None:
    first: dict[str, int] = {}
    problems = []
    for number, route in enumerate(routes):
        if route.id is not None and (other := first.setdefault(route.id, number)) != number:
            problems.append(Problem(f"route {other} is called so already", where=f"routes[{number}].id"))
    if problems:
        raise ConfigError(problems)


def _pool(route: Route, known: dict[StateKey, BackendState], taps: Taps | None) -> Pool:
    return Pool(
        route.label,
        [_backend(member, route.health, known, route.proxy_protocol) for member in route.members],
        route.udp_session_timeout_ms,
        route.balancer,
        route.proxy_protocol,
        access=route.access,
        action=route.action,
        protocol=route.name,
        taps=taps,
    )


def _backend(
    member: Member,
    health: Health,
    known: dict[StateKey, BackendState],
    proxy_protocol: ProxyVersion | None = None,
) -> Backend:
    """One backend of one pool; what is known of it is shared with all who ask the same of the address."""
    state = BackendState(Address.parse(member.address), health, proxy_protocol=proxy_protocol)
    state = known.setdefault(state.key, state)
    return Backend(state.address, weight=member.weight, is_backup=member.backup, state=state)
