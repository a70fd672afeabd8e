"""What goes between the proxy and the process of a hook, over two pipes.

To the child: frames, each a header and a body (`HEADER`). The first is a `Start`, then come events: of
`EventKind.OPEN` the body is the `HookContext`, of `EventKind.PACKET` the data, of `EventKind.CLOSE` the
`SessionStats`. The end of the pipe is the end of the events.

From the child: lines of JSON, each a `Report`. Structs in frames are MessagePack.
"""

from __future__ import annotations

import signal
import struct
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from refractium.contract import Direction, EventKind, HookContext, SessionStats

if TYPE_CHECKING:
    from collections import deque

    from refractium.hooks.delivery import Item

HEADER: Final = struct.Struct("<BBxxIQQQ")
"""Kind, whether outbound, length of the body, session, time, offset; as in `refractium.contract.Event`."""

START: Final = 255
"""The kind of the first frame."""

HURRY: Final = signal.SIGUSR1
"""Has the child stop the hook as soon as that is done with what it has in hand."""

encode: Final = msgspec.msgpack.Encoder().encode
"""A struct as the body of a frame."""

_CONTEXT: Final = msgspec.msgpack.Decoder(HookContext)
_STATS: Final = msgspec.msgpack.Decoder(SessionStats)
_KINDS: Final = tuple(EventKind)
_DIRECTIONS: Final = (Direction.INBOUND, Direction.OUTBOUND)


class Start(Struct, frozen=True):
    """What the child is to do.

    Attributes:
        module: where the class of the hook is.
        qualname: what it is called there.
        settings: those of the hook, as MessagePack.
        path: where modules are looked for, as in the parent.
        levels: from where on loggers log, by name; the root's is empty.
        style: how lines of the log look, as in the parent (`refractium.logs.install`).
    """

    module: str
    qualname: str
    settings: bytes
    path: list[str]
    levels: dict[str, int]
    style: str


class Report(Struct, frozen=True):
    """What has been done since the last one.

    Attributes:
        inbound: packets delivered, and their bytes.
        outbound: the same of the other direction.
        failures: exceptions that the hook has raised.
        detached: why the hook is told nothing more; empty while it is.
    """

    inbound: tuple[int, int]
    outbound: tuple[int, int]
    failures: int
    detached: str = ""


class Frames:
    """Makes events of what comes through the pipe, in whatever pieces.

    Attributes:
        sessions: the contexts of the sessions that are open, by `HookContext.session`.
    """

    def __init__(self) -> None:
        self.sessions: dict[int, HookContext] = {}
        self._rest = b""

    def start(self, chunk: bytes) -> Start | None:
        """Take a first piece; None while the first frame is not whole."""
        self._rest += chunk
        if len(self._rest) < HEADER.size:
            return None
        end = HEADER.size + HEADER.unpack_from(self._rest)[2]
        if len(self._rest) < end:
            return None
        start = msgspec.msgpack.decode(self._rest[HEADER.size : end], type=Start)
        self._rest = self._rest[end:]
        return start

    def feed(self, chunk: bytes, events: deque[Item]) -> None:
        """Take a piece, and append the events that are whole with it."""
        at = 0
        if self._rest:
            # Only the frame that was begun is put together: with all of the piece all would be copied.
            at = self._needed(chunk)
            whole = self._rest + chunk[:at]
            self._rest = whole[self._take(whole, 0, events) :]
        if not self._rest:
            self._rest = chunk[self._take(chunk, at, events) :]

    def _needed(self, chunk: bytes) -> int:
        """How many bytes of a piece the frame needs that was begun; all, where that cannot be told yet."""
        head = (self._rest[: HEADER.size] + chunk[: HEADER.size])[: HEADER.size]
        if len(head) < HEADER.size:
            return len(chunk)
        needed = HEADER.size + int(HEADER.unpack(head)[2]) - len(self._rest)
        # Behind the first frame of all there may be whole ones.
        return min(needed, len(chunk)) if needed > 0 else len(chunk)

    def _take(self, data: bytes, at: int, events: deque[Item]) -> int:
        """Append the whole events from a position on; the position after them."""
        sessions, unpack, header = self.sessions, HEADER.unpack_from, HEADER.size
        last = len(data) - header
        while at <= last:
            number, is_outbound, length, session, time, offset = unpack(data, at)
            end = at + header + length
            if end > len(data):
                break
            kind = _KINDS[number]
            body = data[at + header : end]
            at = end
            stats = None
            if kind is EventKind.OPEN:
                context = sessions[session] = _CONTEXT.decode(body)
                body = b""
            elif kind is EventKind.CLOSE:
                context, stats, body = sessions.pop(session), _STATS.decode(body), b""
            else:
                context = sessions[session]
            events.append((kind, time, context, _DIRECTIONS[is_outbound], body, offset, stats))
        return at
