"""The runner of a hook: it counts the events from the data path, and limits the size of their queue."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from refractium.contract import Direction, EventKind
from refractium.hooks.counters import HookCounters
from refractium.hooks.delivery import ITEM_BYTES
from refractium.throttle import Throttled

if TYPE_CHECKING:
    from collections.abc import Callable

    from msgspec import Struct

    from refractium.contract import HookContext, PacketHook, SessionStats

log = logging.getLogger(__name__)

FLUSH_SECONDS: Final = 0.001
"""Seconds for which a runner collects events before it wakes the hook. A wake-up costs a system call and a
switch to the hook's thread or process. So the runner does not wake the hook for every packet."""
STOP_SECONDS: Final = 1.0
"""Seconds that `PacketHook.stop` may take."""
STALL_SECONDS: Final = 5.0
"""Seconds without a delivery, while packets wait, after which a hook counts as stalled."""
LOOK_SECONDS: Final = 0.1
"""Seconds between two checks of whether an overdue hook waits for a processor."""
EXTRA_SECONDS: Final = 4.0
"""Additional seconds for a hook that waits for a processor, once for its queue and once for its stop. The
program must still end before a service manager kills the program."""

_INBOUND: Final = Direction.INBOUND
_PACKET: Final = EventKind.PACKET


class RunnerState(StrEnum):
    """State of a hook. Only the queue of a running hook accepts new events."""

    RUNNING = "running"
    DETACHED = "detached"
    """The hook could not be started, has failed too often, or its process has died too often."""
    STOPPED = "stopped"


