"""The level-triggered watching of a bound socket, which continues after any fault."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from refractium.sockets.reactor import IN

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Callable

    from refractium.sockets.reactor import Reactor

PAUSE: Final = 0.1
"""Seconds of a pause after the machine has run out of a resource, and of the first pause after an internal
error. Without a pause, the handler would fail 200,000 times a second."""
_LONGEST_PAUSE: Final = 5.0
"""Longest pause (s) after an internal error, when one internal error follows another."""

_CALM: Final = 4 * _LONGEST_PAUSE
"""Seconds without a fault after which earlier faults no longer lengthen a pause."""


class Watching:
    """The watching of a bound socket: a handler receives the events, and a pause follows each fault.

    The owner of the handler calls `rest` from its `crash`, so that a fault only costs a pause.

    Args:
        reactor: the source of events.
        sock: a bound socket.
        handler: a bound method of an `Owner`.

    Attributes:
        why_paused: the reason for the current pause; empty while the socket is watched.
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
        return f"<Watching for {self._handler.__self__}>"  # type: ignore[attr-defined]

    def pause(self, why: str, seconds: float | None = None) -> None:
        """Stop watching for a number of seconds, `PAUSE` by default."""
        if self._pause is not None or self._is_over:
            return
        self.why_paused = why
        # The timer comes first, so that the socket is watched again even if `unwatch` fails.
        self._pause = self._reactor.later(PAUSE if seconds is None else seconds, self._resume)
        self._reactor.unwatch(self._sock)

    def rest(self) -> None:
        """Pause after a fault.

        A fault within `_CALM` seconds after the previous fault doubles the pause, up to `_LONGEST_PAUSE`.
        """
        now = self._reactor.now
        if now > self._forget_at:
            self._faults = 0
        self._forget_at = now + _CALM
        seconds = min(PAUSE * 2**self._faults, _LONGEST_PAUSE)
        self._faults += 1
        self.pause("internal error, see the log", seconds)

    def stop(self) -> None:
        """Stop watching at once, and never resume."""
        self._is_over = True
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        self._reactor.unwatch(self._sock)

    def crash(self) -> None:
        """Pause again, because the attempt to resume watching has failed."""
        self.rest()

    def _resume(self) -> None:
        self._pause = None
        self._reactor.watch(self._sock, IN, self._handler)
        self.why_paused = ""
