"""A weld: the sockets of client and backend, joined so that both peers see the events of a direct connection.

A weld has two flows, one per direction. A flow moves bytes until, at the moment, its source has no bytes
to read or its sink has no room. The epoll reports when the flow can continue. The rules:

- A flow ends when recv returns 0. After its last byte, the flow shuts the sink down for writing (half-close).
- A flow passes on a reset as a reset, after all earlier bytes. The kernel reports a reset only once: if a
  send fails with the reset, the next recv looks like an orderly end. So `Flow.broken` records the reset.
- A flow holds at most one buffer or pipe of bytes that its sink has not accepted, and does not read its
  source meanwhile. `sockets.bind` and `sockets.bulk` limit the bytes that the kernel holds.
- As long as a sink has received only a part of a stream, the close of the sink is a reset. So a killed
  process leaves no truncated stream that looks complete.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from os import splice
from typing import TYPE_CHECKING, Final

from refractium.contract import Direction
from refractium.proxy.summary import Ended
from refractium.proxy.tapping import tapped
from refractium.proxy.welding import BUFFER
from refractium.sockets.bulk import bound_sink, bound_source, stop_pacing_here
from refractium.sockets.closing import end_on_close, is_over, reset_on_close, unacknowledged
from refractium.sockets.pipes import SIZE
from refractium.sockets.reactor import EDGE, ERROR, HANGUP, IN, OUT, RDHUP, URGENT

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from refractium.hooks import Tap
    from refractium.proxy.welding import Welding, WeldOwner
    from refractium.sockets.pipes import Pipe

_READS_A_TURN: Final = 16
"""Number of full reads after which a flow lets other flows have their turn."""
_READS_BEFORE_SPLICE: Final = 3
"""If a flow makes more full reads than this in one turn, the transfer is bulk: the kernel moves the bytes."""
_SPLICES_A_TURN: Final = 2
_FLAGS: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
_RESET_POLL: Final = (0.005, 0.32)
"""First and longest pause (s) between checks whether the last bytes before a reset are acknowledged."""
_RESET_PATIENCE: Final = 30.0
"""Seconds without progress after which a weld sends a reset although the last bytes are not acknowledged."""
_EVENTS: Final = IN | EDGE
_AF_UNIX: Final = int(socket.AF_UNIX)


class Weld:
    """Two connected, non-blocking sockets, joined until both directions are done or the weld is aborted.

    Args:
        shared: the reactor, the buffer and the pipes.
        client: the client's socket, whose close is a reset.
        backend: the backend's socket, whose close is an orderly end.
        owner: the object to which the weld reports its end. References to functions would take more memory.

    Attributes:
        stamp: monotonic time (s) of the last activity.
        tells_half_close: whether the weld calls `WeldOwner.half_closed`.
        up: the flow from client to backend.
        down: the flow from backend to client.
    """

    __slots__ = ("_timer", "down", "owner", "shared", "stamp", "tells_half_close", "up")

    def __init__(
        self,
        shared: Welding,
        client: socket.socket,
        backend: socket.socket,
        owner: WeldOwner,
    ) -> None:
        self.shared = shared
        from_unix, to_unix = client.family == _AF_UNIX, backend.family == _AF_UNIX
        may_splice = not (from_unix or to_unix)
        self.up = up = Flow(self, client, backend, from_unix, may_splice)
        self.down = down = Flow(self, backend, client, to_unix, may_splice)
        up.opposite, down.opposite = down, up
        down.is_guarded = True
        self.stamp = shared.reactor.turned
        self.owner = owner
        self.tells_half_close = False
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Weld up={self.up.count} down={self.down.count}>"

    @property
    def is_half_closed(self) -> bool:
        """Whether one side has ended, even if bytes of this side still wait for the other side."""
        return any(flow.done or flow.ended or flow.more for flow in (self.up, self.down))

    def begin(self, first: bytes, sent: int, *, client_ended: bool, preface: int = 0) -> None:
        """Start moving bytes.

        Args:
            first: the bytes for the backend: the preface, and all bytes read from the client so far.
            sent: the number of bytes of `first` that have been sent to the backend.
            client_ended: whether the client has ended its side.
            preface: the number of bytes of `first` that the client did not send. ``up.count`` does not count
                these bytes, and is below zero until these bytes are sent.
        """
        reactor, up, down = self.shared.reactor, self.up, self.down
        up.count = sent - preface
        client_was_watched = reactor.watch(up.sock, up.events, up.on_event)
        backend_was_watched = reactor.watch(down.sock, down.events, down.on_event)
        if sent < len(first):
            up.held = first[sent:]
            up.guard()
            up.await_room()
        # The epoll does not repeat events from the time before the weld watched the sockets.
        if client_was_watched or client_ended:
            up.ended = client_ended
            up.near_end = True
            up.run()
        if backend_was_watched:
            down.near_end = True
            down.run()

    def tell(self, tap: Tap) -> None:
        """From now on, pass all bytes that the weld receives to a tap."""
        for flow, direction in ((self.up, Direction.INBOUND), (self.down, Direction.OUTBOUND)):
            flow.receive = tapped(flow, tap, direction)
            flow.may_splice = False

    def end(self, how: Ended) -> None:
        """Close both sockets. After an orderly close, the kernel still delivers the bytes that it holds."""
        if self._timer is not None:
            self._timer.cancel()
        retire = self.shared.reactor.retire
        for flow in (self.up, self.down):
            flow.done = True
            if flow.pipe is not None:
                flow.release()
            retire(flow.sock)
            # These references form cycles. Without them, Python frees the objects immediately.
            del flow.weld, flow.opposite
        self.owner.weld_ended(how)

    def abort(self, how: Ended) -> None:
        """Reset both sides at once, so that no side mistakes a truncated stream for a complete stream."""
        reset_on_close(self.up.sock)
        reset_on_close(self.down.sock)
        self.end(how)

    def expired(self) -> None:
        """Reset both sides: the idle timeout has passed."""
        self.abort(Ended.IDLE)

    def crash(self) -> None:
        """Reset both sides at once after an internal error."""
        self.abort(Ended.FAULT)

    def pass_on_reset(self, of: Flow) -> None:
        """Reset the sink of a flow whose source was reset, once all earlier bytes are acknowledged."""
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
    """One direction of a weld.

    A flow reads from its source and sends to its sink, which is the source of the opposite flow.

    Args:
        weld, sock, is_local, may_splice: the first values of these attributes.
        sink: the sink's socket.

    Attributes:
        weld: the weld that the flow belongs to, until the weld ends.
        sock: the source's socket.
        opposite: the flow in the opposite direction, until the weld ends.
        events: the events for which the epoll watches the source's socket.
        broken: whether the source was reset or has failed otherwise.
        count: the number of bytes that the sink has accepted.
        held: the bytes that were read and that the sink has not accepted.
        pipe: the pipe through which the flow moves bulk; None while the flow has no pipe.
        may_splice: whether the flow may use a pipe: both sockets are TCP, and no hook receives the bytes.
        receive: a function that reads into a buffer, as ``sock.recv_into`` does. In a session with hooks
            the function also passes the bytes to the hooks.
        is_local: whether the source is a unix socket, which may have more bytes after a short read.
        is_bulk: whether the flow has begun a bulk transfer, for which its sockets get further options.
        more: flags for sends: MSG_MORE (send(2)) once the source has announced its end, else 0. With MSG_MORE
            the kernel holds sent bytes back until that end, so that bytes and end are one segment.
        near_end: whether the flow reads on after a short read, because the source has announced its end, has
            an urgent byte, or is a unix socket.
        ended: whether the source has no more bytes, for any reason.
        done: whether the flow has nothing left to do.
        is_guarded: whether a close of the sink's socket before the flow's end resets the connection.
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
        is_local: bool,  # noqa: FBT001 - two flows are made for every connection
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
        """Read from the source's socket, or send the bytes that the opposite flow holds for this socket."""
        weld = self.weld
        weld.stamp = weld.shared.reactor.turned
        if mask == IN:  # nearly every event
            self.run()
            return
        opposite = self.opposite
        if mask & (HANGUP | URGENT):
            self.near_end = True
            if mask & RDHUP:
                self.more = socket.MSG_MORE
                if weld.tells_half_close:
                    weld.owner.half_closed()
        if mask & ~OUT:
            self.run()
        if mask & ERROR and self.done:
            opposite.sink_broke()
        if mask & OUT and (opposite.held or opposite.pipe is not None):
            opposite.run()

    def run(self) -> None:  # noqa: C901, PLR0911, PLR0912 - the one loop every byte goes through
        """Move bytes until the source is empty, the sink accepts no more, or this turn's share is used up."""
        if self.done or (self.pipe is not None and not self._pump()):
            return
        view, receive, send = self._view, self.receive, self._send
        reads = 0
        while reads < _READS_A_TURN:  # `range` would add 1% to the time of a small exchange
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
            # A short read has emptied the source, and the epoll reports later bytes. The epoll reports
            # an announced end of the source only once, so after such a report the loop reads on to the end.
            if got < BUFFER:
                if not self.near_end:
                    return
            elif reads == _READS_BEFORE_SPLICE and self._begin_bulk() and not self._pump():
                return
            reads += 1
        self.weld.shared.reactor.again(self.run)

    def _pump(self) -> bool:
        """Move bytes through the pipe; return whether the pipe was given back, so that `run` reads on."""
        pipe = self.pipe
        assert pipe is not None  # noqa: S101 - callers have checked the pipe
        source, sink = self.sock.fileno(), self.opposite.sock.fileno()
        before = self.count
        for _ in range(_SPLICES_A_TURN):
            if not pipe.count:
                try:
                    pipe.count = splice(source, pipe.write, SIZE, flags=_FLAGS)
                except BlockingIOError:
                    # A transfer that continues keeps its pipe. But if `near_end` is set, splice may have
                    # stopped before urgent data, and only recv can tell whether the source is empty.
                    if self.count - before >= BUFFER and not self.near_end:
                        return False
                    break
                except OSError:
                    # After a reset of the source, splice already fails at an urgent byte before the end.
                    self.broken, self.ended = True, not self._has_more()
                # Empty pipe: the source has ended, or the next byte is urgent. The next recv finds out which.
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
        """Borrow a pipe if the flow may use a pipe; return whether the flow has a pipe now."""
        if not self.is_bulk:
            self.is_bulk = True
            self._prepare_bulk()
        if not self.may_splice:
            return False
        self.pipe = self.weld.shared.pipes.borrow()
        return self.pipe is not None

    def _prepare_bulk(self) -> None:
        sink, size = self.opposite.sock, self.weld.shared.backend_buffer
        if self.may_splice:  # keep pacing for hooks: without it, a hook missed half of the bytes, not a fifth
            stop_pacing_here(sink)
        bound_sink(sink)
        if size and self is self.weld.down:
            bound_source(self.sock, size)

    def guard(self) -> None:
        """Let any close of the sink reset the connection, until this flow has ended.

        From now on the kernel also sends the sink's bytes at once. The first bytes needed no option for that:
        the kernel holds back a small segment only behind another small segment (Minshall's form of Nagle's
        algorithm).
        """
        self.is_guarded = True
        sink = self.opposite
        reset_on_close(sink.sock)
        if not sink.is_local:
            sink.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def release(self) -> None:
        """Give the pipe back, if the flow has one."""
        if self.pipe is not None:
            self.weld.shared.pipes.give_back(self.pipe)
            self.pipe = None

    def await_room(self) -> None:
        """Make the epoll report when the sink accepts bytes again."""
        sink = self.opposite
        if not sink.events & OUT:
            sink.events |= OUT
            self.weld.shared.reactor.modify(sink.sock, sink.events)

    def crash(self) -> None:
        """End the weld at once after an internal error."""
        self.weld.crash()

    def _flush(self) -> bool:
        """Send the held bytes; return whether the sink has accepted all of them."""
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
        """Make the kernel send the bytes that it holds back (`more`): no further bytes follow for now."""
        # A unix socket holds nothing back. A failed socket reports its error at the next turn.
        with suppress(OSError):
            self.opposite.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _finish(self) -> None:
        """Pass the end of the source on to the sink, after all bytes have been sent to the sink."""
        self.done = True
        if self.broken:
            self.weld.pass_on_reset(self)
            return
        if self.is_guarded:
            end_on_close(self.opposite.sock)
        weld = self.weld
        if self.opposite.done:
            weld.end(Ended.CLOSED)
            return
        try:
            self.opposite.sock.shutdown(socket.SHUT_WR)
        except OSError:
            if not is_over(self.opposite.sock):
                weld.abort(Ended.FAULT)  # the sink would never learn of the end
                return
        if weld.tells_half_close:
            weld.owner.half_closed()

    def sink_broke(self) -> None:
        """Give up a sink that accepts no more bytes, and read the bytes that arrived from it before."""
        if self.done:
            return
        opposite = self.opposite
        if not is_over(opposite.sock):
            # This machine failed (ENOBUFS, ENOMEM): the sink still works, and no event reports the failure.
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
