"""Level-triggered watching of a bound socket, which goes on whatever fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from refractium.sockets.reactor import IN

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Callable

    from refractium.sockets.reactor import Reactor

PAUSE: Final = 0.1
"""Seconds without events after the machine has run out of something: it would fail 200,000 times a second."""
_LONGEST_PAUSE: Final = 5.0
"""Seconds between attempts at the most, while one after the other fails."""

_CALM: Final = 4 * _LONGEST_PAUSE
"""Seconds without a fault after which those before it are forgotten."""


class Watching:
    """Calls a handler while a bound socket has something, with pauses where that fails.

    The owner of the handler calls `rest` from its `crash`, so that a fault costs a pause only.

    Args:
        reactor: the source of events.
        sock: a bound socket.
        handler: a bound method of an `Owner`.

    Attributes:
        why_paused: the reason for the pause under way; empty while the socket is watched.
    """

    def __init__(self, reactor: Reactor, sock: socket.socket, handler: Callable[[int], None]) -> None:
        self._reactor = reactor
        self._sock = sock
        self._handler = handler
        self._pause: asyncio.TimerHandle | None = None
        self._faults = 0
        self._forget_at = float("-inf")
        self._is_over = False
        self.why_paused = ""
        reactor.watch(sock, IN, handler)

    def __repr__(self) -> str:
        return f"<Watching for {self._handler.__self__!r}>"  # type: ignore[attr-defined]

    def pause(self, why: str, seconds: float | None = None) -> None:
        """Stop watching for some seconds, `PAUSE` by default."""
        if self._pause is not None or self._is_over:
            return
        self.why_paused = why
        # The timer comes first: the socket is watched again even if the kernel fails to take it out.
        self._pause = self._reactor.later(PAUSE if seconds is None else seconds, self._resume)
        self._reactor.unwatch(self._sock)

    def rest(self) -> None:
        """Pause after a fault, twice as long after each that follows soon."""
        now = self._reactor.now
        if now > self._forget_at:
            self._faults = 0
        self._forget_at = now + _CALM
        seconds = min(PAUSE * 2**self._faults, _LONGEST_PAUSE)
        self._faults += 1
        self.pause("it failed, see the log", seconds)

    def stop(self) -> None:
        """Stop watching for good, now."""
        self._is_over = True
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        self._reactor.unwatch(self._sock)

    def crash(self) -> None:
        """Watching again has failed: try again later."""
        self.rest()

    def _resume(self) -> None:
        self._pause = None
        self._reactor.watch(self._sock, IN, self._handler)
        self.why_paused = ""
