"""UDP: sessions, each a client's address joined to a backend by a connected socket of its own.

The first datagram decides where a session goes, and all that follow take the same way. Whatever goes wrong
with one session (an ICMP error, a full queue) is that session's, and it is used again for the next datagram.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING, Final

from refractium.addresses.local import OwnAddresses
from refractium.addresses.networks import plain_ip
from refractium.contract import Verdict
from refractium.proxy.counters import DENIED, REJECTED, Outcome, UdpCounters, why_refused
from refractium.proxy.outcome import Ended
from refractium.proxy.udp_session import Session, TappedSession
from refractium.sockets.deadlines import Deadlines
from refractium.sockets.pktinfo import CONTROL_BYTES, IP_PKTINFO, Control, as_source
from refractium.sockets.watching import Watching
from refractium.throttle import Throttled

if TYPE_CHECKING:
    from collections.abc import Mapping

    from refractium.addresses.address import Peer
    from refractium.proxy.limits import Limits
    from refractium.proxy.outcome import Reporter
    from refractium.routing import Pool, Router
    from refractium.settings import Settings
    from refractium.sockets.descriptors import Descriptors
    from refractium.sockets.reactor import Reactor

log = logging.getLogger(__name__)

_DATAGRAM: Final = 65_536
"""More than any datagram holds (65,507 bytes over IPv4, 65,527 over IPv6)."""
_DATAGRAMS_A_TURN: Final = 64
"""After as many from one socket the others have their turn."""
_QUIET: Final = 1.0
"""Seconds without a datagram after which a session counts as finished when the proxy drains."""
_SHARE_OF_DESCRIPTORS: Final = 3
"""Sessions have one in so many of the descriptors that the process may have."""


class UdpService:
    """Everything UDP of one engine.

    Args:
        reactor: where events come from.
        routers: what each listener does with its clients, by the listener's name.
        settings: timeouts.
        limits: how many sessions there may be.
        report: told of every session that ended.
        descriptors: of which each session takes one.
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
        self.routers = routers
        self.settings = settings
        self.limits = limits
        self.report = report
        self.descriptors = descriptors
        self.counters = UdpCounters()
        self.sessions: dict[tuple[object, ...], Session] = {}
        self.own = OwnAddresses()
        self.listeners: list[UdpListener] = []
        self.is_draining = False
        self.drained = asyncio.Event()
        self.drained.set()
        # One buffer for all: a datagram is handed on before the next one is read.
        self.buffer = bytearray(_DATAGRAM)
        self.view = memoryview(self.buffer)
        self.refusals = Throttled(log)
        self.failures = Throttled(log)
        self._silence: dict[int, Deadlines] = {}
        # In the order in which they began: the oldest makes room where a limit is reached.
        self._unanswered: dict[Session, None] = {}
        self._unanswered_of: dict[str, dict[Session, None]] = {}

    def listen(self, sock: socket.socket, name: str) -> UdpListener:
        """Take datagrams from a bound socket, which is the service's from now on."""
        listener = UdpListener(self, sock, name, self.routers[name])
        self.own.add(sock)
        self.listeners.append(listener)
        return listener

    def silence(self, pool: Pool, *, answered: bool) -> Deadlines:
        """Return the deadlines of the sessions of a pool that were answered, or were not yet."""
        timeout_ms = pool.session_timeout_ms or self.settings.udp_session_timeout_ms
        if not answered:
            timeout_ms = min(timeout_ms, self.settings.udp_unanswered_timeout_ms)
        if timeout_ms not in self._silence:
            self._silence[timeout_ms] = Deadlines(self.reactor.loop, timeout_ms)
        return self._silence[timeout_ms]

    def apply(self, routers: Mapping[str, Router], settings: Settings) -> None:
        """Serve sessions to come by other routes and timeouts; those that are there keep theirs.

        So do listeners that are not named any more, until they are closed.
        """
        self.routers = routers
        self.settings = settings
        for listener in self.listeners:
            listener.router = routers.get(listener.name, listener.router)

    def stop_listening(self, listener: UdpListener) -> None:
        """Take no datagram from one listener any more, which ends its sessions."""
        self.listeners.remove(listener)
        self.own.discard(listener.address)
        for session in [one for one in self.sessions.values() if one.listener is listener]:
            session.end(Ended.CLOSED)
        listener.watching.stop()
        self.reactor.retire(listener.sock)

    def drain(self) -> None:
        """Begin no session any more; end those that have gone quiet, now and from now on."""
        self.is_draining = True
        quiet_since = self.reactor.loop.time() - _QUIET
        for session in [one for one in self.sessions.values() if one.stamp <= quiet_since]:
            session.end(Ended.CLOSED)
        if self.sessions:
            self.reactor.loop.call_later(_QUIET / 10, self.drain)

    def cut(self, how: Ended) -> int:
        """End every session that is left; how many there were."""
        left = list(self.sessions.values())
        for session in left:
            session.end(how)
        return len(left)

    def close(self) -> None:
        """Close the listeners and forget all timers. The sessions have ended before."""
        for listener in self.listeners:
            listener.watching.stop()
            self.reactor.retire(listener.sock)
        self.listeners.clear()
        for deadlines in self._silence.values():
            deadlines.close()

    def begin(
        self, listener: UdpListener, client: Peer, control: Control, key: tuple[object, ...], first: bytes
    ) -> Session | None:
        """Begin a session with its first datagram, or count why not."""
        if self.is_draining:
            self.counters.unrouted += 1
            return None
        if (listener.sock.family, client) in self.own:  # forged: each answer would be the next question
            self.counters.unrouted += 1
            return None
        ip, router = plain_ip(client[0]), listener.router
        if not router.admits(ip):
            self._refuse(ip, DENIED)
            return None
        decision = router.table.decide(first, final=True)
        if isinstance(decision, Verdict):
            pool, match = router.fallback, None
            self.counters.outcomes[Outcome.NO_ROUTE if pool is None else Outcome.FALLBACK] += 1
        else:
            pool, match = decision
            self.counters.outcomes[Outcome.IDENTIFIED] += 1
        if pool is None:
            self.counters.unrouted += 1
            return None
        if (reason := self._why_not(pool, ip)) is not None:
            self._refuse(ip, reason)
            return None
        kind = Session if pool.taps is None else TappedSession
        session = kind(listener, client, control, key, pool, match)
        self.sessions[key] = session
        self._unanswered[session] = None
        self._unanswered_of.setdefault(session.origin, {})[session] = None
        self.counters.sessions += 1
        self.drained.clear()
        return session

    def _why_not(self, pool: Pool, ip: str) -> str | None:
        """Return why a client may not begin a session with this pool, or count it in."""
        if not pool.admits(ip):
            return DENIED
        if pool.action is not None:
            return REJECTED
        limits = self.limits
        origin = limits.origin(ip)
        reason = limits.names.total if self._holds_too_many_descriptors() else limits.enter(origin)
        if reason is None:
            return None
        # A session that was never answered may be of a forged client, and is worth less than a new one.
        those = self._unanswered_of.get(origin, {}) if reason == limits.names.per_ip else self._unanswered
        oldest = next(iter(those), None)
        if oldest is None:
            return reason
        oldest.end(Ended.UNANSWERED)
        return limits.enter(origin)

    def _holds_too_many_descriptors(self) -> bool:
        """Return whether sessions have their share of the descriptors of this process: TCP needs the rest."""
        return len(self.sessions) >= self.descriptors.limit // _SHARE_OF_DESCRIPTORS

    def answered(self, session: Session) -> None:
        """Let a session live as long as others do, once a backend has answered it."""
        self._unanswered.pop(session, None)
        if (those := self._unanswered_of.get(session.origin)) is not None:
            those.pop(session, None)
            if not those:
                del self._unanswered_of[session.origin]

    def _refuse(self, ip: str, reason: str) -> None:
        self.counters.refuse(reason)
        self.refusals.warning("refused a session from %s: %s", ip, why_refused(reason))

    def ended(self, session: Session, how: Ended) -> None:
        """Count a session that has let its socket go."""
        del self.sessions[session.key]
        self.answered(session)
        self.limits.leave(session.origin)
        self.counters.finish(session.route, how, session.up, session.down)
        if not self.sessions:
            self.drained.set()
        if self.report.is_wanted():
            self.report.write(session.summary(how))


