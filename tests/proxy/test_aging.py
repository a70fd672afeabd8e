"""A connection settles once, a second after its start. A connection that ends earlier never settles."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING

import pytest

from refractium.proxy import aging
from refractium.proxy.aging import Aging
from support.clients import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(eq=False)
class One:
    """A connection that records the time at which it settles."""

    fails: bool = False
    started: float = field(default_factory=monotonic)
    settled: list[float] = field(default_factory=list)

    def settle(self) -> None:
        self.settled.append(monotonic())
        if self.fails:
            raise ValueError("on purpose")


class Ones:
    """Connections that age."""

    def __init__(self) -> None:
        self.open: dict[One, None] = {}
        self.aging = Aging(asyncio.get_running_loop(), lambda: reversed(self.open))

    def add(self, *, fails: bool = False) -> One:
        one = One(fails)
        self.open[one] = None
        if not self.aging.is_waiting:
            self.aging.begin()
        return one

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not holds():  # noqa: ASYNC110 - no event reports that a connection settles
                await asyncio.sleep(0.001)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aging, "AGE", 0.1)
    monkeypatch.setattr(aging, "_PAUSE", 0.02)


def test_each_connection_settles_once_and_then_there_is_no_timer() -> None:
    async def run() -> None:
        ones = Ones()
        added = []
        for _ in range(20):
            added.append(ones.add())
            await asyncio.sleep(0.01)
        await ones.until(lambda: not ones.aging.is_waiting)
        assert [len(one.settled) for one in added] == [1] * 20
        assert all(one.settled[0] - one.started >= 0.1 for one in added)
        assert sorted(added, key=lambda one: one.settled[0]) == added
        late = ones.add()
        await ones.until(lambda: not ones.aging.is_waiting)
        assert [len(one.settled) for one in (*added, late)] == [1] * 21

    asyncio.run(run())


def test_a_connection_that_ends_earlier_never_settles() -> None:
    async def run() -> None:
        ones = Ones()
        short, long = ones.add(), ones.add()
        del ones.open[short]
        await ones.until(lambda: not ones.aging.is_waiting)
        assert (short.settled, len(long.settled)) == ([], 1)

    asyncio.run(run())


def test_a_fault_concerns_only_one_connection(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        ones = Ones()
        broken, other = ones.add(fails=True), ones.add()
        await ones.until(lambda: not ones.aging.is_waiting)
        assert (len(broken.settled), len(other.settled)) == (1, 1)

    with caplog.at_level(logging.ERROR):
        asyncio.run(run())
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_a_closed_engine_has_no_timer() -> None:
    async def run() -> None:
        ones = Ones()
        one = ones.add()
        ones.aging.close()
        await asyncio.sleep(0.2)
        assert one.settled == []

    asyncio.run(run())
