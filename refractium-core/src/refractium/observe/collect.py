"""Functions that build the status of an engine from its counters, listeners, routes and hooks."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Protocol

from refractium.addresses.address import join_host_port
from refractium.contract import Transport
from refractium.observe.status import (
    BackendStatus,
    HookStatus,
    HookTally,
    ListenerStatus,
    PluginStatus,
    RouteStatus,
    RouteTraffic,
    Status,
    TcpStatus,
    UdpStatus,
    moment,
)
from refractium.proxy.counters import BOUNDS, Traffic

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from refractium.addresses.address import Peer
    from refractium.hooks import Hooks
    from refractium.hooks.counters import HookCounters
    from refractium.plugins.installed import Given, Plugins
    from refractium.proxy.counters import TcpCounters, UdpCounters
    from refractium.routing import Pools


class _Router(Protocol):
    @property
    def labels(self) -> tuple[str, ...]: ...


class _Listener(Protocol):
    @property
    def address(self) -> Peer: ...

    @property
    def router(self) -> _Router: ...

    @property
    def paused(self) -> str: ...


class _Open(Protocol):
    """A connection or a session that is open."""

    @property
    def route(self) -> str: ...

    @property
    def moved(self) -> tuple[int, int]: ...


def plugins(found: Plugins, status: Status) -> Iterator[PluginStatus]:
    """Yield the status of each loaded plugin.

    Args:
        found: the installed plugins.
        status: the status of the engine, with the counts of faults.
    """
    for one in found.entries:
        if one.status == "loaded":
            given = found.given[one.id]
            yield PluginStatus(
                one.id,
                one.distribution,
                one.version,
                found.outdated.get(one.id, one.version),
                tuple(dict.fromkeys(f"{_words(kind)} {name}" for kind, name, _ in given.claims)),
                _faults_of(given, status),
            )


def _words(kind: str) -> str:
    return "check" if kind == "health check" else kind


def _faults_of(given: Given, status: Status) -> int:
    by_transport = {Transport.TCP: status.tcp.faults, Transport.UDP: status.udp.faults}
    of_protocols = sum(by_transport[one.transport].get(one.name, 0) for one in given.protocols)
    others = [f"{_words(kind)} {name}" for kind, name, _ in given.claims if kind != "protocol"]
    hooks = {one.name for one in given.hooks}
    return (
        of_protocols
        + sum(faults.get(what, 0) for faults in by_transport.values() for what in others)
        + sum(one.failures for one in status.hooks if one.name in hooks)
    )


def listeners(transport: Transport, those: Iterable[_Listener]) -> Iterator[ListenerStatus]:
    """Yield the status of each listener of one transport."""
    for one in those:
        yield ListenerStatus(transport, join_host_port(*one.address[:2]), one.router.labels, one.paused)


def routes(transport: Transport, pools: Pools) -> Iterator[RouteStatus]:
    """Yield the status of each route and of the fallback of one transport, with their backends' states."""
    active: Counter[str] = Counter()
    for state in pools.states.values():
        active[str(state.address)] += state.active
    conditions = {pool: route.all_conditions for route, pool in pools.routes}
    for pool in pools:
        yield RouteStatus(
            pool.label,
            transport,
            conditions.get(pool, {}),
            tuple(
                BackendStatus(
                    str(one.address),
                    str(one.state.availability),
                    moment(one.state.since),
                    one.state.reason,
                    active[str(one.address)],
                    one.weight,
                    one.is_backup,
                )
                for one in pool.backends
            ),
            pool.action,
        )


def tcp(counters: TcpCounters, connections: Collection[_Open], faults: Mapping[str, int]) -> TcpStatus:
    """Return the counts of all connections, including open connections."""
    return TcpStatus(
        accepted=counters.accepted,
        refused=dict(counters.refusals),
        finished=counters.finished,
        active=len(connections),
        loops=counters.loops,
        outcomes={str(outcome): count for outcome, count in counters.outcomes.items()},
        identification_seconds=counters.seconds,
        identification_buckets=tuple(_cumulative(counters.buckets)),
        faults=dict(faults),
        routes=_traffic(counters.routes, connections),
    )


def udp(counters: UdpCounters, sessions: Collection[_Open], faults: Mapping[str, int]) -> UdpStatus:
    """Return the counts of all sessions, including open sessions."""
    return UdpStatus(
        sessions=counters.sessions,
        refused=dict(counters.refusals),
        finished=counters.finished,
        active=len(sessions),
        outcomes={str(outcome): count for outcome, count in counters.outcomes.items()},
        unrouted=counters.unrouted,
        dropped=counters.dropped,
        faults=dict(faults),
        routes=_traffic(counters.routes, sessions),
    )


def hooks(those: Hooks) -> Iterator[HookStatus]:
    """Yield the status of each running hook, then the counts of stopped hooks by name."""
    for one in those.running:
        yield _hook(one.name, "stalled" if one.is_stalled else str(one.state), one.reason, one.counters)
    for name, counters in those.past.items():
        yield _hook(name, "stopped", "", counters)


def _hook(name: str, state: str, reason: str, counters: HookCounters) -> HookStatus:
    tallies = [
        HookTally(*(getattr(tally, field) for field in HookTally.__struct_fields__))
        for tally in (counters.inbound, counters.outbound)
    ]
    return HookStatus(name, state, reason, counters.failures, *tallies)


def _cumulative(buckets: Sequence[int]) -> Iterator[tuple[float, int]]:
    total = 0
    for bound, count in zip(BOUNDS, buckets, strict=False):
        total += count
        yield bound, total


def _traffic(finished: dict[str, Traffic], still_open: Iterable[_Open]) -> tuple[RouteTraffic, ...]:
    active: Counter[str] = Counter()
    up: Counter[str] = Counter()
    down: Counter[str] = Counter()
    for one in still_open:
        active[one.route] += 1
        moved_up, moved_down = one.moved
        up[one.route] += moved_up
        down[one.route] += moved_down
    nothing = Traffic()
    return tuple(
        RouteTraffic(
            name,
            active[name],
            {how.name.lower(): count for how, count in finished.get(name, nothing).ended.items()},
            finished.get(name, nothing).bytes_up + up[name],
            finished.get(name, nothing).bytes_down + down[name],
        )
        for name in dict.fromkeys((*finished, *active))
    )
