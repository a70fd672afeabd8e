"""The order in which the kernel kills processes when memory runs out (proc(5), oom_score_adj)."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

_ADJUSTMENT: Final = Path("/proc/self/oom_score_adj")
_MOST: Final = 1_000
HOOK: Final = 200
"""Points of the process of a hook, which is killed first, because only the hook's packets are lost."""
WORKER: Final = 100
"""Points of a worker, which is killed before its supervisor. The supervisor keeps the sockets and starts
another worker."""


def volunteer(points: int) -> None:
    """Raise this process's score, so that the kernel kills it before processes with fewer points.

    Every process may raise its own score. Without /proc nothing happens.

    Args:
        points: thousandths of all memory by which the process counts as larger than it is.
    """
    with suppress(OSError, ValueError):
        now = int(_ADJUSTMENT.read_text(encoding="ascii"))
        _ADJUSTMENT.write_text(str(min(_MOST, now + points)), encoding="ascii")
