"""The code of a plugin that is slow, in a module of its own because the watchdog knows plugins by modules."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def compute(seconds: float, clock: Callable[[], float]) -> None:
    end = clock() + seconds
    while clock() < end:
        pass


def sleep(seconds: float, _clock: Callable[[], float]) -> None:
    time.sleep(seconds)


def call(
    way: Callable[[float, Callable[[], float]], None],
    seconds: float,
    clock: Callable[[], float],
    is_over: Callable[[], bool],
) -> None:
    """Block for at least `seconds` by `clock`, and at least until `is_over` returns True."""
    begun = clock()
    while not is_over():
        way(0.001, clock)
    way(max(0.0, begun + seconds - clock()), clock)
