"""What takes the events of one hook on the data path: counts them, and bounds what waits for the hook."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from refractium.contract import Direction, EventKind
from refractium.hooks.counters import Counters
from refractium.hooks.delivery import ITEM_BYTES
from refractium.throttle import Throttled

if TYPE_CHECKING:
    from collections.abc import Callable

    from msgspec import Struct

    from refractium.contract import HookContext, PacketHook, SessionStats

log = logging.getLogger(__name__)

FLUSH_SECONDS: Final = 0.001
"""How long events are collected before the hook is woken. That takes a system call and a turn of the other
thread or process, so it is not done for every packet."""
STOP_SECONDS: Final = 1.0
"""How long `PacketHook.stop` may take."""
STALL_SECONDS: Final = 5.0
"""A hook that has taken none of the packets that wait for it for so long is stalled."""
_LOOK_SECONDS: Final = 0.1
"""Seconds between looks at whether a hook that should have ended waits for a processor."""
_KEPT_WAITING: Final = 10
"""A hook that waits for a processor is given as many times the time to end."""

_INBOUND: Final = Direction.INBOUND
_PACKET: Final = EventKind.PACKET


class State(StrEnum):
    """Whether a hook is told of anything."""

    RUNNING = "running"
    DETACHED = "detached"
    """It could not be started, has failed too often, or its process has died too often."""
    STOPPED = "stopped"


class Runner(ABC):
    """One hook with one settings, wherever it runs. Everything is called in the thread of the event loop.

    No method waits for the hook, and none raises what the hook raises.

    Args:
        hook: the class of the hook.
        settings: what it is made with.

    Attributes:
        name: of the hook.
        counters: what it has been told; they may be read at any time.
        state: whether it is told anything.
        reason: why it is detached, else empty.
        is_stalled: packets wait for it, and it takes none (`look`).
        limit: what the queue holds at the most (bytes).
        drops_sessions: whether a packet that does not fit costs its session those that follow.
        put_bytes: what has ever gone into the queue (bytes).
        taken_bytes: what has ever left it.
    """

    def __init__(self, hook: type[PacketHook[Any]], settings: Struct) -> None:
        self.name = hook.name
        self.counters = Counters()
        self.state = State.RUNNING
        self.reason = ""
        self.is_stalled = False
        self._delivered = 0
        self._progress = 0.0
        self.limit = hook.queue_bytes
        self.drops_sessions = hook.overflow == "drop_session"
        # Two that only grow, because a thread that takes must not write what the data path writes.
        self.put_bytes = 0
        self.taken_bytes = 0
        self._hook = hook
        self._settings = settings
        self._feeds: set[Feed] = set()
        self._on_unused: Callable[[Runner], None] | None = None
        self._is_accepting = False
        self._is_flush_due = False
        self._untold = Throttled(log)
        self._ended = asyncio.Event()
        self._ended.set()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.name}, {self.state}>"

    @abstractmethod
    def start(self) -> None:
        """Start the hook, in a running event loop. Events are taken at once."""

    async def stop(self, timeout: float) -> None:  # noqa: ASYNC109 - what is left when it passes is dropped
        """Take no more events, let the hook have those in the queue, stop it.

        The sessions have been closed before: one that is still open is told nothing more.

        Args:
            timeout: seconds that the hook has for the queue; what is left then counts as dropped. After them
                it has `STOP_SECONDS` for its `PacketHook.stop`, and is left to itself or killed. A process
                that waits for a processor meanwhile has up to ten times as long for either.
        """
        if self.state is State.RUNNING:
            self.state = State.STOPPED
        self._shut()
        self._finish()
        if not await self._await_end(timeout):
            self._hurry()
            if not await self._await_end(STOP_SECONDS):
                log.warning("hook %s does not stop; it is given up", self.name)
                await self._give_up()
        self._drop_queue()

    def open(self, time: int, context: HookContext) -> Feed:
        """Begin a session. One that does not fit gets a feed as well, which counts what it drops."""
        feed = Feed(self, context)
        if self._is_accepting and self.put_bytes - self.taken_bytes + ITEM_BYTES <= self.limit:
            try:
                self.put(EventKind.OPEN, time, context)
            except Exception as error:  # noqa: BLE001 - what a plugin has put into the metadata cannot be encoded
                self._untold.warning("hook %s is not told of a session: %s", self.name, error)
            else:
                feed.is_open = feed.takes_packets = True
                self._feeds.add(feed)
        return feed

    def closed(self, feed: Feed) -> None:
        """Forget a feed."""
        self._feeds.discard(feed)
        self._tell_if_unused()

    def look(self) -> None:
        """Find out whether the hook is stalled, and log a change; to be called about once a second."""
        tallies = self.counters.inbound, self.counters.outbound
        delivered = sum(tally.delivered for tally in tallies)
        queued = sum(tally.queued for tally in tallies)
        now = time.monotonic()
        if delivered != self._delivered or not queued:
            self._delivered, self._progress = delivered, now
            if self.is_stalled:
                self.is_stalled = False
                log.warning("hook %s goes on", self.name)
        elif not self.is_stalled and now - self._progress >= STALL_SECONDS:
            self.is_stalled = True
            log.warning(
                "hook %s has taken no packet for %g s while %d wait; its queue drops what does not fit",
                self.name,
                STALL_SECONDS,
                queued,
            )

    def retire(self, on_unused: Callable[[Runner], None]) -> None:
        """Have `on_unused` called, once, when no session is open that the hook has been told of."""
        self._on_unused = on_unused
        self._tell_if_unused()

    def reinstate(self) -> None:
        """Take `retire` back."""
        self._on_unused = None

    def _tell_if_unused(self) -> None:
        if self._on_unused is not None and not self._feeds:
            tell, self._on_unused = self._on_unused, None
            tell(self)

    @abstractmethod
    def put(
        self,
        kind: EventKind,
        time: int,
        context: HookContext,
        direction: Direction = _INBOUND,
        data: bytes = b"",
        offset: int = 0,
        stats: SessionStats | None = None,
    ) -> None:
        """Put an event into the queue; its fields are those of `Event`."""

    @abstractmethod
    def _finish(self) -> None:
        """Have the hook stopped when the queue is empty; `_ended` is set then."""

    @abstractmethod
    def _hurry(self) -> None:
        """Have it stopped as soon as it is done with what it has in hand."""

    @abstractmethod
    async def _give_up(self) -> None:
        """Let go of a hook that does not stop."""

    @abstractmethod
    def _drop_queue(self) -> None:
        """Count what is on its way as dropped, and free it."""

    def _is_kept_waiting(self) -> bool:
        """Return whether the hook would go on if it had a processor."""
        return False

    async def _await_end(self, seconds: float) -> bool:
        """Wait for the hook's end, longer where the machine keeps the hook waiting; whether it came."""
        latest = time.monotonic() + _KEPT_WAITING * seconds
        while not await self._ends_within(seconds):
            if time.monotonic() >= latest or not self._is_kept_waiting():
                return False
            seconds = _LOOK_SECONDS
        return True

    async def _ends_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ended.wait()
        return self._ended.is_set()

    def _detach(self, reason: str) -> None:
        """Tell the hook nothing more."""
        if self.state is State.RUNNING:
            self.state = State.DETACHED
            self.reason = reason
            log.error("hook %s is told nothing more: %s", self.name, reason)
            self._shut()

    def _shut(self) -> None:
        """Put nothing into the queue any more: neither of the sessions there are, nor of new ones."""
        self._is_accepting = False
        for feed in self._feeds:
            feed.is_open = feed.takes_packets = False
        self._feeds.clear()


