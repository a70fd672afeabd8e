"""Which process the kernel kills when memory runs out (proc(5), oom_score_adj)."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

_ADJUSTMENT: Final = Path("/proc/self/oom_score_adj")
_MOST: Final = 1_000
HOOK: Final = 200
"""The process of a hook is killed first: nothing but its packets are lost."""
WORKER: Final = 100
"""A worker before its supervisor, which starts another one and keeps the sockets meanwhile."""


def volunteer(points: int) -> None:
    """Make the kernel choose this process before those that have not volunteered for as much.

    Every process may raise its own score; where there is no /proc nothing happens.

    Args:
        points: thousandths of all memory, by which the process counts as larger than it is.
    """
    with suppress(OSError, ValueError):
        now = int(_ADJUSTMENT.read_text(encoding="ascii"))
        _ADJUSTMENT.write_text(str(min(_MOST, now + points)), encoding="ascii")
