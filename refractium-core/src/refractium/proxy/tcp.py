"""A TCP connection from accept until its backend is reached: first bytes, decision, connect."""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import TYPE_CHECKING, Final

from refractium.addresses.address import join_host_port
from refractium.addresses.local import OwnAddresses
from refractium.addresses.networks import plain_ip
from refractium.contract import NEED_MORE, NO, Direction, Transport, Verdict
from refractium.proxy.counters import DENIED, NO_ROUTE, Counters, Outcome, why_refused
from refractium.proxy.dial import Dial
from refractium.proxy.listener import Listener
from refractium.proxy.outcome import Ended, Summary, metadata_of
from refractium.proxy.snapshot import Snapshot
from refractium.proxy.tapping import open_tap
from refractium.proxy.weld import Weld, Welding
from refractium.sockets.closing import end_on_close
from refractium.sockets.descriptors import A_CLIENT
from refractium.sockets.reactor import EDGE, IN
from refractium.throttle import Throttled
from refractium.wire.proxy_protocol import build, parse

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    from refractium.addresses.address import Peer
    from refractium.backends.backend import Backend
    from refractium.contract import ProtocolMatch
    from refractium.hooks import Tap
    from refractium.proxy.limits import Limits
    from refractium.proxy.outcome import Reporter
    from refractium.routing import Pool, Router
    from refractium.settings import ProxyVersion, Settings
    from refractium.sockets.descriptors import Descriptors
    from refractium.sockets.reactor import Reactor
    from refractium.wire.proxy_protocol import Endpoint

log = logging.getLogger(__name__)

_READ: Final = 16_384
_IDENTIFIED, _FALLBACK, _NO_ROUTE = Outcome.IDENTIFIED, Outcome.FALLBACK, Outcome.NO_ROUTE


class TcpService:
    """Everything TCP of one engine: listeners, connections, what they share.

    Args:
        reactor: where events come from.
        routers: what each listener does with its connections, by the listener's name.
        settings: limits and timeouts.
        limits: how many connections there may be.
        report: told of every connection that ended.
        descriptors: of which each connection takes `A_CLIENT`.
    """

    def __init__(
        self,
        reactor: Reactor,
        routers: Mapping[str, Router],
        settings: Settings,
        limits: Limits,
        report: Reporter,
        descriptors: Descriptors,
    ) -> None:
        self.reactor = reactor
        self.snapshots = self._take_snapshots(routers, settings)
        self.limits = limits
        self.report = report
        self.descriptors = descriptors
        self.welding = Welding(reactor, descriptors, settings.backend_buffer_size)
        self.counters = Counters()
        self.connections: set[Connection] = set()
        self.own = OwnAddresses()
        self.listeners: list[Listener] = []
        self.drained = asyncio.Event()
        self.drained.set()
        self.refusals = Throttled(log)
        self.failures = Throttled(log)
        self.faults = Throttled(log)

    @property
    def awaiting_socket(self) -> int:
        """How many connections have no socket of a backend, or not yet."""
        return sum(not connection.has_backend_socket for connection in self.connections)

    def listen(self, sock: socket.socket, name: str) -> Listener:
        """Accept connections on a bound, listening socket, which is the service's from now on."""
        listener = Listener(self.reactor, self.descriptors, sock, self._accepted, name, self.snapshots[name])
        self.own.add(sock)
        self.listeners.append(listener)
        return listener

    def apply(self, routers: Mapping[str, Router], settings: Settings) -> None:
        """Serve connections to come by other routes and timeouts; those that are there keep theirs.

        So do listeners that are not named any more, until they are closed.
        """
        self.snapshots = self._take_snapshots(routers, settings)
        self.welding.backend_buffer = settings.backend_buffer_size
        for listener in self.listeners:
            listener.snapshot = self.snapshots.get(listener.name, listener.snapshot)

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
        for snapshot in self.snapshots.values():
            snapshot.close()
        self.welding.pipes.close()

    def refused_late(self, connection: Connection, ip: str, reason: str) -> None:
        """Count a connection that was let go because of the client that it turned out to be of."""
        self.forget(connection, None)
        self._count_refused(ip, reason)

    def forget(self, connection: Connection, origin: str | None) -> None:
        """Let another one in for a connection that has let its sockets go, and was counted for an origin."""
        self.connections.discard(connection)
        self.descriptors.lent -= A_CLIENT
        self.limits.leave(origin)
        if not self.connections:
            self.drained.set()

    def _count_refused(self, ip: str, reason: str) -> None:
        self.counters.refuse(reason)
        self.refusals.warning("refused a connection from %s: %s", ip, why_refused(reason))

    def _take_snapshots(self, routers: Mapping[str, Router], settings: Settings) -> dict[str, Snapshot]:
        return {name: Snapshot(self.reactor.loop, router, settings) for name, router in routers.items()}

    def _accepted(self, sock: socket.socket, peer: Peer, snapshot: Snapshot) -> None:
        self.counters.accepted += 1
        ip = plain_ip(peer[0])
        trusted, access = snapshot.trusted, snapshot.router.access
        # A trusted proxy has as many connections as all of its clients, and is let in for those that may.
        is_trusted = trusted is not None and ip in trusted
        origin = None
        if is_trusted or access is None or access.admits(ip):
            if not is_trusted:
                origin = self.limits.origin(ip)
            reason = self.limits.enter(origin)
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
        self.connections.add(connection)
        try:
            connection.receive()
        except Exception as error:  # noqa: BLE001 - logged
            self.faults.error("%r failed; it is ended, the others go on", connection, exc_info=error)
            connection.crash()


