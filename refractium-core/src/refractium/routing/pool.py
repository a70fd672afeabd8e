"""A pool: the backends of one route, and the balancer that orders them for each connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from refractium.routing.backend import Backend


class Pool:
    """Hands out backends in turn (round robin).

    Args:
        label: what logs call it: the protocol's name, or ``fallback``.
        backends: at least one.
    """

    __slots__ = ("_next", "backends", "label")

    def __init__(self, label: str, backends: Sequence[Backend]) -> None:
        self.label = label
        self.backends = tuple(backends)
        self._next = 0

    def candidates(self) -> Iterator[Backend]:
        """Every backend once, beginning with the one whose turn it is."""
        backends = self.backends
        start = self._next
        self._next = (start + 1) % len(backends)
        yield from backends[start:]
        yield from backends[:start]
