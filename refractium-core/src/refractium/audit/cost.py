"""The processor time of a call, which a busy machine does not change."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

TIME_LAW: Final = 0.001
"""Processor time (s) that a call on the data path may take."""
_REPEATS: Final = 5


def cost_of(call: Callable[[], object]) -> float:
    """Return the processor time (s) of the fastest of several calls, by the clock of this thread.

    The first call may compile or cache something, and other programs may empty the caches of the processor.
    The fastest of five calls shows the call itself. The repetition ends at the first call within the law.
    """
    fastest = float("inf")
    for _ in range(_REPEATS):
        began = time.thread_time()
        call()
        fastest = min(fastest, time.thread_time() - began)
        if fastest <= TIME_LAW:
            break
    return fastest
