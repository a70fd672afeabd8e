"""`refractium.testing.hooks.run_hook`, as the author of a hook uses it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from msgspec import Struct

from refractium.contract import (
    Direction,
    Event,
    EventKind,
    HookContext,
    NoSettings,
    PacketHook,
    SessionStats,
    Transport,
    define_hook,
)
from refractium.testing.hooks import run_hook

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class CountBytes(PacketHook[NoSettings]):
    name = "count-bytes"
    total = 0
    calls: tuple[str, ...] = ()

    def start(self) -> None:
        self.calls += ("start",)

    def on_open(self, context: HookContext) -> None:
        self.calls += (f"open {context.protocol} {context.transport} {context.metadata}",)

    def on_packet(self, context: HookContext, direction: Direction, data: bytes) -> None:
        assert context.session
        self.calls += (direction,)
        self.total += len(data)

    def on_close(self, context: HookContext, stats: SessionStats) -> None:
        assert context.session
        self.calls += (f"close {stats.inbound} {stats.outbound} {stats.ended}",)

    def stop(self) -> None:
        self.calls += ("stop",)


def test_a_hook_sees_one_session() -> None:
    hook = run_hook(CountBytes, inbound=[b"GET / HTTP/1.1\r\n\r\n"], outbound=[b"HTTP/1.1 404 "])
    assert hook.total == 31
    assert hook.calls == ("start", "open http tcp {}", "inbound", "outbound", "close 18 13 closed", "stop")


def test_the_properties_of_the_session_can_be_given() -> None:
    hook = run_hook(CountBytes, protocol="dns", metadata={"host": "a"}, transport=Transport.UDP, ended="idle")
    assert hook.calls == ("start", "open dns udp {'host': 'a'}", "close 0 0 idle", "stop")


class Limits(Struct, frozen=True, forbid_unknown_fields=True):
    most: int = 5


class Batched(PacketHook[Limits]):
    name = "batched"
    settings_type = Limits
    isolation = "process"

    @classmethod
    def problems(cls, settings: Limits) -> Iterable[tuple[str, str]]:
        if settings.most < 1:
            yield "most", "must be positive"

    def on_batch(self, events: Sequence[Event]) -> None:
        self.events = list(events)


def test_a_hook_of_batches_gets_one_batch_with_times_and_offsets() -> None:
    hook = run_hook(Batched, inbound=[b"ab", b"c"], outbound=[b"d"], settings=Limits(most=2))
    assert hook.settings.most == 2
    assert [(e.kind, e.direction, e.data, e.offset) for e in hook.events[1:-1]] == [
        (EventKind.PACKET, Direction.INBOUND, b"ab", 0),
        (EventKind.PACKET, Direction.INBOUND, b"c", 2),
        (EventKind.END, Direction.INBOUND, b"", 3),
        (EventKind.PACKET, Direction.OUTBOUND, b"d", 0),
        (EventKind.END, Direction.OUTBOUND, b"", 1),
    ]
    assert hook.events[0].kind is EventKind.OPEN
    assert hook.events[-1].stats is not None
    times = [event.time for event in hook.events]
    assert times == sorted(set(times))


def test_datagrams_have_no_end() -> None:
    hook = run_hook(Batched, inbound=[b"a"], transport=Transport.UDP)
    assert [event.kind for event in hook.events] == [EventKind.OPEN, EventKind.PACKET, EventKind.CLOSE]


def test_settings_that_the_hook_refuses_are_reported() -> None:
    with pytest.raises(AssertionError, match="most: must be positive"):
        run_hook(Batched, settings=Limits(most=0))


def test_an_object_that_is_not_a_hook_is_refused() -> None:
    class Wrong(PacketHook[Any]):
        name = "Wrong Name"

    with pytest.raises(AssertionError, match="Wrong Name"):
        run_hook(Wrong)


def test_an_exception_of_the_hook_reaches_the_caller() -> None:
    @define_hook("raising")
    def raising(context: HookContext, direction: Direction, data: bytes) -> None:
        raise LookupError(f"{context.protocol} {direction} {data.decode()}")

    with pytest.raises(LookupError, match=r"^http inbound x$"):
        run_hook(raising, inbound=[b"x"])
