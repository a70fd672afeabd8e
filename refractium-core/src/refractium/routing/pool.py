"""A pool: the backends of one route, and the balancer that orders them for each connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from refractium.routing.backend import Backend, SocketAddress


class Pool:
    """Hands out backends in turn (round robin).

    Args:
        label: what logs call it: the protocol's name, or ``fallback``.
        backends: at least one.
        session_timeout_ms: how long a UDP session may be silent (ms), where it is not as everywhere else.
    """

    __slots__ = ("_next", "backends", "label", "session_timeout_ms")

    def __init__(
        self, label: str, backends: Sequence[Backend], session_timeout_ms: int | None = None
    ) -> None:
        self.label = label
        self.backends = tuple(backends)
        self.session_timeout_ms = session_timeout_ms
        self._next = 0

    def targets(self) -> Iterator[tuple[Backend, SocketAddress]]:
        """Every address of every backend, in the order in which to try them."""
        for backend in self.candidates():
            for target in backend.socket_addresses:
                yield backend, target

    def candidates(self) -> Iterator[Backend]:
        """Every backend once, beginning with the one whose turn it is."""
        backends = self.backends
        start = self._next
        self._next = (start + 1) % len(backends)
        yield from backends[start:]
        yield from backends[:start]
