"""The status of an engine as data, for ``refractium status``, metrics and programs that embed an engine."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from msgspec import Struct

from refractium.contract import Transport


class Reload(Struct, frozen=True):
    """The result of a reload.

    Attributes:
        at: the time at which the reload ended.
        ok: whether the reload succeeded, so that the new configuration came into force.
        errors: the reasons for a refusal; empty if the reload succeeded.
    """

    at: datetime
    ok: bool
    errors: tuple[str, ...] = ()


class ListenerStatus(Struct, frozen=True):
    """A listener.

    Attributes:
        transport: the transport of the listener's clients.
        address: the address of the listener, ``HOST:PORT``.
        routes: the labels of the routes that the listener serves, without the fallback.
        paused: the reason why the listener accepts no clients at present; empty while it accepts clients.
    """

    transport: Transport
    address: str
    routes: tuple[str, ...]
    paused: str = ""


class BackendStatus(Struct, frozen=True):
    """One backend of one route.

    Attributes:
        address: the address as configured.
        state: ``up``, ``down`` or ``unknown``. ``unknown`` means that no check and no client has shown the
            state yet; the backend counts as up.
        since: the time at which the state began.
        reason: the reason why the backend is down; empty if the backend is not down.
        active: number of open connections and sessions to this address, from all routes of this transport.
        weight: the share of clients, relative to the weights of the other backends of the route.
        backup: whether the backend is a backup, for clients that cannot be connected to any other backend.
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
        name: the id of the route, or the name of the protocol of a route without an id, or ``fallback``.
        transport: the transport of the route's clients.
        conditions: the conditions of the route, by their key paths in the configuration file (``sni``,
            ``alpn``, ``host``, ``client`` or ``match.KEY``): the patterns or networks that match.
        backends: the backends to which the route's clients go.
        action: ``reject`` or ``reset`` if the route closes or resets its clients' connections; None if the
            route has backends.
    """

    name: str
    transport: Transport
    conditions: dict[str, tuple[str, ...]]
    backends: tuple[BackendStatus, ...]
    action: str | None = None


class RouteTraffic(Struct, frozen=True):
    """The traffic of all routes with the same name since the start, including open connections.

    Attributes:
        name: the name of the route, which several routes can share; ``-`` for connections without a route.
        active: connections or sessions that are open now.
        ended: counts of connections or sessions that have ended, by the name of the reason
            (`refractium.proxy.summary.Ended`).
        bytes_up: bytes from client to backend.
        bytes_down: bytes from backend to client.
    """

    name: str
    active: int
    ended: dict[str, int]
    bytes_up: int
    bytes_down: int


class TcpStatus(Struct, frozen=True):
    """Counts of connections since the start: ``accepted == sum(refused) + finished + active``.

    Attributes:
        accepted: connections that were accepted.
        refused: number of refused connections, by reason: the name of the limit that was reached, or
            ``denied`` (access rules).
        finished: connections that have ended, for any reason.
        active: connections that are open now.
        loops: the number of times that the proxy did not connect to a backend address, because the address
            is one of the proxy's own listeners.
        outcomes: counts of identifications, by result (`refractium.proxy.counters.Outcome`).
        identification_seconds: the sum of the times from accept to the result of identification.
        identification_buckets: pairs of an upper bound (s) and the number of identifications that took at
            most this time.
        faults: counts of the faults of plugins, by the name of the protocol, ``balancer NAME`` or ``check
            NAME``.
        routes: the traffic by route.
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
        sessions: sessions that have begun.
        refused: number of datagrams that began no session, by reason: the name of the limit that was reached,
            ``denied`` (access rules), or ``rejected`` (the route rejects clients).
        finished: sessions that have ended, for any reason.
        active: sessions that are open now.
        outcomes: counts of identifications, by result (`refractium.proxy.counters.Outcome`).
        unrouted: datagrams without a route and without a fallback; also datagrams from or to a listener of
            the proxy, and first datagrams of sessions during a stop.
        dropped: datagrams that were lost because a socket did not accept them, or because no backend could be
            reached.
        faults: counts of the faults of plugins, by the name of the protocol, ``balancer NAME`` or ``check
            NAME``.
        routes: the traffic by route.
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
    """The packets of one hook in one direction: ``seen == delivered + dropped + queued``.

    Attributes:
        seen: packets in the sessions of the hook.
        seen_bytes: bytes of the packets in the sessions of the hook.
        delivered: packets that the hook received.
        delivered_bytes: bytes of the packets that the hook received.
        dropped: packets that were discarded, for example because the queue of the hook was full.
        dropped_bytes: bytes of the packets that were discarded.
    """

    seen: int
    seen_bytes: int
    delivered: int
    delivered_bytes: int
    dropped: int
    dropped_bytes: int


