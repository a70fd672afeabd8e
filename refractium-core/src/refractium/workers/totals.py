"""The statuses of several workers, added up to one status."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeVar

from msgspec.structs import replace

from refractium.contract import Transport
from refractium.observe.collect import tcp, udp
from refractium.observe.status import (
    HookStatus,
    HookTally,
    RouteStatus,
    RouteTraffic,
    TcpStatus,
    UdpStatus,
)
from refractium.proxy.counters import TcpCounters, UdpCounters

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from refractium.observe.status import Status

_StatusT = TypeVar("_StatusT", TcpStatus, UdpStatus)


class Counts(NamedTuple):
    """The counts of connections, sessions and hooks. A `Status` has attributes with the same names."""

    tcp: TcpStatus
    udp: UdpStatus
    hooks: tuple[HookStatus, ...]


class _Counted(Protocol):
    @property
    def tcp(self) -> TcpStatus: ...

    @property
    def udp(self) -> UdpStatus: ...

    @property
    def hooks(self) -> tuple[HookStatus, ...]: ...


LOST: Final = "lost"
"""The key in `RouteTraffic.ended` that counts connections whose worker has died."""
_STALLED: Final = "stalled"
_STOPPED: Final = "stopped"


def total(those: Sequence[_Counted]) -> Counts:
    """Return the sums of several counts."""
    return Counts(
        _tcp([one.tcp for one in those]),
        _udp([one.udp for one in those]),
        _hooks([one.hooks for one in those]),
    )


def paused(transport: Transport, address: str, those: Iterable[Status]) -> str:
    """Return the reason why a worker accepts no clients at an address; empty if all accept clients."""
    listeners = (one for status in those for one in status.listeners)
    wanted = (one.paused for one in listeners if (one.transport, one.address) == (transport, address))
    return next(filter(None, wanted), "")


def with_faults(counts: _StatusT, faults: Mapping[str, int]) -> _StatusT:
    """Return counts with further faults of plugins."""
    return replace(counts, faults=_sums([counts.faults, faults]))


def without_open(counts: _Counted) -> Counts:
    """Return the counts of a worker that has died.

    Open connections count as ended, and packets in the queues of hooks as dropped.
    """
    return Counts(
        _without_open(counts.tcp),
        _without_open(counts.udp),
        tuple(
            replace(
                hook,
                state=_STOPPED,
                reason="",
                inbound=_without_queued(hook.inbound),
                outbound=_without_queued(hook.outbound),
            )
            for hook in counts.hooks
        ),
    )


def _without_open(counts: _StatusT) -> _StatusT:
    return replace(
        counts,
        active=0,
        finished=counts.finished + counts.active,
        routes=tuple(
            replace(
                route,
                active=0,
                ended=_sums((route.ended, {LOST: route.active})) if route.active else route.ended,
            )
            for route in counts.routes
        ),
    )


def _without_queued(tally: HookTally) -> HookTally:
    return replace(
        tally,
        dropped=tally.seen - tally.delivered,
        dropped_bytes=tally.seen_bytes - tally.delivered_bytes,
    )


def _tcp(those: Sequence[TcpStatus]) -> TcpStatus:
    nothing = tcp(TcpCounters(), (), {})
    buckets = Counter[float]()
    for one in those:
        buckets.update(dict(one.identification_buckets))
    return replace(
        nothing,
        accepted=sum(one.accepted for one in those),
        refused=_sums(one.refused for one in those),
        finished=sum(one.finished for one in those),
        active=sum(one.active for one in those),
        loops=sum(one.loops for one in those),
        outcomes=_sums(one.outcomes for one in those),
        identification_seconds=sum(one.identification_seconds for one in those),
        identification_buckets=tuple((bound, buckets[bound]) for bound, _ in nothing.identification_buckets),
        faults=_sums(one.faults for one in those),
        routes=_traffic(those),
    )


def _udp(those: Sequence[UdpStatus]) -> UdpStatus:
    return replace(
        udp(UdpCounters(), (), {}),
        sessions=sum(one.sessions for one in those),
        refused=_sums(one.refused for one in those),
        finished=sum(one.finished for one in those),
        active=sum(one.active for one in those),
        outcomes=_sums(one.outcomes for one in those),
        unrouted=sum(one.unrouted for one in those),
        dropped=sum(one.dropped for one in those),
        faults=_sums(one.faults for one in those),
        routes=_traffic(those),
    )


def _hooks(those: Iterable[Sequence[HookStatus]]) -> tuple[HookStatus, ...]:
    """Return one status for each hook: the sum over all workers."""
    found: defaultdict[tuple[str, bool, int], list[HookStatus]] = defaultdict(list)
    for hooks in those:
        seen = Counter[tuple[str, bool]]()
        for hook in hooks:
            key = hook.name, hook.state == _STOPPED
            found[*key, seen[key]].append(hook)
            seen[key] += 1
    return tuple(map(_hook, found.values()))


def with_active(routes: Iterable[RouteStatus], workers: Iterable[Status]) -> Iterator[RouteStatus]:
    """Yield the supervisor's routes, with the number of connections that each backend has in all workers."""
    active = Counter[tuple[Transport, str]]()
    for status in workers:
        # In one worker, all routes of a transport report the same number of connections for an address. So
        # count each address once per worker and transport.
        active.update(
            {
                (route.transport, backend.address): backend.active
                for route in status.routes
                for backend in route.backends
            }
        )
    for route in routes:
        yield replace(
            route,
            backends=tuple(
                replace(backend, active=active[route.transport, backend.address])
                for backend in route.backends
            ),
        )


def _hook(those: Sequence[HookStatus]) -> HookStatus:
    # Show the worst state, so that operators see a hook that is detached, or else stalled, in any worker.
    worst = max(those, key=lambda one: (bool(one.reason), one.state == _STALLED))
    return HookStatus(
        worst.name,
        worst.state,
        worst.reason,
        sum(one.failures for one in those),
        _tally([one.inbound for one in those]),
        _tally([one.outbound for one in those]),
    )


def _tally(those: Sequence[HookTally]) -> HookTally:
    return HookTally(*(sum(getattr(one, field) for one in those) for field in HookTally.__struct_fields__))


def _traffic(those: Sequence[TcpStatus] | Sequence[UdpStatus]) -> tuple[RouteTraffic, ...]:
    by_name: defaultdict[str, list[RouteTraffic]] = defaultdict(list)
    for one in those:
        for route in one.routes:
            by_name[route.name].append(route)
    return tuple(
        RouteTraffic(
            name,
            sum(one.active for one in found),
            _sums(one.ended for one in found),
            sum(one.bytes_up for one in found),
            sum(one.bytes_down for one in found),
        )
        for name, found in by_name.items()
    )


def _sums(those: Iterable[Mapping[str, int]]) -> dict[str, int]:
    found = Counter[str]()
    for one in those:
        found.update(one)
    return dict(found)
