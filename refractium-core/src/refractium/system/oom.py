"""The order in which the kernel kills processes when memory runs out (proc(5), oom_score_adj)."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

_ADJUSTMENT: Final = Path("/proc/self/oom_score_adj")
_MOST: Final = 1_000
HOOK: Final = 200
"""Points that the process of a hook adds to its ``oom_score_adj``.

No other process of Refractium has more points, so the kernel kills this process first, and only the hook's
packets are lost.
"""
WORKER: Final = 100
"""Points that a worker adds to its ``oom_score_adj``.

The supervisor gets no points, so that the kernel kills a worker before the supervisor, which keeps the
sockets and starts another worker.
"""


def volunteer(points: int) -> None:
    """Raise this process's score, so that the kernel kills this process before others with fewer points.

    Every process may raise its own score. Without /proc the function does nothing.

    Args:
        points: number to add to the score. One point raises the score as
            much as the use of a thousandth of all memory.
    """
    with suppress(OSError, ValueError):
        now = int(_ADJUSTMENT.read_text(encoding="ascii"))
        _ADJUSTMENT.write_text(str(min(_MOST, now + points)), encoding="ascii")