class Runner(ABC):
    """The runner of one hook, which runs the hook in a thread or a process of its own.

    All methods of the runner run in the event loop's thread.

    Only `stop` waits for the hook. No method raises an exception of the hook.

    Args:
        hook: class of the hook.
        settings: settings for the instance.

    Attributes:
        name: name of the hook.
        counters: counters of the hook, which may be read at any time.
        state: state of the hook.
        reason: reason why the hook is detached; else empty.
        is_stalled: whether packets wait, but the hook has taken no packet for `STALL_SECONDS` (see `look`).
        queue_bytes: limit on the size of the queue (bytes).
        drops_sessions: whether feeds drop the rest of a session after a packet that does not fit.
        put_bytes: total bytes put into the queue.
        taken_bytes: total bytes removed from the queue.
    """

    def __init__(self, hook: type[PacketHook[Any]], settings: Struct) -> None:
        self.name = hook.name
        self.counters = HookCounters()
        self.state = RunnerState.RUNNING
        self.reason = ""
        self.is_stalled = False
        self._delivered = 0
        self._progress = 0.0
        self.queue_bytes = hook.queue_bytes
        self.drops_sessions = hook.overflow == "drop_session"
        # Two counters, because the hook's thread must not write a counter that the data path writes.
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
        """Start the hook, in a running event loop. The queue accepts events at once."""

    async def stop(self, timeout: float) -> None:  # noqa: ASYNC109 - a timeout drops the rest of the queue
        """Accept no more events, let the hook process its queue, and stop the hook.

        The caller must close the sessions first. The hook receives no more events of a session that is still
        open.

        Args:
            timeout: time for the hook to process its queue (s). Packets that remain count as dropped. Then
                `PacketHook.stop` may take `STOP_SECONDS`. After that, the runner abandons the hook's thread,
                or kills the hook's process. A process that waits for a processor may take `EXTRA_SECONDS`
                more for its queue, and again for its stop.
        """
        if self.state is RunnerState.RUNNING:
            self.state = RunnerState.STOPPED
        self._shut()
        self._finish()
        if not await self._await_end(timeout):
            self._hurry()
            if not await self._await_end(STOP_SECONDS):
                log.warning("hook %s does not stop and is abandoned", self.name)
                await self._give_up()
        self._drop_queue()

    def open(self, time: int, context: HookContext) -> Feed:
        """Begin a session. If the queue cannot take the session, the returned feed drops every packet."""
        feed = Feed(self, context)
        if self._is_accepting and self.put_bytes - self.taken_bytes + ITEM_BYTES <= self.queue_bytes:
            try:
                self.put(EventKind.OPEN, time, context)
            except Exception as error:  # noqa: BLE001 - a plugin's metadata may be impossible to encode
                self._untold.warning("hook %s misses a session that cannot be encoded: %s", self.name, error)
            else:
                feed.is_open = feed.takes_packets = True
                self._feeds.add(feed)
        return feed

    def closed(self, feed: Feed) -> None:
        """Remove the feed of a session that has ended."""
        self._feeds.discard(feed)
        self._tell_if_unused()

    def look(self) -> None:
        """Check whether the hook is stalled, and log a change. Call this method about once a second."""
        tallies = self.counters.inbound, self.counters.outbound
        delivered = sum(tally.delivered for tally in tallies)
        queued = sum(tally.queued for tally in tallies)
        now = time.monotonic()
        if delivered != self._delivered or not queued:
            self._delivered, self._progress = delivered, now
            if self.is_stalled:
                self.is_stalled = False
                log.warning("hook %s takes packets again", self.name)
        elif not self.is_stalled and now - self._progress >= STALL_SECONDS:
            self.is_stalled = True
            log.warning(
                "hook %s has taken no packet for %g s while %d packets wait; its queue drops packets that do"
                " not fit",
                self.name,
                STALL_SECONDS,
                queued,
            )

    def retire(self, on_unused: Callable[[Runner], None]) -> None:
        """Call `on_unused` once, as soon as the hook has no open session."""
        self._on_unused = on_unused
        self._tell_if_unused()

    def reinstate(self) -> None:
        """Cancel `retire`."""
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
        """Put an event into the queue. The arguments are the fields of `Event`."""

    @abstractmethod
    def _finish(self) -> None:
        """Let the hook stop when its queue is empty. After the stop, the subclass sets `_ended`."""

    @abstractmethod
    def _hurry(self) -> None:
        """Drop all waiting events, so that the hook stops after its present call."""

    @abstractmethod
    async def _give_up(self) -> None:
        """Abandon a hook that does not stop."""

    @abstractmethod
    def _drop_queue(self) -> None:
        """Count all waiting packets as dropped, and free their memory."""

    def _is_kept_waiting(self) -> bool:
        """Return whether the hook only waits for a processor."""
        return False

    async def _await_end(self, seconds: float) -> bool:
        """Wait for the end of the hook, and return whether the hook has ended.

        The wait lasts up to `seconds`, and up to `EXTRA_SECONDS` longer while the hook waits for a processor.
        """
        latest = time.monotonic() + seconds + EXTRA_SECONDS
        while not await self._ends_within(seconds):
            if time.monotonic() >= latest or not self._is_kept_waiting():
                return False
            seconds = LOOK_SECONDS
        return True

    async def _ends_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ended.wait()
        return self._ended.is_set()

    def _detach(self, reason: str) -> None:
        """Send the hook no more events, and log the reason."""
        if self.state is RunnerState.RUNNING:
            self.state = RunnerState.DETACHED
            self.reason = reason
            log.error("hook %s detached: %s", self.name, reason)
            self._shut()

    def _shut(self) -> None:
        """Close the queue: accept no more events of present sessions, and no new sessions."""
        self._is_accepting = False
        for feed in self._feeds:
            feed.is_open = feed.takes_packets = False
        self._feeds.clear()


class Feed:
    """The connection between one session and the queue of one hook.

    Attributes:
        is_open: whether the hook received the beginning of the session. If so, it also receives the end.
        takes_packets: whether the feed queues packets for which the queue has room.
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
            if runner.put_bytes - runner.taken_bytes + size + ITEM_BYTES <= runner.queue_bytes:
                runner.put(_PACKET, time, self._context, direction, data, offset)
                return
            self.takes_packets = not runner.drops_sessions
        tally.drop(size)

    def end(self, time: int, direction: Direction, offset: int) -> None:
        """Report the end of a direction, unless the feed drops the rest of the session.

        If the feed drops the rest, the hook must not see this event, because the stream would look complete.
        The event may make the queue exceed `Runner.queue_bytes`, because a session has only two such events.
        """
        if self.takes_packets:
            self._runner.put(EventKind.END, time, self._context, direction, b"", offset)

    def close(self, time: int, stats: SessionStats) -> None:
        """Report the end of a session, if the hook received its beginning.

        The event may make the queue exceed `Runner.queue_bytes`.
        """
        if self.is_open:
            self._runner.put(EventKind.CLOSE, time, self._context, _INBOUND, b"", 0, stats)
            self._runner.closed(self)
        self.is_open = self.takes_packets = False
