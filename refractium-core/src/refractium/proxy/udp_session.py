"""A UDP session: the datagrams of one client, and the answers of a backend."""

from __future__ import annotations

import errno
import math
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from refractium.addresses.address import join_host_port
from refractium.addresses.networks import plain_ip
from refractium.contract import Direction, Transport
from refractium.proxy.past_sessions import PastSession
from refractium.proxy.summary import Ended, Missed, Summary, metadata_of
from refractium.proxy.tapping import address_of, open_tap
from refractium.sockets.descriptors import LOCAL_ERRORS
from refractium.sockets.pktinfo import Control, asked
from refractium.sockets.reactor import IN
from refractium.wire.proxy_protocol import build

if TYPE_CHECKING:
    from collections.abc import Iterable

    from refractium.addresses.address import Peer
    from refractium.backends.backend import Backend
    from refractium.contract import ProtocolMatch, SocketAddress
    from refractium.hooks import Tap
    from refractium.proxy.udp_listener import UdpListener
    from refractium.routing import Pool


class UdpSession:
    """A UDP session, which passes datagrams on between one client and one backend.

    After an error, the session continues with the next backend of the pool.

    A session of a pool with `Pool.udp_responses` is finished once the backend has sent this many answers for
    each datagram of the client. Answers are not assigned to datagrams, because the proxy does not know the
    protocol. So an additional answer to one datagram counts as an answer to another.

    A session that continues a past session goes to the same backend, if the pool offers this backend. The
    backend sees the same address and port of this machine, if the port is free.

    Attributes:
        started: monotonic time (s) of the first datagram.
        stamp: monotonic time (s) of the last datagram in either direction.
        listener: the listener that receives the client's datagrams and sends the answers.
        origin: the name under which `Limiter` counts the client.
        is_finished: whether the client has all answers. The session then counts against no limit, and ends
            soon unless the client sends another datagram.
        up: number of bytes sent from client to backend.
        down: number of bytes sent from backend to client.
    """

    __slots__ = (
        "_answer",
        "_answers_each",
        "_awaited",
        "_backend",
        "_client",
        "_control",
        "_header",
        "_is_answered",
        "_is_header_due",
        "_is_settled",
        "_match",
        "_missed",
        "_past",
        "_pool",
        "_service",
        "_silence",
        "_sock",
        "_target",
        "down",
        "ip",
        "is_finished",
        "key",
        "listener",
        "origin",
        "stamp",
        "started",
        "up",
    )

    def __init__(
        self,
        listener: UdpListener,
        client: Peer,
        control: Control,
        key: tuple[object, ...],
        pool: Pool,
        match: ProtocolMatch | None,
        missed: Missed | None = None,
        past: PastSession | None = None,
    ) -> None:
        self._service = listener._service  # noqa: SLF001 - listener and session belong together
        self.listener = listener
        self._answer = listener.answerer(control)
        self._client = client
        self._control = control
        self.key = key
        self.ip = plain_ip(client[0])
        self.origin = self._service.limiter.origin(self.ip)
        self._pool = pool
        self._match = match
        self._missed = missed
        self.started = self.stamp = self._service.reactor.now
        # A past session had answers, so the address of its client is not forged.
        self._past = past
        self._is_settled = False
        self._is_answered = past is not None
        self.is_finished = False
        self._answers_each = math.inf if pool.udp_responses is None else pool.udp_responses
        self._awaited: float = 0
        self._silence = self._service.silence(pool, answered=self._is_answered)
        self._silence.add(self)
        self._backend: Backend | None = None
        self._sock: socket.socket | None = None
        self._target: SocketAddress | None = None
        self._header = self._build_header()
        self._is_header_due = False
        self.up = 0
        self.down = 0

    def __repr__(self) -> str:
        return f"<UdpSession of {join_host_port(self.ip, self._client[1])}>"

    @property
    def route(self) -> str:
        """The label of the session's pool."""
        return self._pool.label

    @property
    def moved(self) -> tuple[int, int]:
        """The numbers of bytes sent to the backend and to the client."""
        return self.up, self.down

    def send_up(self, datagram: memoryview) -> bool:  # noqa: C901 - each query would pay for a further call
        """Send a datagram; after an error, send it to the next backend. Return whether it was sent."""
        service = self._service
        if self.is_finished:
            if service.limiter.enter(self.origin) is None:
                self.is_finished = False
            elif not service.resume(self):
                return False
        self.stamp = service.reactor.turned
        for _ in self._pool.attempts:
            sock = self._sock or self._connect()
            if sock is None:
                break
            try:
                if self._is_header_due:
                    sock.sendmsg([self._header, datagram])
                    self._is_header_due = False
                    self.up += len(datagram)
                else:
                    self.up += sock.send(datagram)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.EMSGSIZE:
                    break
                # The error is about an earlier datagram; the present datagram was not sent.
                self._disconnect(error)
            else:
                awaited = self._awaited = self._awaited + self._answers_each
                if not awaited:
                    service.answered(self)
                    service.finish(self)
                return True
        service.counters.dropped += 1
        return False

    def settle(self) -> None:
        """Report the session as open, if a backend has answered and may send further answers."""
        self._is_settled = True
        report = self._service.open_report
        if self._is_answered and not self.is_finished and report is not None and report.is_wanted():
            report.write_open(self.summary(None))

    def expired(self) -> None:
        """End the session: no datagram has passed in either direction during the timeout."""
        if self._is_answered and not self.is_finished:
            source = self._sock.getsockname() if self._sock is not None else None
            self._service.remember(self.key, PastSession(self._pool.label, self._target, source))
        self.end(Ended.IDLE if self._is_answered else Ended.UNANSWERED)

    def crash(self) -> None:
        """End the session at once after an internal error."""
        self.end(Ended.FAULT)

    def end(self, how: Ended) -> None:
        """Close the backend's socket and the session; the client's next datagram begins a new session."""
        if self.is_finished and how is not Ended.FAULT:
            how = Ended.ANSWERED
        self._silence.discard(self)
        self._let_go()
        self._service.ended(self, how)

    def summary(self, how: Ended | None) -> Summary:
        """Return the summary of the session for the access log; `how` is None while the session is open."""
        end = self.stamp if how is Ended.ANSWERED else self._service.reactor.loop.time()
        return Summary(
            transport=Transport.UDP,
            client=join_host_port(self.ip, self._client[1]),
            route=self._pool.label,
            match=self._match,
            backend=str(self._backend.address) if self._backend is not None else None,
            up=self.up,
            down=self.down,
            seconds=max(0.0, end - self.started),
            ended=how,
            pool=self._pool,
            missed=self._missed,
        )

    def _build_header(self) -> bytes:
        """Return the PROXY header, which precedes the payload in the first datagram to a backend."""
        version = self._pool.proxy_protocol
        if version is None:
            return b""
        destination = (asked(self._control) or self.listener.address[0], self.listener.address[1])
        source = self.ip, self._client[1]
        return build(version, Transport.UDP, source, destination, metadata_of(self._match, self._pool))

    def _connect(self) -> socket.socket | None:
        """Connect a socket to the pool's next target; return the socket, or None if there is none."""
        service = self._service
        if not service.has_descriptor():
            service.failures.warning("no socket for a session: %s", os.strerror(errno.EMFILE))
            return None
        past, self._past = self._past, None
        targets: Iterable[tuple[Backend, SocketAddress]] = self._pool.targets(self.ip)
        if past is not None:
            targets = sorted(targets, key=lambda one: one[1] != past.target)
        for backend, target in targets:
            if target in service.own:
                service.counters.unrouted += 1
                continue
            family, address = target
            try:
                sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            except OSError as error:
                service.failures.warning("no socket for a session: %s", error.strerror)
                return None
            try:
                if past is not None and past.source is not None and past.target == target:
                    with suppress(OSError):  # another socket may have the port now
                        sock.bind(past.source)
                sock.connect(address)
            except OSError as error:
                sock.close()
                service.failures.warning("backend %s cannot be reached: %s", backend.address, error.strerror)
                _blame(backend, "it cannot be reached", error)
                continue
            self._backend = backend
            backend.state.active += 1
            service.descriptors.lent += 1
            self._sock = sock
            self._target = target
            self._is_header_due = bool(self._header)
            service.reactor.watch(sock, IN, self._on_event)
            return sock
        return None

    def _disconnect(self, error: OSError) -> None:
        """Give up this backend after an error; the next send goes to the pool's next backend."""
        self._awaited = 0  # the answers would come to the socket that is closed here
        assert self._sock is not None  # noqa: S101 - this socket has just failed
        assert self._backend is not None  # noqa: S101
        self._service.failures.warning("backend %s refuses: %s", self._backend.address, error.strerror)
        self._let_go()
        _blame(self._backend, "it refuses", error)

    def _let_go(self) -> None:
        """Close the socket to the backend, if the session has such a socket."""
        if self._sock is not None and self._backend is not None:
            self._backend.state.active -= 1
            self._service.reactor.retire(self._sock)
            self._service.descriptors.lent -= 1
            self._sock = self._target = None

    def _on_event(self, _mask: int) -> None:
        sock, backend = self._sock, self._backend
        assert sock is not None  # noqa: S101 - the reactor watches this socket
        assert backend is not None  # noqa: S101
        service = self._service
        self.stamp = service.reactor.turned
        # Read one answer only: mostly no second answer waits, and a second read takes a tenth of the time of
        # a query. The epoll reports further answers.
        try:
            size = sock.recv_into(service.buffer)
        except BlockingIOError:
            return
        except OSError as error:
            self._disconnect(error)
            return
        if not self._is_answered:
            self._first_answer()
        if backend.state.awaits_client:
            backend.state.client_reached()
        # Finish before the client has the answer: its next datagram may reach another worker at once.
        awaited = self._awaited - 1
        if awaited > 0:
            self._awaited = awaited
        elif not self.is_finished:
            self._awaited = 0
            service.finish(self)
        try:
            self._answer(service.view[:size], self._client)
        except OSError:
            service.counters.dropped += 1
        else:
            self.down += size

    def _first_answer(self) -> None:
        self._is_answered = True
        self._service.answered(self)
        silence = self._service.silence(self._pool, answered=True)
        if silence is not self._silence:
            self._silence.discard(self)
            self._silence = silence
            silence.add(self)
        if self._is_settled and self._awaited > 1:
            self.settle()


