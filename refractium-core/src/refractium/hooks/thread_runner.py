"""The runner of a hook in its own thread.

The thread and the data path take turns, because only one thread runs Python at a time. Each system call of
the data path lets the hook's thread run. By default, a hook that computes keeps its turn for 5 ms
(`sys.getswitchinterval`). So the runner shortens this interval. After the thread has used the processor for a
while, it pauses for about the same time.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final

from refractium.contract import Direction, EventKind
from refractium.hooks.delivery import ITEM_BYTES, Delivery
from refractium.hooks.memory import keep_freed_memory
from refractium.hooks.runner import FLUSH_SECONDS, Runner

if TYPE_CHECKING:
    from collections.abc import Callable

    from msgspec import Struct

    from refractium.contract import HookContext, PacketHook, SessionStats
    from refractium.hooks.delivery import Item

_SWITCH_SECONDS: Final = 0.0001
"""Time (s) after which a thread that runs Python lets the data path run."""
_SLICE_SECONDS: Final = 0.0005
"""Seconds of processor time after which the thread pauses for as long as it used the processor."""
_LONGEST_PAUSE: Final = 0.1
"""Longest pause (s). Without this bound, a stop would wait through a long pause after a slow event."""


class ThreadRunner(Runner):
    """A runner that runs the hook in a daemon thread, so that no hook delays the exit of the interpreter."""

    def __init__(self, hook: type[PacketHook[Any]], settings: Struct) -> None:
        super().__init__(hook, settings)
        # Shared with the thread: the event loop appends, the thread pops, both by atomic operations.
        self._events: deque[Item] = deque()
        self._is_asleep = False
        self._wake_ups: SimpleQueue[None] = SimpleQueue()
        self._is_finishing = False

    def start(self) -> None:
        keep_freed_memory()
        self._loop = asyncio.get_running_loop()
        self._ended.clear()
        self._is_accepting = True
        sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_SECONDS))
        try:
            threading.Thread(target=self._run, name=f"hook {self.name}", daemon=True).start()
        except RuntimeError as error:  # the limit on threads is reached
            self._detach(f"it cannot be started: {error}")
            self._ended.set()

    def put(
        self,
        kind: EventKind,
        time: int,
        context: HookContext,
        direction: Direction = Direction.INBOUND,
        data: bytes = b"",
        offset: int = 0,
        stats: SessionStats | None = None,
    ) -> None:
        self.put_bytes += ITEM_BYTES + len(data)
        self._events.append((kind, time, context, direction, data, offset, stats))
        if not self._is_flush_due:
            self._is_flush_due = True
            self._loop.call_later(FLUSH_SECONDS, self._wake)

    def _wake(self) -> None:
        self._is_flush_due = False
        if self._is_asleep:
            self._is_asleep = False
            self._wake_ups.put(None)

    def _finish(self) -> None:
        self._is_finishing = True
        self._wake()

    def _hurry(self) -> None:
        self._drop_queue()

    async def _give_up(self) -> None:
        """Do nothing: a thread cannot be killed, and the queue of this thread is empty."""

    def _drop_queue(self) -> None:
        """Drop the queue. Events that the thread has removed from the queue do not count as dropped."""
        with suppress(IndexError):
            while True:
                kind, _, _, direction, data, _, _ = self._events.popleft()
                if kind is EventKind.PACKET:
                    self.counters.tally(direction).drop(len(data))

    # In the thread of the hook

    def _run(self) -> None:
        delivery = Delivery(self._hook, self._settings, self.counters)
        delivery.start()
        if not delivery.detached:
            self._deliver(delivery)
        if delivery.detached:
            self._tell(self._detached, delivery.detached)
        delivery.stop()
        self._tell(self._ended.set)

    def _deliver(self, delivery: Delivery) -> None:
        """Deliver events until the hook is detached, or until the runner stops and the queue is empty."""
        events = self._events
        rested = time.thread_time()
        while not delivery.detached:
            # Read the flag before the queue: after the flag is set, no event enters the queue.
            is_finishing = self._is_finishing
            if events:
                self.taken_bytes += delivery.take(events)
                if (used := time.thread_time() - rested) > _SLICE_SECONDS:
                    time.sleep(min(used, _LONGEST_PAUSE))
                    rested = time.thread_time()
            elif is_finishing:
                return
            else:
                self._is_asleep = True
                # The event loop does not wake the thread for events queued before `_is_asleep` was set.
                if not events and not self._is_finishing:
                    self._wake_ups.get()
                self._is_asleep = False

    def _tell(self, function: Callable[..., object], *args: object) -> None:
        """Call a function in the event loop."""
        with suppress(RuntimeError):  # the loop is closed, and nobody needs the call any more
            self._loop.call_soon_threadsafe(function, *args)

    # In the event loop again

    def _detached(self, reason: str) -> None:
        self._detach(reason)
        self._drop_queue()
