"""Ends of connections that run their programs, thousands of them on one epoll in one thread."""

from __future__ import annotations

import fcntl
import heapq
import itertools
import select
import socket
import struct
import termios
import time
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

    from attacks.fuzz_programs import Program

    Handler = Callable[[int], None]

_EDGE: Final = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
_READS_A_TURN: Final = 8
_MOST_AT_ONCE: Final = 262_144


class Loop:
    """One epoll, and timers.

    Attributes:
        now: monotonic time (s) at which this turn began.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self.now = time.monotonic()

    def watch(self, sock: socket.socket, handler: Handler, events: int = _EDGE) -> None:
        """Call a handler at the events of a socket, in place of an earlier handler."""
        fd = sock.fileno()
        if fd not in self._handlers:
            self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def close(self, sock: socket.socket) -> None:
        """Stop watching a socket, and close it."""
        del self._handlers[sock.fileno()]
        sock.close()

    def later(self, milliseconds: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + milliseconds / 1000, next(self._numbers), call))

    def turn(self) -> None:
        """Wait for events and timers, and call their handlers."""
        timeout = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else 1.0
        events = self._epoll.poll(timeout, 512)
        self.now = time.monotonic()
        for fd, mask in events:
            # A socket opened in this turn may have the number of a closed one and get its event. The
            # handler then finds nothing to read.
            handler = self._handlers.get(fd)
            if handler is not None:
                handler(mask)
        while self._timers and self._timers[0][0] <= self.now:
            heapq.heappop(self._timers)[2]()

    def end(self) -> None:
        self._epoll.close()


class End:
    """One end of a connection.

    Args:
        loop: the source of events.
        sock: connected and non-blocking.
        program: the program of the end.
        stream: the bytes that it sends.
        expected: the bytes that its peer sends.
        over: a function, called once when the end has closed its socket.

    Attributes:
        is_tcp: whether the socket is TCP, which has resets.
        sent: number of bytes that the kernel has taken from this end.
        got: number of bytes that have arrived.
        wrong: the way in which the arrived bytes differ from those expected; empty while they are equal.
        shut: whether this end has ended its sending side in order, by a shutdown or a close.
        broken: whether a send or shutdown has reported a reset.
        delivered: whether the kernel of the proxy had all sent bytes when this end left.
        ended: the way in which the peer's side ended; `left` if this end closed before it knew.
        is_over: whether this end has closed its socket.
    """

    __slots__ = (
        "_blocked",
        "_expected",
        "_is_reading",
        "_left",
        "_loop",
        "_over",
        "_program",
        "_sock",
        "_step",
        "_stream",
        "_urgent",
        "_wrote",
        "broken",
        "delivered",
        "ended",
        "got",
        "is_over",
        "is_tcp",
        "sent",
        "shut",
        "wrong",
    )

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        program: Program,
        stream: bytes,
        expected: bytes,
        over: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._program = program
        self._stream = stream
        self._expected = expected
        self._over = over
        self._step = self._left = self._urgent = 0
        self._blocked = self._wrote = self._is_reading = False
        self.is_tcp = sock.family != socket.AF_UNIX
        self.sent = self.got = 0
        self.wrong = ""
        self.ended: Literal["", "eof", "reset", "left"] = ""
        self.shut = self.broken = self.delivered = self.is_over = False

    def __str__(self) -> str:
        state = "closed" if self.is_over else f"open, at step {self._step} of {len(self._program.steps)}"
        words = [f"{state}; sent {self.sent} of {len(self._stream)}, got {self.got} of {len(self._expected)}"]
        words.append(f"read until: {self.ended or 'still reading'}")
        words += [word for word in ("shut", "broken", "wrong") if getattr(self, word)]
        return ", ".join(words)

    def await_connected(self) -> None:
        """Run the program as soon as the socket is connected."""

        def connected(mask: int) -> None:
            if mask & ~select.EPOLLIN:
                self.begin()

        self._loop.watch(self._sock, connected)

    def begin(self, early: bytes = b"") -> None:
        """Run the program from now on. A caller that has read some bytes already passes them."""
        program = self._program
        self._loop.watch(self._sock, self.on_event)
        if early:
            self._take(early)
        if program.deadline_ms:
            self._loop.later(program.deadline_ms, self._end_early)
        if program.reading == "late":
            self._loop.later(program.reading_ms, self._read_on)
        self._is_reading = program.reading in {"eager", "slow"}
        self._read()
        if not self.is_over:
            self._write()

    def on_event(self, mask: int) -> None:
        if mask & ~select.EPOLLOUT:
            self._read()
        if self._blocked and not self.is_over:
            self._write()

    # Reading

    def _read(self) -> None:
        if not self._is_reading or self.ended:
            return
        for _ in range(_READS_A_TURN):
            try:
                data = self._sock.recv(self._program.piece)
            except BlockingIOError:
                return
            except OSError:
                self._peer_ended("reset")
                return
            if not data:
                # The kernel reports a reset once. If a send has got it, recv sees an end.
                self._peer_ended("reset" if self.broken else "eof")
                return
            self._take(data)
            if self._program.reading == "slow":
                break
        self._is_reading = False
        self._loop.later(self._program.reading_ms if self._program.reading == "slow" else 0, self._read_on)

    def _read_on(self) -> None:
        self._is_reading = True
        if not self.is_over:
            self._read()

    def _take(self, data: bytes) -> None:
        end = self.got + len(data)
        if not self.wrong and self._expected[self.got : end] != data:
            self.wrong = f"bytes {self.got} to {end} are not those that the peer sends there"
        self.got = end

    def _peer_ended(self, how: Literal["eof", "reset"]) -> None:
        self.ended = how
        if how == "reset" or self._wrote:
            self._close()

    # Writing

    def _write(self) -> None:
        if self._wrote:
            return
        self._blocked = False
        steps = self._program.steps
        while True:
            if not self._left:
                if self._step == len(steps):
                    self._conclude()
                    return
                step = steps[self._step]
                self._step += 1
                if step.what == "pause":
                    self._loop.later(step.amount, self._write_on)
                    return
                self._left = step.amount
                self._urgent = socket.MSG_OOB if step.what == "urgent" else 0
            size = min(self._left, _MOST_AT_ONCE)
            try:
                sent = self._sock.send(self._stream[self.sent : self.sent + size], self._urgent)
            except BlockingIOError:
                self._blocked = True
                return
            except OSError:
                self._broke()
                return
            self.sent += sent
            self._left -= sent

    def _write_on(self) -> None:
        if not self.is_over:
            self._write()

    def _broke(self) -> None:
        self.broken = self._wrote = True
        if self.ended:
            self._close()

    def _conclude(self) -> None:
        """End as the program says, after its last step."""
        self._wrote = True
        program = self._program
        if program.ending in {"close", "reset"}:
            self._leave(resets=program.ending == "reset")
            return
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._broke()
            return
        self.shut = True
        if self.ended:
            self._close()
        elif program.ending == "leave":
            self._loop.later(program.leave_ms, self._leave_late)

    def _end_early(self) -> None:
        if not self.is_over:
            self._leave(resets=self._program.ending == "reset")

    def _leave_late(self) -> None:
        if not self.is_over:
            self._leave(resets=self._program.resets)

    def _leave(self, *, resets: bool) -> None:
        self.delivered = not self.broken and (not self.is_tcp or _unacknowledged(self._sock) == 0)
        if resets and self.is_tcp:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        elif not self.broken:
            self.shut = True
        self.ended = self.ended or "left"
        self._close()

    def _close(self) -> None:
        self.is_over = True
        self._loop.close(self._sock)
        self._over()


def _unacknowledged(sock: socket.socket) -> int:
    """Return how many bytes the kernel of the peer has not taken yet."""
    (count,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))
    return int(count)