class Connection:
    """One client, from accept to its end.

    Args:
        service: what it belongs to.
        snapshot: what it is served by.
        sock: its socket.
        ip: its address.
        port: its port.
        origin: what its limit counts it as; None for a trusted proxy, which says by a header whose it is.

    Attributes:
        stamp: monotonic time (s) of the accept, from which the peek timeout runs.
    """

    __slots__ = (
        "_awaits_header",
        "_backend",
        "_client",
        "_client_ended",
        "_data",
        "_destination",
        "_dial",
        "_header",
        "_ip",
        "_is_awaited",
        "_match",
        "_origin",
        "_pool",
        "_port",
        "_service",
        "_snapshot",
        "_tap",
        "_weld",
        "stamp",
    )

    def __init__(
        self,
        service: TcpService,
        snapshot: Snapshot,
        sock: socket.socket,
        ip: str,
        port: int,
        origin: str | None,
    ) -> None:
        self._service = service
        self._snapshot = snapshot
        self._client = sock
        self._ip = ip
        self._port = port
        self.stamp = monotonic()
        self._awaits_header = origin is None
        self._is_awaited = False
        self._origin = origin
        self._destination: Endpoint | None = None
        self._header = b""
        self._data = b""
        self._client_ended = False
        self._match: ProtocolMatch | None = None
        self._pool: Pool | None = None
        self._dial: Dial | None = None
        self._backend: Backend | None = None
        self._weld: Weld | None = None
        self._tap: Tap | None = None

    def __repr__(self) -> str:
        return f"<Connection from {join_host_port(self._ip, self._port)}>"

    @property
    def route(self) -> str:
        """The label of where it goes, as far as that is decided."""
        return self._pool.label if self._pool is not None else NO_ROUTE

    @property
    def has_backend_socket(self) -> bool:
        """Whether a backend is reached or being dialled."""
        return self._weld is not None or (self._dial is not None and self._dial.has_socket)

    @property
    def moved(self) -> tuple[int, int]:
        """Bytes that have gone to the backend and to the client."""
        weld = self._weld
        if weld is None:
            return 0, 0
        return max(0, weld.up.count), weld.down.count

    def expired(self) -> None:
        """The peek timeout has passed: decide with what there is."""
        self._is_awaited = False
        self._conclude()

    def cut(self, how: Ended) -> None:
        """Reset the client, and the backend if there is one."""
        if self._weld is not None:
            self._weld.abort(how)
            return
        if self._dial is not None:
            self._dial.cancel()
            self._dial = None
        self._finish(how, is_orderly=False)

    def crash(self) -> None:
        """End at once, after a fault of ours."""
        self.cut(Ended.FAULT)

    # First bytes

    def _on_event(self, _mask: int) -> None:
        # While a backend is dialled the client's bytes wait in its socket, where the weld will find them.
        if self._dial is None:
            self.receive()

    def receive(self) -> None:
        """Take the first bytes, which mostly are there when a connection is accepted, and decide by them."""
        service = self._service
        while True:
            try:
                chunk = self._client.recv(_READ)
            except BlockingIOError:
                if not service.reactor.watch(self._client, IN | EDGE, self._on_event):
                    self._is_awaited = True
                    self._snapshot.peeking.add(self)
                return
            except OSError:
                self._decided(Outcome.LEFT)
                # Should it be this machine that failed, the client must know.
                self._finish(Ended.CLIENT_LEFT, is_orderly=False)
                return
            if not chunk:
                self._client_ended = True
                self._conclude()
                return
            self._data = self._data + chunk if self._data else chunk
            if self._awaits_header:
                if not self._take_header():
                    return
                if self._awaits_header or not self._data:
                    continue
            decision = self._snapshot.router.table.decide(self._data)
            if decision is not NEED_MORE:
                self._follow(decision)
                return

    def _take_header(self) -> bool:
        """Take the PROXY header off the first bytes, if it is all there; whether the connection goes on."""
        parsed = parse(self._data)
        if parsed is NEED_MORE:
            return True
        if isinstance(parsed, Verdict) or parsed[0].transport is Transport.UDP:
            self._end_headerless()
            return False
        header, size = parsed
        self._awaits_header = False
        self._data = self._data[size:]
        if header.source is None:
            return True  # the proxy itself is the client, as when it checks whether we are there
        self._ip, self._port = header.source
        self._destination = header.destination
        service = self._service
        may_enter = self._snapshot.router.admits(self._ip)
        origin = service.limits.origin(self._ip)
        reason = service.limits.assign(origin) if may_enter else DENIED
        if reason is not None:
            if self._is_awaited:
                self._snapshot.peeking.discard(self)
            end_on_close(self._client)
            service.reactor.retire(self._client)
            service.refused_late(self, self._ip, reason)
            return False
        self._origin = origin
        return True

    def _end_headerless(self) -> None:
        self._service.refusals.warning("%s is trusted and sent no valid PROXY header", self._ip)
        self._finish(Ended.NO_HEADER)

    def _conclude(self) -> None:
        """Nothing more is waited for: the deadline has passed, or the client has sent all it had to send."""
        if self._awaits_header and (self._data or not self._client_ended):
            self._end_headerless()
            return
        router = self._snapshot.router
        if self._data:
            self._follow(router.table.decide(self._data, final=True))
        elif self._client_ended:
            self._decided(Outcome.LEFT)
            self._finish(Ended.CLIENT_LEFT)
        elif router.silent is not None:
            self._decided(Outcome.SILENT)
            self._go_to(router.silent)
        else:
            self._follow(NO)

    def _follow(self, decision: tuple[Pool, ProtocolMatch] | Verdict) -> None:
        if isinstance(decision, Verdict):
            fallback = self._snapshot.router.fallback
            self._decided(_NO_ROUTE if fallback is None else _FALLBACK)
            self._go_to(fallback)
        else:
            self._decided(_IDENTIFIED)
            pool, self._match = decision
            self._go_to(pool)

    def _decided(self, outcome: Outcome) -> None:
        self._service.counters.decide(outcome, monotonic() - self.stamp)

    # Backend

    def _go_to(self, pool: Pool | None) -> None:
        if self._is_awaited:
            self._is_awaited = False
            self._snapshot.peeking.discard(self)
        if pool is None:
            self._finish(Ended.NO_ROUTE)
            return
        self._pool = pool
        if pool.access is not None and not pool.access.admits(self._ip):
            self._finish(Ended.DENIED)
            return
        if pool.action is not None:
            self._finish(Ended.REJECTED, is_orderly=pool.action != "reset")
            return
        # Made anew for the fallback, which may want none.
        version = pool.proxy_protocol
        header = self._header = b"" if version is None else self._header_for(version)
        first = header + self._data
        dial = self._dial = Dial(self._service, self._snapshot, pool, first, self, self._ip)
        # All that were accepted together are connected together: a backend that sleeps in between is woken
        # for each, which made every connection cost a fifth more.
        self._service.reactor.soon(dial.begin)

    def _header_for(self, version: ProxyVersion) -> bytes:
        """The PROXY header that a backend is sent first."""
        return build(
            version,
            Transport.TCP,
            (self._ip, self._port),
            self._destination or self._client.getsockname()[:2],
            metadata_of(self._match),
        )

    def unreachable(self) -> None:
        """No backend of the pool can be reached: try the fallback, else end."""
        fallback = self._snapshot.router.fallback
        if fallback is not None and fallback is not self._pool:
            self._go_to(fallback)
            return
        assert self._dial is not None  # noqa: S101 - who else called
        how = Ended.LOOP if self._dial.loops else Ended.UNREACHABLE
        self._finish(how, is_orderly=how is Ended.LOOP)

    def reached(self, backend: Backend, sock: socket.socket, sent: int) -> None:
        """A backend is connected and has been sent that many of the first bytes: weld."""
        self._dial = None
        self._backend = backend
        weld = self._weld = Weld(self._service.welding, self._client, sock, self._weld_ended)
        header, data, self._header, self._data = self._header, self._data, b"", b""
        assert self._pool is not None  # noqa: S101 - it has just been dialled
        if self._pool.taps is not None:
            self._begin_to_tell(weld, self._pool, backend, data)
        self._snapshot.idle.add(weld)
        weld.begin(header + data, sent, client_ended=self._client_ended, preface=len(header))

    def _begin_to_tell(self, weld: Weld, pool: Pool, backend: Backend, data: bytes) -> None:
        """Tell the hooks of the pool of the connection, of what was read so far, and of all that follows."""
        client = self._ip, self._port
        sock = weld.down.sock
        tap = open_tap(pool, Transport.TCP, client, backend, sock, self._match, self.stamp)
        if data:
            tap.packet(Direction.INBOUND, data)
        if self._client_ended:
            tap.end(Direction.INBOUND)
        weld.tell(tap)
        self._tap = tap

    # End

    def _weld_ended(self, how: Ended) -> None:
        assert self._weld is not None  # noqa: S101 - it is the one that ended
        self._snapshot.idle.discard(self._weld)
        self._finish(how)

    def _finish(self, how: Ended, *, is_orderly: bool = True) -> None:
        service = self._service
        if self not in service.connections:
            return
        up, down = self.moved
        if self._weld is None:
            if self._is_awaited:
                self._snapshot.peeking.discard(self)
            if is_orderly:
                end_on_close(self._client)
            service.reactor.retire(self._client)
        else:
            self._weld = None
        backend = self._backend
        if backend is not None:
            backend.state.active -= 1
        if self._tap is not None:
            self._tap.close(how.name.lower())
        pool = self._pool
        service.counters.finish(NO_ROUTE if pool is None else pool.label, how, up, down)
        service.forget(self, self._origin)
        if service.report.is_wanted():
            service.report.write(
                Summary(
                    transport=Transport.TCP,
                    client=join_host_port(self._ip, self._port),
                    route=pool.label if pool is not None else None,
                    match=self._match,
                    backend=str(backend.address) if backend is not None else None,
                    up=up,
                    down=down,
                    seconds=monotonic() - self.stamp,
                    ended=how,
                )
            )
