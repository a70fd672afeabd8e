"""Half-closed connections: the limit on their silence, and how they make room for new connections.

A client that has gone looks like a client that has ended its sending side and waits for an answer. Both have
sent a FIN (RFC 9293 section 3.6). The difference shows only once the backend sends bytes. So the silence of a
half-closed connection has a shorter limit than the silence of other connections.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Final

from refractium.proxy.summary import Ended
from refractium.sockets.closing import unacknowledged, unreceived
from refractium.sockets.deadlines import Deadlines

if TYPE_CHECKING:
    import asyncio

    from refractium.proxy.weld import Weld

_ROOM_MS: Final = 5_000
"""Milliseconds of silence after which a half-closed connection makes room for a new connection."""


class HalfClose:
    """The limit on the silence of one half-closed connection.

    A connection whose bytes the kernel still delivers is not silent, although no event reports the bytes:

    - As long as the client has not received all bytes, the connection lasts until its idle timeout. So a
      client that pauses a download loses no byte.
    - While bytes wait for the backend, the backend must receive at least some of them.

    Args:
        weld: the half-closed weld.
        origin: the name under which `Limiter` counts the client; None for no name.
        timeout: the deadlines at which the connection ends.
        room: the half-closed connections that make room.

    Attributes:
        origin: see above.
    """

    __slots__ = ("_deadlines", "_left", "_room", "_since", "_timeout", "_weld", "origin")

    def __init__(self, weld: Weld, origin: str | None, timeout: Deadlines, room: Room) -> None:
        self._weld = weld
        self.origin = origin
        self._timeout = timeout
        self._room = room
        self._since = 0.0
        self._left = unreceived(weld.down.sock)
        self._deadlines = min(timeout, room.silence, key=lambda one: one.seconds)
        self._deadlines.add(self)

    def __repr__(self) -> str:
        return f"<HalfClose of {self._weld}>"

    @property
    def stamp(self) -> float:
        """Monotonic time (s) of the last known movement of bytes."""
        return max(self._weld.stamp, self._since)

    def expired(self) -> None:
        """After the first silence, begin to make room; after the whole timeout, end the connection."""
        if self._is_delivering():
            self._since = monotonic()
            self._deadlines.add(self)
        elif self._deadlines is self._timeout:
            self.end()
        else:
            self._room.add(self)
            self._deadlines = self._timeout
            self._deadlines.add(self)

    def crash(self) -> None:
        """End the connection at once after an internal error."""
        self._weld.crash()

    def end(self) -> None:
        """Reset both sides of the connection."""
        self._weld.abort(Ended.HALF_CLOSED)

    def discard(self) -> None:
        """Remove the deadline, because the connection has ended."""
        self._deadlines.discard(self)
        self._room.discard(self)

    def is_silent(self) -> bool:
        """Return whether the connection has been silent for long enough to make room for a new one.

        If it has not, measure the silence anew.
        """
        now = monotonic()
        if self._is_delivering():
            self._since = now
        if self.stamp + self._room.silence.seconds <= now:
            return True
        self.discard()
        self._deadlines = self._room.silence
        self._deadlines.add(self)
        return False

    def _is_delivering(self) -> bool:
        """Return whether bytes wait for the client, or the backend has received bytes since the last call."""
        up, down = self._weld.up, self._weld.down
        if down.held or (down.pipe is not None and down.pipe.count) or unacknowledged(up.sock):
            return True
        left = unreceived(down.sock)
        has_moved = left != self._left
        self._left = left
        return has_moved


class Room:
    """The silent half-closed connections of one engine, in the order in which their silence began.

    Args:
        loop: the event loop.

    Attributes:
        silence: the deadlines at which a half-closed connection begins to make room.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.silence = Deadlines(loop, _ROOM_MS)
        self._all: dict[HalfClose, None] = {}
        self._of: dict[str, dict[HalfClose, None]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def add(self, half: HalfClose) -> None:
        """Let a half-closed connection make room from now on."""
        self._all[half] = None
        if half.origin is not None:
            self._of.setdefault(half.origin, {})[half] = None

    def discard(self, half: HalfClose) -> None:
        """Let a half-closed connection no longer make room. The connection may be unknown."""
        self._all.pop(half, None)
        if half.origin is not None and (mine := self._of.get(half.origin)) is not None:
            mine.pop(half, None)
            if not mine:
                del self._of[half.origin]

    def make(self, origin: str | None) -> bool:
        """End the half-closed connection that has been silent for the longest time.

        Args:
            origin: the name of the clients whose connections may end (`Limiter.origin`); None for all.

        Returns:
            Whether a connection has ended.
        """
        those = self._all if origin is None else self._of.get(origin, {})
        while those:
            longest = next(iter(those))
            if longest.is_silent():
                longest.end()
                return True
        return False

    def close(self) -> None:
        """Cancel the timer, after all connections have ended."""
        self.silence.close()