class UdpListener:
    """Takes the clients' datagrams from one bound socket.

    Args:
        service: what it belongs to.
        sock: the socket.
        name: by whose rules it serves.
        router: what it serves by now.
    """

    def __init__(self, service: UdpService, sock: socket.socket, name: str, router: Router) -> None:
        self._service = service
        self.sock = sock
        self.name = name
        self.router = router
        self.address: Peer = sock.getsockname()
        self._tells_destination = self.address[0] in {"0.0.0.0", "::"}  # noqa: S104 - compared, not bound
        if self._tells_destination:
            if sock.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        self.watching = Watching(service.reactor, sock, self._on_event)

    @property
    def paused(self) -> str:
        """Why it takes no datagram at this moment; empty while it does."""
        return self.watching.why_paused

    def __repr__(self) -> str:
        return f"<UdpListener {self.address}>"

    def crash(self) -> None:
        """Go on after a pause: a listener outlives any fault in handling a datagram."""
        self.watching.rest()

    def _on_event(self, _mask: int) -> None:
        service = self._service
        buffer, view = service.buffer, service.view
        sessions = service.sessions
        control: Control = ()
        for _ in range(_DATAGRAMS_A_TURN):
            try:
                if self._tells_destination:
                    size, ancillary, _, client = self.sock.recvmsg_into([buffer], CONTROL_BYTES)
                    control = tuple((level, kind, as_source(kind, data)) for level, kind, data in ancillary)
                else:
                    size, client = self.sock.recvfrom_into(buffer)
            except BlockingIOError:
                return
            except OSError as error:
                log.debug("%r: %s", self, error)
                return
            key = (self.sock, client, control)
            session = sessions.get(key)
            if session is None:
                session = service.begin(self, client, control, key, bytes(view[:size]))
            if session is not None:
                session.send_up(view[:size])

    def answer(self, datagram: memoryview, client: Peer, control: Control) -> None:
        """Send a datagram to a client.

        Raises:
            OSError: the kernel does not take it.
        """
        if control:
            self.sock.sendmsg([datagram], control, 0, client)
        else:
            self.sock.sendto(datagram, client)