class HookStatus(Struct, frozen=True):
    """A packet hook with its settings. Each different settings value of a hook has its own status.

    Attributes:
        name: the name of the hook.
        state: ``running``, ``stalled`` (packets wait, but the hook takes none), ``detached`` (the hook has
            failed too often) or ``stopped`` (the current configuration does not use the hook).
        reason: the reason why the hook is detached; else empty.
        failures: exceptions that the hook has raised.
        inbound: packets from client to backend.
        outbound: packets from backend to client.
    """

    name: str
    state: str
    reason: str
    failures: int
    inbound: HookTally
    outbound: HookTally


class PluginStatus(Struct, frozen=True):
    """A plugin that is loaded.

    Attributes:
        id: the id of the plugin.
        distribution: the distribution that installed the plugin.
        version: the version of the code that runs.
        installed: the version of the distribution on disk at the last reload. If this version differs from
            `version`, the plugin needs a restart of Refractium.
        provides: the objects of the plugin: ``protocol NAME``, ``check NAME``, ``balancer NAME``, ``hook
            NAME`` and ``command NAME``.
        faults: number of the faults of these objects.
    """

    id: str
    distribution: str
    version: str
    installed: str
    provides: tuple[str, ...]
    faults: int


class WorkerStatus(Struct, frozen=True):
    """One of several worker processes.

    Attributes:
        number: the number of the worker, from 1.
        pid: the id of the process; None while the worker is being replaced.
        since: the time at which the process was started; None while the worker is being replaced.
        restarts: the number of times that the worker was replaced.
        active: connections and sessions of the worker that are open now.
    """

    number: int
    pid: int | None
    since: datetime | None
    restarts: int
    active: int


class Status(Struct, frozen=True):
    """The status of an engine at one moment.

    Attributes:
        version: the version of the program.
        pid: the process id. Under the command ``refractium``, this process takes signals, such as SIGHUP for
            a reload.
        started: the time at which the engine was created.
        at: the moment that the status describes.
        generation: the number of configurations that have been in force.
        reloads_failed: the number of configurations that were refused.
        last_reload: the last reload, whether it succeeded or not; None if there was no reload.
        listeners: the listeners that are open.
        routes: the routes and fallbacks as configured, with the states of their backends.
        tcp: counts of connections.
        udp: counts of sessions and datagrams.
        hooks: packet hooks, with counts of their packets.
        workers: the worker processes, if there are several.
        file: the absolute path of the configuration file that the program was started from; empty without a
            file, and in a program that embeds an engine.
        plugins: the plugins that are loaded; empty in a program that embeds an engine.
    """

    version: str
    pid: int
    started: datetime
    at: datetime
    generation: int
    reloads_failed: int
    last_reload: Reload | None
    listeners: tuple[ListenerStatus, ...]
    routes: tuple[RouteStatus, ...]
    tcp: TcpStatus
    udp: UdpStatus
    hooks: tuple[HookStatus, ...] = ()
    workers: tuple[WorkerStatus, ...] = ()
    file: str = ""
    plugins: tuple[PluginStatus, ...] = ()


def now() -> datetime:
    """Return the current time, in UTC."""
    return moment(time.time())


def moment(seconds: float) -> datetime:
    """Return the time that is `seconds` after the epoch, in UTC."""
    return datetime.fromtimestamp(seconds, UTC)
