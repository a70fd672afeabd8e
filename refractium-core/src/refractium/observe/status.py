"""What an engine is doing, as data: for ``refractium status``, for metrics, for programs that embed it."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from msgspec import Struct

from refractium.contract import Transport


class Reload(Struct, frozen=True):
    """How a reload went.

    Attributes:
        at: when it was over.
        ok: whether another configuration is in force since then.
        errors: why not.
    """

    at: datetime
    ok: bool
    errors: tuple[str, ...] = ()


class Listener(Struct, frozen=True):
    """What is listened on.

    Attributes:
        transport: whose clients it takes.
        address: ``HOST:PORT``.
        routes: the labels of the routes that it serves, beside the fallback.
        paused: why nobody is let in at this moment; empty while clients are.
    """

    transport: Transport
    address: str
    routes: tuple[str, ...]
    paused: str = ""


class BackendStatus(Struct, frozen=True):
    """One backend of one route.

    Attributes:
        address: as configured.
        state: ``up``, ``down`` or ``unknown``: nobody has asked yet, and it counts as up.
        since: when that began.
        reason: why it is down; empty while it is not.
        active: connections and sessions that the address has now, by whichever route of this transport.
        weight: its share compared with the route's others.
        backup: whether it is used only when none of the others is up.
    """

    address: str
    state: str
    since: datetime
    reason: str
    active: int
    weight: int
    backup: bool


class RouteStatus(Struct, frozen=True):
    """A route, or the fallback.

    Attributes:
        name: its id, if it has one, else its protocol's name; or ``fallback``.
        transport: whose clients it is for.
        conditions: the names that it asks for, by key (sni, alpn, host).
        backends: where its clients go.
        action: what becomes of them instead: ``reject`` or ``reset``.
    """

    name: str
    transport: Transport
    conditions: dict[str, tuple[str, ...]]
    backends: tuple[BackendStatus, ...]
    action: str | None = None


class RouteTraffic(Struct, frozen=True):
    """What went by all routes of one name since the start, open connections included.

    Attributes:
        name: as of the route; ``-`` for connections without one.
        active: connections or sessions that are open now.
        ended: those that are not, by how they ended (`refractium.proxy.outcome.Ended`, by name).
        bytes_up: client to backend.
        bytes_down: backend to client.
    """

    name: str
    active: int
    ended: dict[str, int]
    bytes_up: int
    bytes_down: int


class TcpStatus(Struct, frozen=True):
    """Connections since the start: ``accepted == sum(refused) + finished + active``.

    Attributes:
        accepted: all of them.
        refused: closed at accept, by the limit that was reached, or ``denied`` by access rules.
        finished: ended, in whichever way.
        active: open now.
        loops: targets not connected to because they are this proxy's own listener.
        outcomes: how identifications came out (`refractium.proxy.counters.Outcome`).
        identification_seconds: the time they took in all, from accept.
        identification_buckets: pairs of an upper bound (s) and how many took no longer.
        faults: how often each protocol raised instead of answering.
        routes: what went where.
    """

    accepted: int
    refused: dict[str, int]
    finished: int
    active: int
    loops: int
    outcomes: dict[str, int]
    identification_seconds: float
    identification_buckets: tuple[tuple[float, int], ...]
    faults: dict[str, int]
    routes: tuple[RouteTraffic, ...]


class UdpStatus(Struct, frozen=True):
    """Sessions and datagrams since the start: ``sessions == finished + active``.

    Attributes:
        sessions: all of them.
        refused: datagrams that would have begun a session, by the limit that was reached, or ``denied`` by
            access rules, or ``rejected`` by their route.
        finished: ended, in whichever way.
        active: open now.
        outcomes: how identifications came out (`refractium.proxy.counters.Outcome`).
        unrouted: datagrams without a route.
        dropped: datagrams that were not passed on.
        faults: how often each protocol raised instead of answering.
        routes: what went where.
    """

    sessions: int
    refused: dict[str, int]
    finished: int
    active: int
    outcomes: dict[str, int]
    unrouted: int
    dropped: int
    faults: dict[str, int]
    routes: tuple[RouteTraffic, ...]


class HookTally(Struct, frozen=True):
    """What one hook has been told of one direction: ``seen == delivered + dropped + queued``.

    Attributes:
        seen: packets that have passed.
        seen_bytes: their bytes.
        delivered: packets handed to the hook.
        delivered_bytes: their bytes.
        dropped: packets that it was not told of.
        dropped_bytes: their bytes.
    """

    seen: int
    seen_bytes: int
    delivered: int
    delivered_bytes: int
    dropped: int
    dropped_bytes: int


class HookStatus(Struct, frozen=True):
    """A packet hook. One that is used with different settings is there once for each.

    Attributes:
        name: of the hook.
        state: ``running``, ``stalled`` (it takes none of the packets that wait for it), ``detached`` (it has
            failed too often) or ``stopped`` (no configuration uses it).
        reason: why it is detached.
        failures: exceptions that it has raised.
        inbound: client to backend.
        outbound: backend to client.
    """

    name: str
    state: str
    reason: str
    failures: int
    inbound: HookTally
    outbound: HookTally


class WorkerStatus(Struct, frozen=True):
    """One of several worker processes.

    Attributes:
        number: from 1.
        pid: of the process; None while it is being replaced.
        since: when that was started.
        restarts: how often it was replaced.
        active: connections and sessions that it has now.
    """

    number: int
    pid: int | None
    since: datetime | None
    restarts: int
    active: int


class Status(Struct, frozen=True):
    """All of it at one moment.

    Attributes:
        version: of the program.
        started: when the engine was made.
        at: now.
        generation: how many configurations have been in force.
        reloads_failed: how many were refused.
        last_reload: the last of both, if there was one.
        listeners: what is listened on.
        routes: where clients go, as configured.
        tcp: counts of connections.
        udp: counts of sessions.
        hooks: what packet hooks have been told.
        workers: the processes that serve, if there are several.
    """

    version: str
    started: datetime
    at: datetime
    generation: int
    reloads_failed: int
    last_reload: Reload | None
    listeners: tuple[Listener, ...]
    routes: tuple[RouteStatus, ...]
    tcp: TcpStatus
    udp: UdpStatus
    hooks: tuple[HookStatus, ...] = ()
    workers: tuple[WorkerStatus, ...] = ()


def now() -> datetime:
    """The time of day, in UTC."""
    return moment(time.time())


def moment(seconds: float) -> datetime:
    """A time since the epoch (s)."""
    return datetime.fromtimestamp(seconds, UTC)