class TappedUdpSession(UdpSession):
    """A session whose hooks receive every datagram that was passed on.

    When the session changes its backend, the hooks see one session end and another session begin: for
    hooks, a session has one client and one backend.
    """

    __slots__ = ("_began", "_peer", "_send_answer", "_tap")

    def __init__(
        self,
        listener: UdpListener,
        client: Peer,
        control: Control,
        key: tuple[object, ...],
        pool: Pool,
        match: ProtocolMatch | None,
        missed: Missed | None = None,
        past: PastSession | None = None,
    ) -> None:
        super().__init__(listener, client, control, key, pool, match, missed, past)
        self._tap: Tap | None = None
        self._peer: tuple[str, int] | str | None = None
        self._began = self.started
        self._send_answer, self._answer = self._answer, self._answer_and_tell

    def send_up(self, datagram: memoryview) -> bool:
        if not super().send_up(datagram):
            return False
        if self._tap is None:
            assert self._sock is not None  # noqa: S101 - the datagram was sent
            assert self._backend is not None  # noqa: S101
            client = self.ip, self._client[1]
            self._tap = open_tap(
                self._pool, Transport.UDP, client, self._backend, self._sock, self._match, self._began
            )
        self._tap.packet(Direction.INBOUND, bytes(datagram))
        return True

    def _connect(self) -> socket.socket | None:
        sock = super()._connect()
        if sock is None:
            return None
        assert self._backend is not None  # noqa: S101 - connected
        peer = address_of(self._backend, sock)
        if self._tap is not None and peer != self._peer:
            self._tap.close(Ended.BACKEND_RESET.name.lower())
            self._tap = None
            self._began = self.stamp
        self._peer = peer
        return sock

    def end(self, how: Ended) -> None:
        super().end(how)
        if self._tap is not None:
            self._tap.close(how.name.lower())

    def _answer_and_tell(self, datagram: memoryview, client: Peer) -> int:
        sent = self._send_answer(datagram, client)
        if self._tap is not None:
            self._tap.packet(Direction.OUTBOUND, bytes(datagram))
        return sent


class FallbackUdpSession(UdpSession):
    """A session of the fallback, which ends if a datagram of its client begins a session of another route.

    The first datagram of such a session may come from a client whose earlier session is unknown here, for
    example after a restart. Once a backend of the fallback has answered, the session is not ended.
    """

    __slots__ = ()

    def send_up(self, datagram: memoryview) -> bool:
        if not self._is_answered and self.up and self._service.has_route(self, bytes(datagram)):
            self.end(Ended.UNANSWERED)
            session = self._service.begin(
                self.listener, self._client, self._control, self.key, bytes(datagram)
            )
            return session is not None and session.send_up(datagram)
        return super().send_up(datagram)


class TappedFallbackUdpSession(FallbackUdpSession, TappedUdpSession):
    """A `FallbackUdpSession` whose hooks receive every datagram that was passed on."""

    __slots__ = ()


def _blame(backend: Backend, what: str, error: OSError) -> None:
    """Count the failed attempt of a client to reach a backend, unless this machine caused the error."""
    if error.errno not in LOCAL_ERRORS:
        backend.state.client_failed(f"{what}: {error.strerror}")
