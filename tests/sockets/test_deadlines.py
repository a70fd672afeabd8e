"""Timeouts: on time, cheap, and a fault of one object affects no other."""

from __future__ import annotations

import heapq
from itertools import count
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refractium.sockets import deadlines
from refractium.sockets.deadlines import Deadlines

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator


class Clock:
    """An event loop and a clock in one; its time passes only in `advance`."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.fired = 0
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._cancelled: set[int] = set()
        self._number = count()

    def monotonic(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        number = next(self._number)
        heapq.heappush(self._timers, (self.now + delay, number, callback))
        return Timer(self, number)

    def cancel(self, number: int) -> None:
        self._timers = [timer for timer in self._timers if timer[1] != number]
        heapq.heapify(self._timers)

    @property
    def timers(self) -> int:
        return len(self._timers)

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while self._timers and self._timers[0][0] <= end:
            self.now, _, callback = heapq.heappop(self._timers)
            self.fired += 1
            callback()
        self.now = end


class Timer:
    def __init__(self, clock: Clock, number: int) -> None:
        self._clock = clock
        self._number = number

    def cancel(self) -> None:
        self._clock.cancel(self._number)


class Thing:
    """An object with a timeout that records when it expires."""

    def __init__(self, clock: Clock, then: Callable[[], object] = lambda: None) -> None:
        self._clock = clock
        self._then = then
        self.stamp = clock.now
        self.expired_at: list[float] = []
        self.crashed = False

    def expired(self) -> None:
        self.expired_at.append(self._clock.now)
        self._then()

    def crash(self) -> None:
        self.crashed = True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(deadlines, "time", clock)
    return cast("Any", clock)  # type: ignore[no-any-return]


def make(clock: Clock, timeout_ms: int = 1000) -> Deadlines:
    return Deadlines(cast("asyncio.AbstractEventLoop", clock), timeout_ms)


LATE = 0.007
"""Seconds by which a timeout of one second may be late."""


def test_each_object_expires_once_at_its_own_time(clock: Clock) -> None:
    waiting = make(clock)
    things = []
    for _ in range(50):
        things.append(Thing(clock))
        waiting.add(things[-1])
        clock.advance(0.013)
    clock.advance(5)
    for thing in things:
        (at,) = thing.expired_at
        assert 1 <= at - thing.stamp <= 1 + LATE
    assert len(waiting) == clock.timers == 0


def test_a_discarded_object_never_expires(clock: Clock) -> None:
    waiting = make(clock)
    kept, discarded = Thing(clock), Thing(clock)
    waiting.add(kept)
    waiting.add(discarded)
    waiting.discard(discarded)
    waiting.discard(discarded)
    clock.advance(5)
    assert kept.expired_at
    assert not discarded.expired_at


def test_a_later_stamp_postpones_one_timeout_and_delays_no_other(clock: Clock) -> None:
    waiting = make(clock)
    active = Thing(clock)
    waiting.add(active)
    others = []
    for _ in range(20):
        clock.advance(0.1)
        active.stamp = clock.now
        others.append(Thing(clock))
        waiting.add(others[-1])
    assert not active.expired_at
    active.stamp = clock.now
    for _ in range(20):
        clock.advance(0.1)
        others.append(Thing(clock))
        waiting.add(others[-1])
    assert 1 <= active.expired_at[0] - active.stamp <= 1 + LATE
    clock.advance(5)
    assert all(1 <= one.expired_at[0] - one.stamp <= 1 + LATE for one in others)


def test_a_fault_ends_only_its_owner(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    waiting = make(clock)
    bad, good = Thing(clock, lambda: 1 / 0), Thing(clock)
    waiting.add(bad)
    waiting.add(good)
    clock.advance(2)
    assert bad.crashed
    assert good.expired_at
    assert not good.crashed
    assert "ZeroDivisionError" in caplog.text


def test_an_expiring_object_may_discard_another_and_set_a_new_deadline(clock: Clock) -> None:
    waiting = make(clock)
    doomed = Thing(clock)

    def again() -> None:
        waiting.discard(doomed)
        if len(first.expired_at) < 3:
            first.stamp = clock.now
            waiting.add(first)

    first = Thing(clock, again)
    waiting.add(first)
    waiting.add(doomed)
    clock.advance(10)
    assert len(first.expired_at) == 3
    assert not doomed.expired_at


def test_an_object_with_an_old_stamp_expires_at_once(clock: Clock) -> None:
    waiting = make(clock)
    late = Thing(clock)
    late.stamp -= 100
    waiting.add(late)
    clock.advance(LATE)
    assert late.expired_at


def test_close_forgets_all_objects(clock: Clock) -> None:
    waiting = make(clock)
    thing = Thing(clock)
    waiting.add(thing)
    waiting.close()
    assert clock.timers == 0
    clock.advance(5)
    assert not thing.expired_at


@pytest.mark.parametrize("timeout_ms", [1, 100, 60_000, 3_600_000])
def test_the_timer_fires_a_bounded_number_of_times_for_any_number_of_objects(
    clock: Clock, timeout_ms: int
) -> None:
    waiting = make(clock, timeout_ms)
    things = [Thing(clock) for _ in range(5000)]
    for thing in things:
        waiting.add(thing)
        clock.advance(timeout_ms / 1000 / 5000)
    clock.advance(timeout_ms / 1000 * 2 + 0.01)
    assert all(thing.expired_at for thing in things)
    assert clock.fired <= 300


@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "discard", "touch", "pass"]), st.integers(0, 5), st.floats(0, 0.7)),
        max_size=60,
    )
)
def test_any_sequence_of_calls_keeps_all_guarantees(steps: list[tuple[str, int, float]]) -> None:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deadlines, "time", clock)
        waiting = make(clock)
        things = [Thing(clock) for _ in range(6)]
        expected: set[int] = set()
        for what, which, seconds in steps:
            thing = things[which]
            expected -= {number for number, one in enumerate(things) if one.expired_at}
            if what == "add" and which not in expected:
                thing.stamp = clock.now
                thing.expired_at.clear()
                waiting.add(thing)
                expected.add(which)
            elif what == "discard":
                waiting.discard(thing)
                expected.discard(which)
            elif what == "touch" and which in expected:
                thing.stamp = clock.now
            clock.advance(seconds)
            for number in expected:
                overdue = clock.now - things[number].stamp - 1
                assert overdue <= LATE or things[number].expired_at
            for one in things:
                assert not one.expired_at or 1 <= one.expired_at[0] - one.stamp <= 1 + LATE
            assert clock.timers <= 1
