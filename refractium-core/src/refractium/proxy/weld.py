"""The weld: client and backend joined so that each sees what it would see of the other.

Two flows, one a direction, move bytes until their source has no more or their sink takes no more; the epoll
says when it is worth going on. The rules:

- A flow ends when recv returns 0, and then, after its last byte, ends the sink's reading side (half-close).
- A reset is passed on as a reset, after the bytes that came before it. The kernel tells of it once: if a send
  learns of it, the next recv looks like an orderly end, so `Flow.broken` remembers.
- A flow holds at most one buffer of bytes that its sink has not taken; while it does, its source is not read.
  What the kernel holds is bounded too (`sockets.bind`, `sockets.bulk`).
- A sink that has been sent a part of a stream is closed by a reset until that stream has ended, so that a
  process which is killed leaves no truncated stream that looks whole.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from os import splice
from typing import TYPE_CHECKING, Final

from refractium.contract import Direction
from refractium.proxy.outcome import Ended
from refractium.sockets.bulk import bound_sink, bound_source, stop_pacing_here
from refractium.sockets.closing import end_on_close, is_over, reset_on_close, unacknowledged
from refractium.sockets.pipes import SIZE, Pipes
from refractium.sockets.reactor import EDGE, ERROR, HANGUP, IN, OUT, RDHUP, URGENT

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from refractium.hooks import Tap
    from refractium.sockets.descriptors import Descriptors
    from refractium.sockets.pipes import Pipe
    from refractium.sockets.reactor import Reactor

BUFFER: Final = 65_536
"""Bytes read at once, and the most that a flow holds back."""
_READS_A_TURN: Final = 16
"""After this many full reads a flow lets the others have their turn."""
_READS_BEFORE_SPLICE: Final = 3
"""After one more full read than that in one turn it is bulk, and the kernel moves the bytes."""
_SPLICES_A_TURN: Final = 2
_FLAGS: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
_RESET_POLL: Final = (0.005, 0.32)
"""Seconds between looks at whether the last bytes before a reset have been taken: at first, and at most."""
_RESET_PATIENCE: Final = 30.0
"""Seconds without progress after which the reset goes out without them."""
_EVENTS: Final = IN | EDGE
_AF_UNIX: Final = int(socket.AF_UNIX)


class Welding:
    """What all welds share.

    Args:
        reactor: where events come from.
        descriptors: what pipes are made of.
        backend_buffer: as of the attribute.

    Attributes:
        backend_buffer: bytes that the kernel takes from a backend in bulk beyond what its client has taken.
            With 0 it chooses.
    """

    def __init__(self, reactor: Reactor, descriptors: Descriptors, backend_buffer: int = 0) -> None:
        self.reactor = reactor
        # One buffer for all: a flow empties it into its sink, or copies what is left, before the next reads.
        self.buffer = bytearray(BUFFER)
        self.view = memoryview(self.buffer)
        self.pipes = Pipes(reactor.loop, descriptors)
        self.backend_buffer = backend_buffer


class Weld:
    """Joins two connected, non-blocking sockets until both directions are done or one side is reset.

    Args:
        shared: reactor, buffer and pipes.
        client: the client's socket, which is reset on close.
        backend: the backend's socket, which is not.
        on_end: told how it ended, once, when both sockets have been let go.

    Attributes:
        stamp: monotonic time (s) of the last activity.
        up: from client to backend.
        down: from backend to client.
    """

    __slots__ = ("_on_end", "_timer", "down", "shared", "stamp", "up")

    def __init__(
        self,
        shared: Welding,
        client: socket.socket,
        backend: socket.socket,
        on_end: Callable[[Ended], None],
    ) -> None:
        self.shared = shared
        from_unix, to_unix = client.family == _AF_UNIX, backend.family == _AF_UNIX
        may_splice = not (from_unix or to_unix)
        self.up = up = Flow(self, client, backend, from_unix, may_splice)
        self.down = down = Flow(self, backend, client, to_unix, may_splice)
        up.opposite, down.opposite = down, up
        down.is_guarded = True
        self.stamp = shared.reactor.turned
        self._on_end = on_end
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Weld up={self.up.count} down={self.down.count}>"

    def begin(self, first: bytes, sent: int, *, client_ended: bool, preface: int = 0) -> None:
        """Start moving bytes.

        Args:
            first: what was read from the client so far.
            sent: how many bytes of it the backend has been sent.
            client_ended: whether the client has sent all it had to send.
            preface: how many bytes of `first` are not the client's, and so not counted. Until they are sent
                the count is below zero.
        """
        reactor, up, down = self.shared.reactor, self.up, self.down
        up.count = sent - preface
        client_was_watched = reactor.watch(up.sock, up.events, up.on_event)
        backend_was_watched = reactor.watch(down.sock, down.events, down.on_event)
        if sent < len(first):
            up.held = first[sent:]
            up.guard()
            up.await_room()
        # Events that came before the sockets were the weld's do not come again.
        if client_was_watched or client_ended:
            up.ended = client_ended
            up.near_end = True
            up.run()
        if backend_was_watched:
            down.near_end = True
            down.run()

    def tell(self, tap: Tap) -> None:
        """Have a tap told of what is received from now on."""
        for flow, direction in ((self.up, Direction.INBOUND), (self.down, Direction.OUTBOUND)):
            flow.receive = tapped(flow, tap, direction)
            flow.may_splice = False

    def end(self, how: Ended) -> None:
        """Let both sockets go. What their kernel buffers still hold is delivered."""
        if self._timer is not None:
            self._timer.cancel()
        retire = self.shared.reactor.retire
        for flow in (self.up, self.down):
            flow.done = True
            if flow.pipe is not None:
                flow.release()
            retire(flow.sock)
            # Without these two nothing refers to itself, and all is freed at once, without a collection.
            del flow.weld, flow.opposite
        self._on_end(how)

    def abort(self, how: Ended) -> None:
        """Reset both sides at once, so that neither takes a truncated stream for a whole one."""
        reset_on_close(self.up.sock)
        reset_on_close(self.down.sock)
        self.end(how)

    def expired(self) -> None:
        """The idle timeout has passed."""
        self.abort(Ended.IDLE)

    def crash(self) -> None:
        """End at once, after a fault of ours."""
        self.abort(Ended.FAULT)

    def pass_on_reset(self, of: Flow) -> None:
        """The source of a flow was reset: reset its sink too, as soon as that has taken the bytes before."""
        how = Ended.CLIENT_RESET if of is self.up else Ended.BACKEND_RESET
        sink = of.opposite.sock
        reactor = self.shared.reactor
        for flow in (self.up, self.down):
            flow.done = True
            reactor.unwatch(flow.sock)
        waiting, since, pause = -1, 0.0, _RESET_POLL[0]

        def look() -> None:
            nonlocal waiting, since, pause
            left = unacknowledged(sink)
            now = reactor.now
            if left != waiting:
                waiting, since, pause = left, now, _RESET_POLL[0]
            if left and now - since < _RESET_PATIENCE:
                self._timer = reactor.loop.call_later(pause, look)
                pause = min(2 * pause, _RESET_POLL[1])
            else:
                self.abort(how)

        look()


class Flow:
    """One direction of a weld: what comes out of one socket goes into that of the opposite flow.

    Args:
        weld: whose direction it is.
        sock: the source.
        sink: the other socket.
        is_local: as of the attribute.
        may_splice: the same.

    Attributes:
        weld: the same, until it ends.
        sock: the source.
        opposite: the flow whose source is this one's sink, until the weld ends.
        events: what the source's socket is watched for.
        broken: the source was reset, or failed otherwise.
        count: bytes the sink has taken.
        held: bytes read that the sink has not taken.
        pipe: what bytes go through while there are many of them; else None.
        may_splice: whether a pipe may be used: where nobody but the sink is to have the bytes.
        receive: reads into a buffer, as `socket.recv_into` of the source does; of a session with hooks, tells
            them as well.
        is_local: the source is a unix socket, of which a short read does not say that it is empty.
        is_bulk: bulk has passed, so its sockets have been seen to (`_prepare_bulk`).
        more: flag of sends: once the source has announced its end, what is sent waits for that, so that both
            are one segment (MSG_MORE, send(2)), which takes 4 us less of a short connection.
        near_end: the source has said that its end is near, so it is read until that is reached.
        ended: the source has no more, for whatever reason.
        done: nothing is left to do.
        is_guarded: the sink is reset if it is closed before this flow has ended.
    """

    __slots__ = (
        "_send",
        "_view",
        "broken",
        "count",
        "done",
        "ended",
        "events",
        "held",
        "is_bulk",
        "is_guarded",
        "is_local",
        "may_splice",
        "more",
        "near_end",
        "opposite",
        "pipe",
        "receive",
        "sock",
        "weld",
    )

    opposite: Flow

    def __init__(
        self,
        weld: Weld,
        sock: socket.socket,
        sink: socket.socket,
        is_local: bool,  # noqa: FBT001 - two of these are made for every connection
        may_splice: bool,  # noqa: FBT001
    ) -> None:
        self.weld = weld
        self.sock = sock
        self.receive: Callable[[memoryview], int] = sock.recv_into
        self._send = sink.send
        self._view = weld.shared.view
        self.events = _EVENTS
        self.count = self.more = 0
        self.held = b""
        self.pipe: Pipe | None = None
        self.is_local = self.near_end = is_local
        self.may_splice = may_splice
        self.broken = self.ended = self.done = self.is_bulk = self.is_guarded = False

    def on_event(self, mask: int) -> None:
        """The source's socket has something to read, or takes what the opposite flow has for it."""
        weld = self.weld
        weld.stamp = weld.shared.reactor.turned
        if mask == IN:  # as nearly always
            self.run()
            return
        opposite = self.opposite
        if mask & (HANGUP | URGENT):
            self.near_end = True
            if mask & RDHUP:
                self.more = socket.MSG_MORE
        if mask & ~OUT:
            self.run()
        if mask & ERROR and self.done:
            opposite.sink_broke()
        if mask & OUT and (opposite.held or opposite.pipe is not None):
            opposite.run()

    def run(self) -> None:  # noqa: C901, PLR0911, PLR0912 - the one loop every byte goes through
        """Move bytes until the source has none, the sink takes none, or this turn's share is used up."""
        if self.done or (self.pipe is not None and not self._pump()):
            return
        view, receive, send = self._view, self.receive, self._send
        reads = 0
        while reads < _READS_A_TURN:  # a range would cost a hundredth of a small exchange
            if self.held and not self._flush():
                return
            if self.ended:
                self._finish()
                return
            try:
                got = receive(view)
            except BlockingIOError:
                self.near_end = self.is_local
                if self.more:
                    self._send_now()
                return
            except OSError:
                self.broken = True
                if self.more:
                    self._send_now()
                got = 0
            if not got:
                self.ended = True
                self._finish()
                return
            if not self.is_guarded:
                self.guard()
            try:
                sent = send(view[:got], self.more)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.sink_broke()
                return
            self.count += sent
            if sent < got:
                self.held = bytes(view[sent:got])
                self.await_room()
                return
            # A short read has emptied the source, and what arrives later is a new edge; unless its end had
            # been announced already: that edge has been.
            if got < BUFFER:
                if not self.near_end:
                    return
            elif reads == _READS_BEFORE_SPLICE and self._begin_bulk() and not self._pump():
                return
            reads += 1
        self.weld.shared.reactor.again(self.run)

    def _pump(self) -> bool:
        """Move bytes through the pipe; whether the source has no more for now and the pipe is given back."""
        pipe = self.pipe
        assert pipe is not None  # noqa: S101 - that is when it is called
        source, sink = self.sock.fileno(), self.opposite.sock.fileno()
        before = self.count
        for _ in range(_SPLICES_A_TURN):
            if not pipe.count:
                try:
                    pipe.count = splice(source, pipe.write, SIZE, flags=_FLAGS)
                except BlockingIOError:
                    # Of a transfer that goes on the pipe stays. Of a byte out of band, which near_end tells
                    # of, splice stops short, so that recv has to say whether the source is empty.
                    if self.count - before >= BUFFER and not self.near_end:
                        return False
                    break
                except OSError:
                    # Of a source that was reset, splice says so at an urgent byte already.
                    self.broken, self.ended = True, not self._has_more()
                # Of nothing, recv says whether it is the end: splice also stops at an urgent byte with 0.
                if not pipe.count:
                    break
            try:
                sent = splice(pipe.read, sink, pipe.count, flags=_FLAGS)
            except BlockingIOError:
                self.await_room()
                return False
            except OSError:
                self.sink_broke()
                return False
            pipe.count -= sent
            self.count += sent
        else:
            self.weld.shared.reactor.again(self.run)
            return False
        self.release()
        return True

    def _has_more(self) -> bool:
        """Return whether the source has bytes to read."""
        try:
            return bool(self.sock.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def _begin_bulk(self) -> bool:
        """Take a pipe, where one may be used and can be had; whether there is one now."""
        if not self.is_bulk:
            self.is_bulk = True
            self._prepare_bulk()
        if not self.may_splice:
            return False
        self.pipe = self.weld.shared.pipes.borrow()
        return self.pipe is not None

    def _prepare_bulk(self) -> None:
        sink, size = self.opposite.sock, self.weld.shared.backend_buffer
        # Not what is copied: it gained a fifth, and a hook that was told of it missed half, not a fifth.
        if self.may_splice:
            stop_pacing_here(sink)
        bound_sink(sink)
        if size and self is self.weld.down:
            bound_source(self.sock, size)

    def guard(self) -> None:
        """Have the sink reset if it is closed from now on before this flow has ended.

        The sink also sends at once from now on. Its first bytes needed no option for that: the kernel holds
        back a small segment only behind another small one (Minshall's form of Nagle's algorithm).
        """
        self.is_guarded = True
        sink = self.opposite
        reset_on_close(sink.sock)
        if not sink.is_local:
            sink.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def release(self) -> None:
        """Give the pipe back, if there is one."""
        if self.pipe is not None:
            self.weld.shared.pipes.give_back(self.pipe)
            self.pipe = None

    def await_room(self) -> None:
        """Have the epoll say when the sink takes bytes again."""
        sink = self.opposite
        if not sink.events & OUT:
            sink.events |= OUT
            self.weld.shared.reactor.modify(sink.sock, sink.events)

    def crash(self) -> None:
        """End the weld at once, after a fault of ours."""
        self.weld.crash()

    def _flush(self) -> bool:
        """Send what is held; whether all of it was taken."""
        try:
            sent = self._send(self.held)
        except BlockingIOError:
            return False
        except OSError:
            self.sink_broke()
            return False
        self.count += sent
        self.held = self.held[sent:]
        if self.held:
            self.await_room()
        return not self.held

    def _send_now(self) -> None:
        """Have the kernel send what it was told to keep for more to come: there is none for now."""
        with suppress(OSError):  # a unix socket keeps nothing; one that has failed says so at the next turn
            self.opposite.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _finish(self) -> None:
        """The source has ended and the sink has been handed all of it: let the sink know."""
        self.done = True
        if self.broken:
            self.weld.pass_on_reset(self)
            return
        if self.is_guarded:
            end_on_close(self.opposite.sock)
        if self.opposite.done:
            self.weld.end(Ended.CLOSED)
        else:
            try:
                self.opposite.sock.shutdown(socket.SHUT_WR)
            except OSError:
                if not is_over(self.opposite.sock):
                    self.weld.abort(Ended.FAULT)  # the end would never be heard of

    def sink_broke(self) -> None:
        """The sink takes nothing any more; what it has sent before is still to be read."""
        if self.done:
            return
        opposite = self.opposite
        if not is_over(opposite.sock):
            # This machine failed (ENOBUFS, ENOMEM): the sink goes on and no event will ever tell of it.
            self.weld.abort(Ended.FAULT)
            return
        opposite.broken = True
        self.done = True
        self.held = b""
        self.release()
        if opposite.done:
            self.weld.pass_on_reset(opposite)
        else:
            opposite.near_end = True
            opposite.run()


def tapped(flow: Flow, tap: Tap, direction: Direction) -> Callable[[memoryview], int]:
    """What receives in the place of the source's socket, and tells of it."""
    receive = flow.receive

    def receive_and_tell(view: memoryview) -> int:
        got = receive(view)
        if got:
            tap.packet(direction, bytes(view[:got]))
        elif not flow.broken:
            tap.end(direction)
        return got

    return receive_and_tell