class Feed:
    """What one hook is told of one session.

    Attributes:
        is_open: the hook has been told that the session is open, and will be told that it is closed.
        takes_packets: what comes is put into the queue if it fits.
    """

    __slots__ = ("_context", "_inbound", "_outbound", "_runner", "is_open", "takes_packets")

    def __init__(self, runner: Runner, context: HookContext) -> None:
        self._runner = runner
        self._context = context
        self._inbound = runner.counters.inbound
        self._outbound = runner.counters.outbound
        self.is_open = False
        self.takes_packets = False

    def packet(self, time: int, direction: Direction, data: bytes, offset: int) -> None:
        """Put a packet into the queue, or count it as dropped."""
        runner = self._runner
        size = len(data)
        tally = self._inbound if direction is _INBOUND else self._outbound
        tally.seen += 1
        tally.seen_bytes += size
        if self.takes_packets:
            if runner.put_bytes - runner.taken_bytes + size + ITEM_BYTES <= runner.limit:
                runner.put(_PACKET, time, self._context, direction, data, offset)
                return
            self.takes_packets = not runner.drops_sessions
        tally.drop(size)

    def end(self, time: int, direction: Direction, offset: int) -> None:
        """Tell that a direction has ended, unless packets were dropped that the hook would take for sent.

        This always fits: a session has two.
        """
        if self.takes_packets:
            self._runner.put(EventKind.END, time, self._context, direction, b"", offset)

    def close(self, time: int, stats: SessionStats) -> None:
        """Tell that the session has ended, if the hook has been told that it is open. This always fits."""
        if self.is_open:
            self._runner.put(EventKind.CLOSE, time, self._context, _INBOUND, b"", 0, stats)
            self._runner.closed(self)
        self.is_open = self.takes_packets = False
