"""A TCP connection from accept until its backend is reached: first bytes, decision, connect."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from refractium.contract import NEED_MORE, Transport, Verdict
from refractium.net.dial import Dial
from refractium.net.listener import Listener
from refractium.net.locality import OwnAddresses
from refractium.net.reactor import EDGE, IN
from refractium.net.report import Ended, Summary, join_host_port, metadata_of
from refractium.net.snapshot import Snapshot
from refractium.net.weld import Weld, Welding, reset_on_close
from refractium.throttle import Throttled

if TYPE_CHECKING:
    import socket

    from refractium.contract import ProtocolMatch
    from refractium.net.limits import Limits
    from refractium.net.listener import Peer
    from refractium.net.reactor import Reactor
    from refractium.net.report import Reporter
    from refractium.routing import Backend, Pool, Router
    from refractium.settings import Settings

log = logging.getLogger(__name__)

_READ: Final = 16_384


@dataclass(slots=True)
class Counters:
    """What has happened since the start. ``accepted == refused + finished + active`` at any time."""

    accepted: int = 0
    refused: int = 0
    """Closed at accept, because of a limit."""
    finished: int = 0
    loops: int = 0
    """Not connected, because the target was this proxy's own listener."""
    bytes_up: int = 0
    """Client to backend, of finished connections."""
    bytes_down: int = 0


class TcpService:
    """Everything TCP of one engine: listeners, connections, what they share.

    Args:
        reactor: where events come from.
        router: where connections go.
        settings: limits and timeouts.
        limits: how many connections there may be.
        report: told of every connection that ended.
    """

    def __init__(
        self,
        reactor: Reactor,
        router: Router,
        settings: Settings,
        limits: Limits,
        report: Reporter,
    ) -> None:
        self.reactor = reactor
        self.snapshot = Snapshot(reactor.loop, router, settings)
        self.limits = limits
        self.report = report
        self.welding = Welding(reactor)
        self.counters = Counters()
        self.connections: set[Connection] = set()
        self.own = OwnAddresses()
        self.listeners: list[Listener] = []
        self.drained = asyncio.Event()
        self.drained.set()
        self.refusals = Throttled(log)
        self.failures = Throttled(log)

    def listen(self, sock: socket.socket) -> Listener:
        """Accept connections on a bound, listening socket, which is the service's from now on."""
        listener = Listener(self.reactor, sock, self._accepted)
        self.own.add(sock)
        self.listeners.append(listener)
        return listener

    def apply(self, router: Router, settings: Settings) -> None:
        """Serve connections to come by other routes and timeouts; those that are there keep theirs."""
        self.snapshot = Snapshot(self.reactor.loop, router, settings)

    def stop_listening(self, listener: Listener) -> None:
        """Close one listener; its connections go on."""
        self.listeners.remove(listener)
        self.own.discard(listener.address)
        listener.close()

    def drain(self) -> None:
        """Close the listeners; connections go on."""
        for listener in self.listeners:
            listener.close()
        self.listeners.clear()

    def cut(self, how: Ended) -> int:
        """Reset every connection that is left; how many there were."""
        left = list(self.connections)
        for connection in left:
            connection.cut(how)
        return len(left)

    def close(self) -> None:
        """Forget all timers. Listeners and connections have been closed before."""
        self.snapshot.close()

    def ended(self, connection: Connection, ip: str, up: int, down: int) -> None:
        """Count a connection that has let its sockets go."""
        self.connections.discard(connection)
        self.limits.leave(ip)
        self.counters.finished += 1
        self.counters.bytes_up += up
        self.counters.bytes_down += down
        if not self.connections:
            self.drained.set()

    def _accepted(self, sock: socket.socket, peer: Peer) -> None:
        self.counters.accepted += 1
        ip = peer[0].removeprefix("::ffff:")
        limit = self.limits.enter(ip)
        if limit is not None:
            self.counters.refused += 1
            self.reactor.retire(sock)
            self.refusals.warning("refused a connection from %s: %s is reached", ip, limit)
            return
        connection = Connection(self, sock, ip, peer[1])
        self.connections.add(connection)
        self.drained.clear()
        try:
            connection.begin()
        except Exception:
            log.exception("%r failed; it is ended, the others go on", connection)
            connection.crash()


