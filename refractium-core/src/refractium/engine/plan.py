"""A plan: one configuration, ready to be served, with its routers and the states of its backends."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from refractium.backends.checker import Checker
from refractium.backends.checks import resolved
from refractium.backends.resolver import Resolver
from refractium.contract import Transport
from refractium.errors import ConfigError
from refractium.guard.faults import Faults
from refractium.hooks import HookSet, used
from refractium.routing import Pools, Router

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from refractium.backends.state import Authority, BackendState
    from refractium.engine.spec import EngineSpec
    from refractium.hooks import UsedHook
    from refractium.routing import Route
    from refractium.sockets.names import HostName


class Plan:
    """The parts that one configuration needs: routers, settings, a resolver and health checkers.

    Args:
        spec: the routes, listeners and settings to serve.
        successor_of: the current plan. The new plan takes over the backend states, hooks and fault counts of
            the current plan.
        authorities: for each transport, the object that decides which backends are up. Without authorities,
            the plan checks the backends itself.

    Attributes:
        settings: limits and timeouts.
        hooks: the hooks; the engine that serves the plan starts the hooks.
        pools: the routes of each transport, with their backends.
        routers: for each transport, the router of each listener, by the listener's name.
        faults: for each transport, the number of faults of each protocol, balancer and health check.
        prepared: the transports whose backends are resolved and checked.
    """

    def __init__(
        self,
        spec: EngineSpec,
        successor_of: Plan | None = None,
        authorities: Mapping[Transport, Authority] | None = None,
    ) -> None:
        settings = self.settings = spec.settings
        if problems := list(spec.problems()):
            raise ConfigError(problems)
        self.hooks: HookSet = HookSet(successor_of.hooks if successor_of is not None else None)
        for_all = tuple(map(used, spec.hooks))
        # The engine counts faults from its start, over all configurations.
        self.faults: dict[Transport, Faults] = (
            successor_of.faults
            if successor_of is not None
            else {transport: Faults() for transport in Transport}
        )
        self.pools: dict[Transport, Pools] = {
            transport: _pools(
                transport,
                spec.routes(transport),
                successor_of.pools[transport] if successor_of is not None else None,
                self.hooks,
                for_all,
                self.faults[transport],
            )
            for transport in Transport
        }
        self.routers = {
            transport: {
                name: Router(pools, settings.peek_buffer_size, rules, self.faults[transport])
                for name, rules in spec.listeners.items()
            }
            for transport, pools in self.pools.items()
        }
        self._resolver = Resolver([backend for pools in self.pools.values() for backend in pools.backends])
        self._is_resolving = False
        self._checkers: dict[Transport, Checker] = {}
        self.prepared: set[Transport] = set()
        if authorities is None:
            self._checkers = {
                transport: Checker(transport, pools.backends, self.faults[transport])
                for transport, pools in self.pools.items()
            }
        else:
            for transport, state in self.states:
                authorities[transport].adopt(state)

    @property
    def states(self) -> Iterator[tuple[Transport, BackendState]]:
        """The state of every backend, with its transport."""
        for transport, pools in self.pools.items():
            for state in pools.states.values():
                yield transport, state

    @property
    def names(self) -> Sequence[HostName]:
        """The host names of backends; empty before the first `prepare`."""
        return self._resolver.names

    def refuse_unknown(self, listener: str) -> None:
        """Raise `ValueError` if no listener rules have this name."""
        if listener not in self.routers[Transport.TCP]:
            names = ", ".join(f'"{name}"' for name in self.routers[Transport.TCP])
            raise ValueError(f'there is no listener "{listener}": the listeners are {names}')

    async def prepare(self, transport: Transport) -> None:
        """Look up the backends' names and check the backends of a transport for the first time.

        Lookups and checks each take a bounded time.
        """
        if not self._is_resolving:
            self._is_resolving = True
            await self._resolver.start(self.settings.connect_timeout_ms)
        if transport in self._checkers:
            await self._checkers[transport].start()
        self.prepared.add(transport)

    async def stop(self) -> None:
        """End the lookups of names and the health checks."""
        for checker in self._checkers.values():
            await checker.stop()
        await self._resolver.stop()


def _pools(
    transport: Transport,
    routes: Sequence[Route],
    former: Pools | None,
    hooks: HookSet,
    for_all: Sequence[UsedHook],
    faults: Faults,
) -> Pools:
    routes = [replace(route, health=resolved(route.health, transport)) for route in routes]
    known = former.states if former is not None else None
    return Pools(routes, known, hooks=hooks, for_all=for_all, faults=faults)
