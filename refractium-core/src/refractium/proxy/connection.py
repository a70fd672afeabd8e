"""A TCP connection from accept to its end: first bytes, choice of a route, connection to a backend, weld."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Final

from refractium.addresses.address import join_host_port
from refractium.contract import NEED_MORE, NO, Direction, Transport, Verdict
from refractium.identify import Undecided, Waiting
from refractium.proxy.counters import DENIED, NO_ROUTE, Outcome
from refractium.proxy.dial import Dial
from refractium.proxy.first_bytes import PAUSE, FirstBytes
from refractium.proxy.half_closed import HalfClose
from refractium.proxy.summary import Ended, Missed, Summary, metadata_of
from refractium.proxy.tapping import open_tap
from refractium.proxy.weld import Weld
from refractium.sockets.closing import end_on_close
from refractium.sockets.reactor import EDGE, IN
from refractium.wire.proxy_protocol import build, parse

if TYPE_CHECKING:
    import socket

    from refractium.backends.backend import Backend
    from refractium.contract import ProtocolMatch
    from refractium.hooks import Tap
    from refractium.identify import Decision
    from refractium.proxy.snapshot import Snapshot
    from refractium.proxy.tcp import TcpService
    from refractium.routing import Pool
    from refractium.settings import ProxyVersion
    from refractium.wire.proxy_protocol import HostPort

_READ: Final = 16_384
"""Maximum number of bytes of one read while the protocol is unknown."""
_IDENTIFIED, _FALLBACK, _NO_ROUTE = Outcome.IDENTIFIED, Outcome.FALLBACK, Outcome.NO_ROUTE


class Connection:
    """A TCP connection of one client, from accept to its end.

    Args:
        service: the TCP service that owns the connection.
        snapshot: the routes and timeouts of the connection.
        sock: the client's socket.
        ip: the client's IP address.
        port: the client's port.
        origin: the name under which `Limiter` counts the client. None if the peer is a trusted proxy, whose
            PROXY header names the client.

    Attributes:
        stamp: monotonic time (s) of the accept, at which the peek timeout begins.
    """

    __slots__ = (
        "_awaits_header",
        "_backend",
        "_client",
        "_client_ended",
        "_data",
        "_destination",
        "_dial",
        "_first_bytes",
        "_half_close",
        "_header",
        "_ip",
        "_is_peeking",
        "_is_settled",
        "_match",
        "_missed",
        "_origin",
        "_pool",
        "_port",
        "_router",
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
        router = snapshot.router
        self._router = router.for_client(ip) if router.depends_on_client else router
        self._client = sock
        self._ip = ip
        self._port = port
        self.stamp = monotonic()
        self._awaits_header = origin is None
        self._is_peeking = self._is_settled = False
        self._origin = origin
        self._destination: HostPort | None = None
        self._header = b""
        self._data = b""
        self._first_bytes: FirstBytes | None = None
        self._client_ended = False
        self._match: ProtocolMatch | None = None
        self._missed: Missed | None = None
        self._pool: Pool | None = None
        self._dial: Dial | None = None
        self._backend: Backend | None = None
        self._weld: Weld | None = None
        self._half_close: HalfClose | None = None
        self._tap: Tap | None = None

    def __repr__(self) -> str:
        return f"<Connection from {join_host_port(self._ip, self._port)}>"

    @property
    def started(self) -> float:
        """Monotonic time (s) of the accept."""
        return self.stamp

    @property
    def route(self) -> str:
        """The label of the chosen pool; `NO_ROUTE` while no pool is chosen."""
        return self._pool.label if self._pool is not None else NO_ROUTE

    @property
    def has_backend_socket(self) -> bool:
        """Whether the connection has a socket to a backend, connected or not yet connected."""
        return self._weld is not None or (self._dial is not None and self._dial.has_socket)

    @property
    def moved(self) -> tuple[int, int]:
        """The numbers of bytes sent to the backend and to the client."""
        weld = self._weld
        if weld is None:
            return 0, 0
        return max(0, weld.up.count), weld.down.count

    def expired(self) -> None:
        """Choose a route by the bytes received so far, because the peek timeout has passed."""
        self._is_peeking = False
        self._choose_now()

    def cut(self, how: Ended) -> None:
        """Reset the client and, if a backend is connected, the backend."""
        if self._weld is not None:
            self._weld.abort(how)
            return
        if self._dial is not None:
            self._dial.cancel()
            self._dial = None
        self._finish(how, is_orderly=False)

    def crash(self) -> None:
        """End the connection at once after an internal error."""
        self.cut(Ended.FAULT)

    # First bytes

    def _on_event(self, _mask: int) -> None:
        # During a dial, new bytes stay in the client's socket. The weld reads these bytes later.
        if self._dial is None:
            self.receive()

    def receive(self) -> None:  # noqa: C901, PLR0911 - for the usual client, each further call would cost time
        """Read the first bytes, which mostly arrive before the accept, and choose a route by these bytes."""
        while True:
            try:
                chunk = self._client.recv(_READ)
            except BlockingIOError:
                self._await_bytes()
                return
            except OSError:
                self._decided(Outcome.LEFT)
                # Close with a reset: if this machine failed, the client must notice the failure.
                self._finish(Ended.CLIENT_LEFT, is_orderly=False)
                return
            if not chunk:
                self._client_ended = True
                self._choose_now()
                return
            first = self._first_bytes
            if first is not None:
                first.add(chunk)
                if first.is_due and self._ask(first):
                    return
                continue
            self._data = self._data + chunk if self._data else chunk
            if self._awaits_header:
                if not self._take_header():
                    return
                if self._awaits_header or not self._data:
                    continue
            decision = self._router.table.decide(self._data)
            if not isinstance(decision, Waiting):
                self._follow(decision)
                return
            if self._wait(decision):
                return

    def _await_bytes(self) -> None:
        """Wait for the next bytes until the peek timeout. Follow a sole route (`Router.sole`) at once."""
        if self._router.sole is not None and not self._awaits_header:
            self._follow(NO)
            return
        reactor = self._service.reactor
        if not reactor.watch(self._client, IN | EDGE, self._on_event):
            self._is_peeking = True
            self._snapshot.peeking.add(self)
        first = self._first_bytes
        if first is not None and first.pause is None and first.is_worth_a_question:
            first.pause = reactor.later(PAUSE, self._end_pause)

    def _wait(self, waiting: Waiting) -> bool:
        """Prepare to wait for more bytes. Return whether a sole route was followed instead."""
        if self._router.sole is not None:
            self._follow(NO)
            return True
        first = self._first_bytes
        if first is None:
            first = self._first_bytes = FirstBytes(self._data)
            self._data = b""
        first.asked(waiting)
        if waiting.is_matched and first.grace is None:
            seconds = self._snapshot.settings.peek_grace_ms / 1000
            first.grace = self._service.reactor.later(seconds, self._end_grace)
        return False

    def _ask(self, first: FirstBytes) -> bool:
        """Ask the table about the bytes so far; return whether the bytes have decided."""
        data = first.data()
        decision = self._router.table.decide(data)
        if isinstance(decision, Waiting):
            return self._wait(decision)
        self._data = data
        self._follow(decision)
        return True

    def _end_pause(self) -> None:
        first = self._first_bytes
        assert first is not None  # noqa: S101 - `_stop_peeking` cancels the timer
        first.pause = None
        self._ask(first)

    def _end_grace(self) -> None:
        """Take the weaker match, unless a stronger protocol has recognised the bytes in the meantime."""
        # If the event loop was delayed, this timer fires before the event for bytes that have arrived.
        self.receive()
        first = self._first_bytes
        if first is None or self._ask(first):
            return
        first.grace = None
        if first.is_matched:
            self._choose_now()

    def _take_header(self) -> bool:
        """Remove a complete PROXY header from the first bytes; return whether the connection continues."""
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
            return True  # the proxy itself is the client, for example in a health check
        self._ip, self._port = header.source
        self._router = self._snapshot.router.for_client(self._ip)
        self._destination = header.destination
        service = self._service
        may_enter = self._router.admits(self._ip)
        origin = service.limiter.origin(self._ip)
        reason = service.assign(origin) if may_enter else DENIED
        if reason is not None:
            if self._is_peeking:
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

    def _choose_now(self) -> None:
        """Choose a route or end the connection: the peek timeout has passed, or the client sends no more."""
        if self._awaits_header and (self._data or not self._client_ended):
            self._end_headerless()
            return
        router = self._router
        if self._first_bytes is not None:
            self._data = self._first_bytes.data()
        if self._data:
            decision = router.table.decide(self._data, final=True)
            assert not isinstance(decision, Waiting)  # noqa: S101 - the question was final
            self._follow(decision)
        elif self._client_ended:
            self._decided(Outcome.LEFT)
            self._finish(Ended.CLIENT_LEFT)
        elif router.silent is not None:
            self._decided(Outcome.SILENT)
            self._go_to(router.silent)
        else:
            self._follow(NO)

    def _follow(self, decision: Decision[Pool]) -> None:
        if isinstance(decision, tuple):
            self._decided(_IDENTIFIED)
            pool, self._match = decision
            self._go_to(pool)
        elif self._router.sole is not None:
            self._decided(Outcome.SILENT)
            self._go_to(self._router.sole)
        elif isinstance(decision, Undecided):
            self._refuse(decision)
        else:
            fallback = self._router.fallback
            self._decided(_NO_ROUTE if fallback is None else _FALLBACK)
            if self._service.report.is_wanted():
                # Ask the table for all clients, so that the log names a protocol with routes for others only.
                found = self._snapshot.router.table.unmet(self._data)
                self._missed = None if found is None else Missed(*found)
            self._go_to(fallback)

    def _refuse(self, undecided: Undecided) -> None:
        """Close a connection whose protocol is known but whose route is not: any choice could be wrong."""
        self._missed = Missed(undecided.protocol.name, undecided.match)
        self._decided(Outcome.TOO_LARGE if undecided.is_too_large else Outcome.UNDECIDED)
        self._service.undecided.warning("refused a connection from %s: %s", self._ip, undecided.reason)
        self._finish(Ended.TOO_LARGE if undecided.is_too_large else Ended.UNDECIDED)

    def _decided(self, outcome: Outcome) -> None:
        self._service.counters.decide(outcome, monotonic() - self.stamp)

    # Backend

    def _stop_peeking(self) -> None:
        if self._is_peeking:
            self._is_peeking = False
            self._snapshot.peeking.discard(self)
        if self._first_bytes is not None:
            self._first_bytes.close()
            self._first_bytes = None

    def _go_to(self, pool: Pool | None) -> None:
        if self._is_peeking or self._first_bytes is not None:
            self._stop_peeking()
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
        # Build the header for each pool anew: the fallback may need another header, or none.
        version = pool.proxy_protocol
        header = self._header = b"" if version is None else self._header_for(version)
        first = header + self._data
        dial = self._dial = Dial(self._service.dialing, self._snapshot, pool, first, self, self._ip)
        # Dial after all accepts of this batch. If the dials come between the accepts, the backend sleeps and
        # wakes up again for every connection, and each connection costs a fifth more.
        self._service.reactor.soon(dial.begin)

    def _header_for(self, version: ProxyVersion) -> bytes:
        """Return the PROXY header that the backend receives first."""
        return build(
            version,
            Transport.TCP,
            (self._ip, self._port),
            self._destination or self._client.getsockname()[:2],
            metadata_of(self._match, self._pool),
        )

    def unreachable(self) -> None:
        """Dial the fallback, because the pool is unreachable. Without another pool, end the connection."""
        fallback = self._router.fallback
        if fallback is not None and fallback is not self._pool and fallback.action is None:
            assert self._pool is not None  # noqa: S101 - the dial was for this pool
            self._missed = Missed(self._pool.protocol, self._match, self._pool)
            self._go_to(fallback)
            return
        assert self._dial is not None  # noqa: S101 - only the dial calls this method
        how = Ended.LOOP if self._dial.loops else Ended.UNREACHABLE
        self._finish(how, is_orderly=how is Ended.LOOP)

    def reached(self, backend: Backend, sock: socket.socket, sent: int) -> None:
        """Weld the client to a connected backend, to which the dial has sent the first `sent` bytes."""
        self._dial = None
        self._backend = backend
        weld = self._weld = Weld(self._service.welding, self._client, sock, self)
        header, data, self._header, self._data = self._header, self._data, b"", b""
        assert self._pool is not None  # noqa: S101 - the dial was for this pool
        if self._pool.hooks is not None:
            self._begin_to_tell(weld, self._pool, backend, data)
        self._snapshot.idle[self._pool.idle_timeout_ms].add(weld)
        weld.begin(header + data, sent, client_ended=self._client_ended, preface=len(header))
        if self._is_settled:
            self.settle()

    def _begin_to_tell(self, weld: Weld, pool: Pool, backend: Backend, data: bytes) -> None:
        """Pass the bytes read so far to the hooks of the pool, and make the weld pass all later bytes."""
        client = self._ip, self._port
        sock = weld.down.sock
        tap = open_tap(pool, Transport.TCP, client, backend, sock, self._match, self.stamp)
        if data:
            tap.packet(Direction.INBOUND, data)
        if self._client_ended:
            tap.end(Direction.INBOUND)
        weld.tell(tap)
        self._tap = tap

    def settle(self) -> None:
        """Report the connection as open, and limit the silence of its half-close.

        The many short connections need neither. In most connections, one side ends soon after the other side,
        so that a limit would only cost time.
        """
        self._is_settled = True
        weld = self._weld
        if weld is None:  # `reached` calls this method again
            return
        weld.tells_half_close = True
        if weld.is_half_closed:
            self.half_closed()
        report = self._service.open_report
        if report is not None and report.is_wanted():
            report.write_open(self._summary(None, *self.moved))

    def half_closed(self) -> None:
        """Limit the silence of the weld, of which one side has ended."""
        if self._half_close is None and self._weld is not None and self._pool is not None:
            timeout = self._snapshot.half_closed[self._pool.half_close_timeout_ms]
            self._half_close = HalfClose(self._weld, self._origin, timeout, self._service.room)

    # End

    def weld_ended(self, how: Ended) -> None:
        """End the connection, because its weld has ended."""
        assert self._weld is not None  # noqa: S101 - this weld has just ended
        assert self._pool is not None  # noqa: S101 - the weld leads to a backend of this pool
        self._snapshot.idle[self._pool.idle_timeout_ms].discard(self._weld)
        if self._half_close is not None:
            self._half_close.discard()
            self._half_close = None
        self._finish(how)

    def _finish(self, how: Ended, *, is_orderly: bool = True) -> None:
        service = self._service
        if self not in service.connections:
            return
        up, down = self.moved
        if self._weld is None:
            self._stop_peeking()
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
            service.report.write(self._summary(how, up, down))

    def _summary(self, how: Ended | None, up: int, down: int) -> Summary:
        pool, backend = self._pool, self._backend
        return Summary(
            transport=Transport.TCP,
            client=join_host_port(self._ip, self._port),
            route=pool.label if pool is not None else None,
            match=self._match,
            backend=str(backend.address) if backend is not None else None,
            up=up,
            down=down,
            seconds=monotonic() - self.stamp,
            ended=how,
            pool=pool,
            missed=self._missed,
        )
