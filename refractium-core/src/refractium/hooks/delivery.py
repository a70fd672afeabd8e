"""Hands events to a hook, in the thread or process where it runs, and survives whatever it raises."""

from __future__ import annotations

import logging
import traceback
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from refractium.contract import Direction, Event, EventKind, HookContext, PacketHook, SessionStats
from refractium.throttle import Throttled

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable

    from msgspec import Struct

    from refractium.hooks.counters import Counters

log = logging.getLogger(__name__)

Item: TypeAlias = tuple[EventKind, int, HookContext, Direction, bytes, int, SessionStats | None]
"""The fields of an `Event`. It is made one only for a hook that wants it: that costs more than a tuple."""

ITEM_BYTES: Final = 256
"""What an event counts in a queue, beside its data: about what its objects take."""
FAILURES_IN_A_ROW: Final = 10
"""After as many without a success between them a hook is detached."""

_AT_ONCE: Final = 64
"""The most events that are taken off the queue in one go."""
_BATCH: Final = 256
"""The same of a hook that takes batches. What it does at the end of each, a write, is done less often."""
_BATCH_BYTES: Final = 1 << 20
"""What they count in the queue, after which there are enough of them."""
_INBOUND: Final = Direction.INBOUND
_OPEN: Final = EventKind.OPEN
_PACKET: Final = EventKind.PACKET
_CLOSE: Final = EventKind.CLOSE
_event: Final[Callable[[type[Event], Item], Event]] = tuple.__new__
"""What `Event._make` does, in half of its time."""


class Delivery:
    """One instance of a hook.

    Args:
        hook: its class.
        settings: what the instance is made with.
        counters: where ``delivered`` and `Counters.failures` are counted.

    Attributes:
        detached: why the hook is told nothing more; empty while it is told.
    """

    def __init__(self, hook: type[PacketHook[Any]], settings: Struct, counters: Counters) -> None:
        self.counters = counters
        self.detached = ""
        self._type = hook
        self._settings = settings
        self._hook: PacketHook[Any] | None = None
        self._failures_in_a_row = 0
        self._throttled = Throttled(log)

    def start(self) -> None:
        """Make the hook and start it; if that raises, it is detached."""
        try:
            hook = self._type(self._settings)
            hook.start()
        except BaseException as error:  # noqa: BLE001 - SystemExit too: nothing that a hook does ends the proxy
            self.detached = f"it cannot be started: {_Described(error)}"
            return
        self._hook = hook
        self._on_batch = _overridden(hook, "on_batch")
        # A method that does nothing is not called, so it is no success between failures either.
        self._on_open = _overridden(hook, "on_open")
        self._on_packet = _overridden(hook, "on_packet")
        self._on_close = _overridden(hook, "on_close")

    def take(self, events: deque[Item]) -> int:
        """Hand over some of the events. Each leaves the queue, and is counted, before the hook sees it.

        Returns:
            What they have counted in the queue (bytes).
        """
        return self._take_batch(events) if self._on_batch else self._take_one_by_one(events)

    def stop(self) -> None:
        """Stop the hook, if it was started; a detached one too, so that it lets go of what it holds."""
        if self._hook is None:
            return
        try:
            self._hook.stop()
        except BaseException as error:  # noqa: BLE001 - as above
            log.warning("hook %s failed when it was stopped: %s", self._type.name, _Described(error))

    def _take_one_by_one(self, events: deque[Item]) -> int:
        freed = 0
        counters = self.counters
        for _ in range(_AT_ONCE):
            try:
                kind, _time, context, direction, data, _offset, stats = events.popleft()
            except IndexError:
                break
            freed += ITEM_BYTES + len(data)
            try:
                if kind is _PACKET:
                    tally = counters.inbound if direction is _INBOUND else counters.outbound
                    tally.delivered += 1
                    tally.delivered_bytes += len(data)
                    if not self._on_packet:
                        continue
                    self._on_packet(context, direction, data)
                elif kind is _OPEN and self._on_open:
                    self._on_open(context)
                elif kind is _CLOSE and self._on_close:
                    self._on_close(context, stats)
                else:
                    continue
            except BaseException as error:  # noqa: BLE001 - as above
                self._failed(error)
                if self.detached:
                    break
            else:
                self._failures_in_a_row = 0
        return freed

    def _take_batch(self, events: deque[Item]) -> int:
        freed = 0
        batch: list[Event] = []
        inbound, outbound = self.counters.inbound, self.counters.outbound
        for _ in range(_BATCH):
            try:
                item = events.popleft()
            except IndexError:
                break
            kind, _time, _context, direction, data, _offset, _stats = item
            size = len(data)
            freed += ITEM_BYTES + size
            if kind is _PACKET:
                tally = inbound if direction is _INBOUND else outbound
                tally.delivered += 1
                tally.delivered_bytes += size
            batch.append(_event(Event, item))
            if freed >= _BATCH_BYTES:
                break
        if not batch:  # somebody has dropped what was in the queue
            return freed
        try:
            self._on_batch(batch)
        except BaseException as error:  # noqa: BLE001 - as above
            self._failed(error)
        else:
            self._failures_in_a_row = 0
        return freed

    def _failed(self, error: BaseException) -> None:
        self.counters.failures += 1
        self._failures_in_a_row += 1
        if self._failures_in_a_row < FAILURES_IN_A_ROW:
            self._throttled.warning("hook %s failed: %s", self._type.name, _Described(error))
        else:
            self.detached = f"it has failed {FAILURES_IN_A_ROW} times in a row: {_Described(error)}"


def _overridden(hook: PacketHook[Any], method: str) -> Any:
    """A method of the hook, or None if it is the one that does nothing."""
    found = getattr(hook, method)
    return None if getattr(found, "__func__", None) is getattr(PacketHook, method) else found


class _Described:
    """An exception as a log line tells it: what, and where. Made text only where it is written."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __str__(self) -> str:
        error = self._error
        try:
            what = f"{type(error).__name__}: {error}"
        except Exception:  # noqa: BLE001 - its own text fails as well
            what = type(error).__name__
        frames = traceback.extract_tb(error.__traceback__)
        return f"{what} ({frames[-1].filename}:{frames[-1].lineno})" if frames else what
