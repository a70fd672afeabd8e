"""The UDP service of one engine: sessions, each with one client and one socket connected to a backend.

The first datagram of a session decides the route of the session, and all later datagrams take the same route.
An error (an ICMP error, a full queue) affects only one session, which continues with the next datagram.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

from refractium.addresses.address import join_host_port
from refractium.addresses.local import OwnAddresses
from refractium.addresses.networks import plain_ip
from refractium.contract import Transport
from refractium.identify import Undecided
from refractium.proxy.aging import Aging
from refractium.proxy.counters import DENIED, REJECTED, Outcome, UdpCounters, why_refused
from refractium.proxy.past_sessions import PastSession, PastSessions
from refractium.proxy.summary import Ended, Missed, Summary, open_reporter
from refractium.proxy.udp_listener import UdpListener
from refractium.proxy.udp_session import (
    FallbackUdpSession,
    TappedFallbackUdpSession,
    TappedUdpSession,
    UdpSession,
)
from refractium.sockets.deadlines import Deadlines
from refractium.sockets.descriptors import SHARE_OF_SESSIONS
from refractium.throttle import Throttled

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    from refractium.addresses.address import Peer
    from refractium.contract import ProtocolMatch
    from refractium.proxy.limiter import Limiter
    from refractium.proxy.summary import Reporter
    from refractium.routing import Pool, Router
    from refractium.settings import Settings
    from refractium.sockets.descriptors import Descriptors
    from refractium.sockets.pktinfo import Control
    from refractium.sockets.reactor import Reactor

log = logging.getLogger(__name__)

_DATAGRAM: Final = 65_536
"""Bytes of the buffer, more than any datagram holds (65,507 bytes over IPv4, 65,527 over IPv6)."""
_QUIET: Final = 1.0
"""Seconds without a datagram after which a session counts as finished when the proxy drains."""
_LINGER: Final = 0.1
"""Minimum seconds for which a session without awaited answers remains for further datagrams of its client.

