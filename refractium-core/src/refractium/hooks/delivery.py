"""Delivery of events to a hook, in the hook's thread or process.

The delivery catches all exceptions of the hook.
"""

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

    from refractium.hooks.counters import HookCounters

log = logging.getLogger(__name__)

Item: TypeAlias = tuple[EventKind, int, HookContext, Direction, bytes, int, SessionStats | None]
"""The fields of an `Event`, as a plain tuple, because a tuple takes less time to make. Only hooks with
`on_batch` get an `Event`."""

ITEM_BYTES: Final = 256
"""Bytes that a queue counts for an event in addition to the event's data: about the size of the event's
Python objects."""
FAILURES_IN_A_ROW: Final = 10
"""Number of exceptions, without a success between them, after which Refractium detaches a hook."""

_AT_ONCE: Final = 64
"""Largest number of events that one call of `Delivery.take` passes to the methods for single events."""
_BATCH: Final = 256
"""Largest number of events in one call of `on_batch`. With large batches, a hook that writes at the end of
each batch writes less often."""
_BATCH_BYTES: Final = 1 << 20
"""Size (bytes) at which a batch is full. Each event counts `ITEM_BYTES` in addition to its data."""
_INBOUND: Final = Direction.INBOUND
_OPEN: Final = EventKind.OPEN
_PACKET: Final = EventKind.PACKET
_CLOSE: Final = EventKind.CLOSE
_event: Final[Callable[[type[Event], Item], Event]] = tuple.__new__
"""A function that makes an `Event` from an `Item`, in half of the time of `Event._make`."""


class Delivery:
    """One instance of a hook, and the delivery of events to this instance.

    Args:
        hook: class of the hook.
        settings: settings for the instance.
        counters: counters that the delivery increases for each delivered packet and each failure.

    Attributes:
        detached: reason why the hook is detached; empty while the hook receives events.
    """

    def __init__(self, hook: type[PacketHook[Any]], settings: Struct, counters: HookCounters) -> None:
        self.counters = counters
        self.detached = ""
        self._type = hook
        self._settings = settings
        self._hook: PacketHook[Any] | None = None
        self._failures_in_a_row = 0
        self._throttled = Throttled(log)

    def start(self) -> None:
        """Create the hook and call its `start`. Detach the hook if one of the two calls raises."""
        try:
            hook = self._type(self._settings)
            hook.start()
            self._hook = hook
            self._on_batch = _overridden(hook, "on_batch")
            # Call only overridden methods: one that does nothing would count as a success between failures.
            self._on_open = _overridden(hook, "on_open")
            self._on_packet = _overridden(hook, "on_packet")
            self._on_close = _overridden(hook, "on_close")
        except BaseException as error:  # noqa: BLE001 - also SystemExit: no hook may end the proxy
            self.detached = f"it cannot be started: {_Described(error)}"

    def take(self, events: deque[Item]) -> int:
        """Deliver some of the events to the hook. Remove each event, and count it, before its delivery.

        Returns:
            The size of these events, as the queue counts it (bytes).
        """
        return self._take_batch(events) if self._on_batch else self._take_one_by_one(events)

    def stop(self) -> None:
        """Stop the hook if it was started. Stop a detached hook too, so that it releases its resources."""
        if self._hook is None:
            return
        try:
            self._hook.stop()
        except BaseException as error:  # noqa: BLE001 - no hook may end the proxy
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
            except BaseException as error:  # noqa: BLE001 - no hook may end the proxy
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
        if not batch:  # the event loop has emptied the queue meanwhile
            return freed
        try:
            self._on_batch(batch)
        except BaseException as error:  # noqa: BLE001 - no hook may end the proxy
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
    """Return a method of the hook, or None if the hook does not override this method."""
    found = getattr(hook, method)
    return None if getattr(found, "__func__", None) is getattr(PacketHook, method) else found


class _Described:
    """An exception as text for a log line, with file and line number.

    `str` makes the text, so a line that is not logged costs no time.
    """

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __str__(self) -> str:
        error = self._error
        try:
            what = f"{type(error).__name__}: {error}"
        except BaseException:  # noqa: BLE001 - converting the exception to text may raise, too
            what = type(error).__name__
        frames = traceback.extract_tb(error.__traceback__)
        return f"{what} ({frames[-1].filename}:{frames[-1].lineno})" if frames else what
