"""The platforms on which Refractium serves."""

from __future__ import annotations

import select
import sys

ELSEWHERE = (
    f"refractium serves on Linux only: it needs epoll, which {sys.platform} lacks. On other systems you can "
    "write and test plugins, with refractium.contract, refractium.kit and refractium.testing."
)


def can_serve() -> bool:
    """Return whether this system has epoll, which the data path needs."""
    return hasattr(select, "epoll")