A new session takes eight times as long as a datagram, and many clients ask again from the same port."""


class _Choice(NamedTuple):
    """The route of a new session, with the reason for this route.

    Attributes:
        outcome: the result of the identification.
        pool: the pool of the session; None if no route takes the first datagram.
        match: the match of the first datagram; None if no protocol matched.
        past: the past session that the new session continues; None without a past session.
    """

    outcome: Outcome
    pool: Pool | None = None
    match: ProtocolMatch | None = None
    past: PastSession | None = None


def _instead(pool: Pool, fallback: Pool | None, ip: str) -> Pool | None:
    """Return the fallback for a client of a pool that offers no backend; None if the client stays there."""
    if pool.action is not None or not pool.admits(ip) or fallback is pool:
        return None
    return fallback if fallback is not None and fallback.action is None else None


class UdpService:
    """The UDP listeners and sessions of one engine, and their shared objects.

    Args:
        reactor: the source of events.
        routers: the router of each listener, by the listener's name.
        settings: the timeouts.
        limiter: the limiter of sessions.
        report: the receiver of the summaries of finished sessions.
        descriptors: the lender of one descriptor for each session.

    Attributes:
        shared: the listeners' sockets that other processes may use as well.
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
        self.routers = routers
        self.settings = settings
        self.limiter = limiter
        self.report = report
        self.open_report = open_reporter(report)
        self.descriptors = descriptors
        self.counters = UdpCounters()
        self.sessions: dict[tuple[object, ...], UdpSession] = {}
        self.aging = Aging(reactor.loop, lambda: reversed(self.sessions.values()))
        self.own = OwnAddresses()
        self.listeners: list[UdpListener] = []
        self.shared: set[socket.socket] = set()
        self.is_draining = False
        self.drained = asyncio.Event()
        self.drained.set()
        # All sockets share one buffer: the service sends each datagram before it reads the next datagram.
        self.buffer = bytearray(_DATAGRAM)
        self.view = memoryview(self.buffer)
        self.refusals = Throttled(log)
        self.undecided = Throttled(log)
        self.failures = Throttled(log)
        self._silence: dict[int, Deadlines] = {}
        # Unanswered sessions, oldest first: the oldest session makes room when a limit is reached.
        self._unanswered: dict[UdpSession, None] = {}
        self._unanswered_of: dict[str, dict[UdpSession, None]] = {}
        # All finished sessions, and the sessions that have resumed since the last sweep, with the time (s) at
        # which each session last finished. The session that has been here for the longest time comes first.
        self._finished: OrderedDict[UdpSession, float] = OrderedDict()
        self._sweeper: asyncio.TimerHandle | None = None
        self.past = PastSessions(settings.max_udp_sessions)

    def listen(self, sock: socket.socket, name: str) -> UdpListener:
        """Receive datagrams on a bound socket, which the service owns from now on."""
        listener = UdpListener(self, sock, name, self.routers[name])
        self.own.add(sock)
        self.listeners.append(listener)
        return listener

    def silence(self, pool: Pool, *, answered: bool) -> Deadlines:
        """Return the deadlines for the answered or for the unanswered sessions of a pool."""
        timeout_ms = pool.udp_session_timeout_ms or self.settings.udp_session_timeout_ms
        if not answered:
            timeout_ms = min(timeout_ms, self.settings.udp_unanswered_timeout_ms)
        if timeout_ms not in self._silence:
            self._silence[timeout_ms] = Deadlines(self.reactor.loop, timeout_ms)
        return self._silence[timeout_ms]

    def apply(self, routers: Mapping[str, Router], settings: Settings) -> None:
        """Set the routes of new sessions, and the timeouts for sessions from now on.

        A session chooses its timeout at its start, and again at its first answer. A listener that is missing
        from `routers` keeps its routes until the listener is closed.
        """
        self.routers = routers
        self.settings = settings
        self.past.most = settings.max_udp_sessions
        for listener in self.listeners:
            listener.router = routers.get(listener.name, listener.router)

    def stop_listening(self, listener: UdpListener) -> None:
        """Close one listener and end its sessions."""
        self.listeners.remove(listener)
        self.own.discard(listener.address)
        for session in [one for one in self.sessions.values() if one.listener is listener]:
            session.end(Ended.CLOSED)
        self.past.forget(listener.sock)
        listener.watching.stop()
        self.reactor.retire(listener.sock)

    def drain(self) -> None:
        """Refuse new sessions, and end each session after `_QUIET` seconds without a datagram.

        All further datagrams on the sockets in `shared` are for the other processes.
        """
        if not self.is_draining:
            self.is_draining = True
            for listener in self.listeners:
                if listener.sock in self.shared:
                    listener.watching.stop()
        quiet_since = self.reactor.loop.time() - _QUIET
        for session in [one for one in self.sessions.values() if one.stamp <= quiet_since]:
            session.end(Ended.CLOSED)
        if self.sessions:
            self.reactor.loop.call_later(_QUIET / 10, self.drain)

    def cut(self, how: Ended) -> int:
        """End all remaining sessions, and return the number of sessions that were not finished."""
        unfinished = sum(not session.is_finished for session in self.sessions.values())
        for session in list(self.sessions.values()):
            session.end(how)
        return unfinished

    def close(self) -> None:
        """Close the listeners and cancel all timers, after all sessions have ended."""
        for listener in self.listeners:
            listener.watching.stop()
            self.reactor.retire(listener.sock)
        self.listeners.clear()
        self.aging.close()
        for deadlines in self._silence.values():
            deadlines.close()
        if self._sweeper is not None:
            self._sweeper.cancel()

    def begin(  # noqa: C901, PLR0911 - a return for each rule
        self, listener: UdpListener, client: Peer, control: Control, key: tuple[object, ...], first: bytes
    ) -> UdpSession | None:
        """Begin a session for a first datagram, or count the datagram as refused or unrouted."""
        if self.is_draining:
            self.counters.unrouted += 1
            return None
        if (listener.sock.family, client) in self.own:  # a forged source: each answer would be a new query
            self.counters.unrouted += 1
            return None
        ip, router = plain_ip(client[0]), listener.router
        if not router.admits(ip):
            self._refuse(ip, DENIED)
            return None
        choice = self._choose(router.for_client(ip), key, first)
        if isinstance(choice, Undecided):
            self._refuse_undecided(client, choice)
            return None
        outcome, pool, match, past = choice
        self.counters.outcomes[outcome] += 1
        if pool is None:
            self.counters.unrouted += 1
            if (missed := self._missed(router, first)) is not None:
                self._report_unrouted(client, missed, Ended.NO_ROUTE)
            return None
        missed = self._missed(router, first) if outcome is Outcome.FALLBACK else None
        if pool.offers_none and (instead := _instead(pool, router.fallback, ip)) is not None:
            missed = Missed(pool.protocol, match, pool)
            pool = instead
        if (reason := self._why_not(pool, ip)) is not None:
            self._refuse(ip, reason)
            return None
        kind = UdpSession if pool.hooks is None else TappedUdpSession
        if outcome is Outcome.FALLBACK:
            kind = FallbackUdpSession if pool.hooks is None else TappedFallbackUdpSession
        session = kind(listener, client, control, key, pool, match, missed, past)
        self.sessions[key] = session
        if past is None:
            self._unanswered[session] = None
            self._unanswered_of.setdefault(session.origin, {})[session] = None
        if self.past:
            self.past.discard(key)
        self.counters.sessions += 1
        self.drained.clear()
        if self.open_report is not None and not self.aging.is_waiting:
            self.aging.begin()
        return session

    def has_route(self, session: UdpSession, datagram: bytes) -> bool:
        """Return whether a datagram of the client of a session matches a route other than the fallback."""
        router = session.listener.router.for_client(session.ip)
        return not self.is_draining and isinstance(router.table.decide(datagram, final=True), tuple)

    def remember(self, key: tuple[object, ...], past: PastSession) -> None:
        """Remember the route and the addresses of an answered session that ends by silence."""
        self.past.add(key, past, self.reactor.now)

    def _choose(self, router: Router, key: tuple[object, ...], first: bytes) -> _Choice | Undecided:
        """Choose a route for a session: by the first datagram, else by a past session, else the fallback."""
        decision = router.table.decide(first, final=True)
        if isinstance(decision, Undecided):
            return decision
        if isinstance(decision, tuple):
            return _Choice(Outcome.IDENTIFIED, *decision)
        past, pool = self._recall(key, router) or (None, router.fallback)
        if pool is None:
            return _Choice(Outcome.NO_ROUTE)
        return _Choice(Outcome.FALLBACK if pool is router.fallback else Outcome.RESUMED, pool, None, past)

    def _recall(self, key: tuple[object, ...], router: Router) -> tuple[PastSession, Pool] | None:
        """Return the past session of a key and the pool that continues it; None if there is no such pool.

        A reload may have removed the route. If several routes have the label of the past session, the route
        that has the past backend continues the session.
        """
        past = self.past.get(key, self.reactor.turned) if self.past else None
        if past is None:
            return None
        pools = [pool for pool in router.pools if pool.label == past.route]
        pools.sort(key=lambda pool: not any(past.target in one.socket_addresses for one in pool.backends))
        return (past, pools[0]) if pools else None

    def _refuse_undecided(self, client: Peer, undecided: Undecided) -> None:
        self.counters.outcomes[Outcome.TOO_LARGE if undecided.is_too_large else Outcome.UNDECIDED] += 1
        self.counters.unrouted += 1
        self.undecided.warning("refused a session from %s: %s", plain_ip(client[0]), undecided.reason)
        if self.report.is_wanted():
            ended = Ended.TOO_LARGE if undecided.is_too_large else Ended.UNDECIDED
            self._report_unrouted(client, Missed(undecided.protocol.name, undecided.match), ended)

    def _missed(self, router: Router, first: bytes) -> Missed | None:
        """Return the protocol of a first datagram without a route, if the access log is written."""
        found = router.table.unmet(first) if self.report.is_wanted() else None
        return None if found is None else Missed(*found)

    def _report_unrouted(self, client: Peer, missed: Missed, ended: Ended) -> None:
        """Record in the access log that an identified datagram has no route: no session reports it."""
        summary = Summary(
            transport=Transport.UDP,
            client=join_host_port(plain_ip(client[0]), client[1]),
            route=None,
            match=None,
            backend=None,
            up=0,
            down=0,
            seconds=0.0,
            ended=ended,
            missed=missed,
        )
        self.report.write(summary)

    def _why_not(self, pool: Pool, ip: str) -> str | None:
        """Return the reason to refuse a client's session with a pool; if there is none, count the session."""
        if not pool.admits(ip):
            return DENIED
        if pool.action is not None:
            return REJECTED
        has_descriptors = (
            not self._holds_too_many_descriptors() or self._end_finished() or _end_oldest(self._unanswered)
        )
        return self._enter(self.limiter.origin(ip)) if has_descriptors else self.limiter.names.total

    def _enter(self, origin: str) -> str | None:
        """Count a session of an origin, or return the name of the setting whose limit is reached.

        Unanswered sessions may come from forged addresses, so the oldest of these sessions makes room.
        """
        limiter = self.limiter
        reason = limiter.enter(origin)
        if reason is None:
            return None
        those = self._unanswered_of.get(origin, {}) if reason == limiter.names.per_ip else self._unanswered
        return limiter.enter(origin) if _end_oldest(those) else reason

    def _end_finished(self) -> bool:
        """End the oldest finished session; return whether there was one."""
        while self._finished:
            oldest, _ = self._finished.popitem(last=False)
            if oldest.is_finished:
                oldest.end(Ended.ANSWERED)
                return True
        return False

    def has_descriptor(self) -> bool:
        """Return whether a session may open a socket. If necessary, end a finished session first."""
        return bool(self.descriptors.left(1) or (self._end_finished() and self.descriptors.left(1)))

    def _holds_too_many_descriptors(self) -> bool:
        """Return whether sessions hold their full share of this process's descriptors: TCP needs the rest."""
        return len(self.sessions) >= self.descriptors.limit // SHARE_OF_SESSIONS

    def answered(self, session: UdpSession) -> None:
        """Remove a session from the unanswered sessions, which make room for new sessions."""
        self._unanswered.pop(session, None)
        if (those := self._unanswered_of.get(session.origin)) is not None:
            those.pop(session, None)
            if not those:
                del self._unanswered_of[session.origin]

    def finish(self, session: UdpSession) -> None:
        """Stop counting a session against the limits, and end it unless its client soon asks again."""
        session.is_finished = True
        self.limiter.leave(session.origin)
        self._finished[session] = self.reactor.turned
        if self._sweeper is None:
            self._sweeper = self.reactor.loop.call_later(_LINGER, self._sweep)

    def resume(self, session: UdpSession) -> bool:
        """Count a finished session again, although a limit is reached; if that fails, end the session.

        Returns:
            Whether the session continues. It stays in `_finished` until the next sweep, because most sessions
            soon finish again.
        """
        reason = self._enter(session.origin)
        if reason is not None:
            self._refuse(session.ip, reason)
            session.end(Ended.ANSWERED)
            return False
        session.is_finished = False
        return True

    def _sweep(self) -> None:
        """End the sessions that have been finished for `_LINGER` seconds."""
        before = self.reactor.now - _LINGER
        for session, since in list(self._finished.items()):
            if not session.is_finished:
                del self._finished[session]
            elif since <= before:
                session.end(Ended.ANSWERED)
        self._sweeper = self.reactor.loop.call_later(_LINGER, self._sweep) if self._finished else None

    def _refuse(self, ip: str, reason: str) -> None:
        self.counters.refuse(reason)
        self.refusals.warning("refused a session from %s: %s", ip, why_refused(reason))

    def ended(self, session: UdpSession, how: Ended) -> None:
        """Remove a session that has closed its socket, and count the session as finished."""
        del self.sessions[session.key]
        self._finished.pop(session, None)
        if not session.is_finished:
            self.answered(session)
            self.limiter.leave(session.origin)
        self.counters.finish(session.route, how, session.up, session.down)
        if not self.sessions:
            self.drained.set()
        if self.report.is_wanted():
            self.report.write(session.summary(how))


def _end_oldest(those: Mapping[UdpSession, object]) -> bool:
    """End the first of these sessions, which are unanswered; return whether there was one."""
    oldest = next(iter(those), None)
    if oldest is None:
        return False
    oldest.end(Ended.UNANSWERED)
    return True