class Connection:
    """One client, from accept to its end.

    Attributes:
        stamp: monotonic time (s) of the accept, from which the peek timeout runs.
    """

    __slots__ = (
        "_backend",
        "_client",
        "_client_ended",
        "_data",
        "_dial",
        "_ip",
        "_match",
        "_pool",
        "_port",
        "_service",
        "_snapshot",
        "_weld",
        "stamp",
    )

    def __init__(self, service: TcpService, sock: socket.socket, ip: str, port: int) -> None:
        self._service = service
        self._snapshot = service.snapshot
        self._client = sock
        self._ip = ip
        self._port = port
        self.stamp = service.reactor.now
        self._data = b""
        self._client_ended = False
        self._match: ProtocolMatch | None = None
        self._pool: Pool | None = None
        self._dial: Dial | None = None
        self._backend: Backend | None = None
        self._weld: Weld | None = None

    def __repr__(self) -> str:
        return f"<Connection from {join_host_port(self._ip, self._port)}>"

    def begin(self) -> None:
        """Look whether the first bytes are there already, as they mostly are."""
        self._receive()

    def expired(self) -> None:
        """The peek timeout has passed: decide with what there is."""
        self._conclude()

    def cut(self, how: Ended) -> None:
        """Reset the client, and the backend if there is one."""
        if self._weld is not None:
            self._weld.abort(how)
            return
        if self._dial is not None:
            self._dial.cancel()
        reset_on_close(self._client)
        self._finish(how)

    def crash(self) -> None:
        """End at once, after a fault of ours."""
        self.cut(Ended.FAULT)

    # First bytes

    def _on_event(self, _mask: int) -> None:
        # While a backend is dialled the client's bytes wait in its socket, where the weld will find them.
        if self._dial is None:
            self._receive()

    def _receive(self) -> None:
        service = self._service
        while True:
            try:
                chunk = self._client.recv(_READ)
            except BlockingIOError:
                if not service.reactor.watch(self._client, IN | EDGE, self._on_event):
                    self._snapshot.peeking.add(self)
                return
            except OSError:
                self._finish(Ended.CLIENT_LEFT)
                return
            if not chunk:
                self._client_ended = True
                self._conclude()
                return
            self._data = self._data + chunk if self._data else chunk
            decision = self._snapshot.router.table.decide(self._data)
            if decision is not NEED_MORE:
                self._follow(decision)
                return

    def _conclude(self) -> None:
        """Nothing more is waited for: the deadline has passed, or the client has sent all it had to send."""
        router = self._snapshot.router
        if self._data:
            self._follow(router.table.decide(self._data, final=True))
        elif self._client_ended:
            self._finish(Ended.CLIENT_LEFT)
        else:
            self._go_to(router.silent or router.fallback)

    def _follow(self, decision: tuple[Pool, ProtocolMatch] | Verdict) -> None:
        if isinstance(decision, Verdict):
            self._go_to(self._snapshot.router.fallback)
        else:
            pool, self._match = decision
            self._go_to(pool)

    # Backend

    def _go_to(self, pool: Pool | None) -> None:
        self._snapshot.peeking.discard(self)
        if pool is None:
            self._finish(Ended.NO_ROUTE)
            return
        self._pool = pool
        self._dial = Dial(self._service, self._snapshot, pool, self._data, self, self._ip)
        self._dial.begin()

    def unreachable(self) -> None:
        """No backend of the pool can be reached: try the fallback, else end."""
        fallback = self._snapshot.router.fallback
        if fallback is not None and fallback is not self._pool:
            self._go_to(fallback)
            return
        assert self._dial is not None  # noqa: S101 - who else called
        how = Ended.LOOP if self._dial.loops else Ended.UNREACHABLE
        if how is Ended.UNREACHABLE:
            reset_on_close(self._client)
        self._finish(how)

    def reached(self, backend: Backend, sock: socket.socket, sent: int) -> None:
        """A backend is connected and has been sent that many of the first bytes: weld."""
        self._dial = None
        self._backend = backend
        weld = self._weld = Weld(self._service.welding, self._client, sock, self._weld_ended)
        data, self._data = self._data, b""
        self._snapshot.idle.add(weld)
        weld.begin(data, sent, client_ended=self._client_ended)

    # End

    def _weld_ended(self, how: Ended) -> None:
        assert self._weld is not None  # noqa: S101 - it is the one that ended
        self._snapshot.idle.discard(self._weld)
        self._finish(how)

    def _finish(self, how: Ended) -> None:
        service = self._service
        if self not in service.connections:
            return
        weld, self._weld = self._weld, None
        if weld is None:
            self._snapshot.peeking.discard(self)
            service.reactor.retire(self._client)
        up, down = (weld.up.count, weld.down.count) if weld is not None else (0, 0)
        if self._backend is not None:
            self._backend.state.active -= 1
        service.ended(self, self._ip, up, down)
        if service.report.is_wanted():
            service.report.write(
                Summary(
                    transport=Transport.TCP,
                    client=join_host_port(self._ip, self._port),
                    route=self._pool.label if self._pool is not None else None,
                    metadata=metadata_of(self._match),
                    backend=str(self._backend.address) if self._backend is not None else None,
                    up=up,
                    down=down,
                    seconds=service.reactor.now - self.stamp,
                    ended=how,
                )
            )
