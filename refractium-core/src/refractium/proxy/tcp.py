"""The TCP service of one engine: the listeners, the connections and their shared objects."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from refractium.addresses.local import OwnAddresses
from refractium.addresses.networks import plain_ip
from refractium.proxy.aging import Aging
from refractium.proxy.connection import Connection
from refractium.proxy.counters import DENIED, TcpCounters, why_refused
from refractium.proxy.dial import Dialing
from refractium.proxy.half_closed import Room
from refractium.proxy.listener import TcpListener
from refractium.proxy.snapshot import Snapshot
from refractium.proxy.summary import open_reporter
from refractium.proxy.welding import Welding
from refractium.sockets.closing import end_on_close
from refractium.sockets.descriptors import A_CLIENT
from refractium.throttle import Throttled

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    from refractium.addresses.address import Peer
    from refractium.proxy.limiter import Limiter
    from refractium.proxy.summary import Ended, Reporter
    from refractium.routing import Router
    from refractium.settings import Settings
    from refractium.sockets.descriptors import Descriptors
    from refractium.sockets.reactor import Reactor

log = logging.getLogger(__name__)


class TcpService:
    """The TCP listeners and connections of one engine, and their shared objects.

    Args:
        reactor: the source of events.
        routers: the router of each listener, by the listener's name.
        settings: the limits and timeouts.
        limiter: the limiter of connections.
        report: the receiver of the summaries of finished connections.
        descriptors: the lender of `A_CLIENT` descriptors for each connection.
    """

    def __init__(
        self,
        reactor: Reactor,
        routers: Mapping[str, Router],
        settings: Settings,
        limiter: Limiter,
        report: Reporter,
        descriptors: Descriptors,
    ) -> None:
        self.reactor = reactor
        self.snapshots = self._take_snapshots(routers, settings)
        self.limiter = limiter
        self.report = report
        self.open_report = open_reporter(report)
        self.descriptors = descriptors
        self.welding = Welding(reactor, descriptors, settings.backend_buffer_size)
        self.counters = TcpCounters()
        # In the order of their accepts, which `Aging` needs.
        self.connections: dict[Connection, None] = {}
        self.aging = Aging(reactor.loop, lambda: reversed(self.connections))
        self.room = Room(reactor.loop)
        self.own = OwnAddresses()
        self.dialing = Dialing(reactor, descriptors, self.own, self.counters)
        self.listeners: list[TcpListener] = []
        self.drained = asyncio.Event()
        self.drained.set()
        self.refusals = Throttled(log)
        self.undecided = Throttled(log)
        self.faults = Throttled(log)

    @property
    def awaiting_socket(self) -> int:
        """The number of connections that have no socket to a backend."""
        return sum(not connection.has_backend_socket for connection in self.connections)

    def listen(self, sock: socket.socket, name: str) -> TcpListener:
        """Accept connections on a bound, listening socket, which the service owns from now on."""
        listener = TcpListener(
            self.reactor, self.descriptors, sock, self._accepted, name, self.snapshots[name]
        )
        self.own.add(sock)
        self.listeners.append(listener)
        return listener

    def apply(self, routers: Mapping[str, Router], settings: Settings) -> None:
        """Set the routes and timeouts of new connections, but not of existing connections.

        A listener that is missing from `routers` keeps its routes and timeouts until the listener is closed.
        """
        self.snapshots = self._take_snapshots(routers, settings)
        self.welding.backend_buffer = settings.backend_buffer_size
        for listener in self.listeners:
            listener.snapshot = self.snapshots.get(listener.name, listener.snapshot)

    def stop_listening(self, listener: TcpListener) -> None:
        """Close one listener; connections from this listener continue."""
        self.listeners.remove(listener)
        self.own.discard(listener.address)
        listener.close()

    def drain(self) -> None:
        """Close all listeners; connections continue."""
        for listener in self.listeners:
            listener.close()
        self.listeners.clear()

    def cut(self, how: Ended) -> int:
        """Reset all remaining connections, and return the number of these connections."""
        left = list(self.connections)
        for connection in left:
            connection.cut(how)
        return len(left)

    def close(self) -> None:
        """Cancel all timers and close unused pipes, after all listeners and connections have been closed."""
        self.aging.close()
        self.room.close()
        for snapshot in self.snapshots.values():
            snapshot.close()
        self.welding.pipes.close()

    def refused_late(self, connection: Connection, ip: str, reason: str) -> None:
        """Remove a connection, and count a refusal of the client that its PROXY header names."""
        self.forget(connection, None)
        self._count_refused(ip, reason)

    def forget(self, connection: Connection, origin: str | None) -> None:
        """Remove a connection whose sockets are closed, and subtract the connection from all counts."""
        self.connections.pop(connection, None)
        self.descriptors.lent -= A_CLIENT
        self.limiter.leave(origin)
        if not self.connections:
            self.drained.set()

    def assign(self, origin: str) -> str | None:
        """Count a connection for the origin that its PROXY header names, as `Limiter.assign` does."""
        reason = self.limiter.assign(origin)
        while reason is not None and self._make_room(origin, reason):
            reason = self.limiter.assign(origin)
        return reason

    def _make_room(self, origin: str | None, reason: str) -> bool:
        """End a silent half-closed connection that counts for the limit in `reason`, if there is one."""
        return self.room.make(origin if reason == self.limiter.names.per_ip else None)

    def _count_refused(self, ip: str, reason: str) -> None:
        self.counters.refuse(reason)
        self.refusals.warning("refused a connection from %s: %s", ip, why_refused(reason))

    def _take_snapshots(self, routers: Mapping[str, Router], settings: Settings) -> dict[str, Snapshot]:
        return {name: Snapshot(self.reactor.loop, router, settings) for name, router in routers.items()}

    def _accepted(self, sock: socket.socket, peer: Peer, snapshot: Snapshot) -> None:
        self.counters.accepted += 1
        ip = plain_ip(peer[0])
        trusted, access = snapshot.trusted, snapshot.router.access
        # A trusted proxy opens the connections of all of its clients. So access rules and the limit per
        # address apply to the client that the PROXY header names, not to the proxy.
        is_trusted = trusted is not None and ip in trusted
        origin = None
        if is_trusted or access is None or access.admits(ip):
            if not is_trusted:
                origin = self.limiter.origin(ip)
            reason = self.limiter.enter(origin)
            while reason is not None and self._make_room(origin, reason):
                reason = self.limiter.enter(origin)
        else:
            reason = DENIED
        if reason is not None:
            end_on_close(sock)
            self.reactor.retire(sock)
            self.descriptors.lent -= A_CLIENT
            self._count_refused(ip, reason)
            return
        connection = Connection(self, snapshot, sock, ip, peer[1], origin)
        if not self.connections:
            self.drained.clear()
        self.connections[connection] = None
        if not self.aging.is_waiting:
            self.aging.begin()
        try:
            connection.receive()
        except Exception as error:  # noqa: BLE001 - logged
            self.faults.error("internal error in %s; everything else goes on", connection, exc_info=error)
            connection.crash()
