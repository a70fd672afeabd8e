"""The format of the two pipes between the proxy and the process of a hook.

The pipe to the process contains frames. Each frame has a header (`HEADER`) and a body. The first frame
contains a `Start`, and each further frame contains an event. The body is the `HookContext` for
`EventKind.OPEN`, the data for `EventKind.PACKET`, and the `SessionStats` for `EventKind.CLOSE`. The end of
the pipe is the end of the events. Structs in frames are encoded as MessagePack.

The pipe from the process contains lines of JSON, each a `Receipt`.
"""

from __future__ import annotations

import signal
import struct
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from refractium.contract import Direction, EventKind, HookContext, SessionStats
from refractium.system.modules import ModuleSource

if TYPE_CHECKING:
    from collections import deque

    from refractium.hooks.delivery import Item

HEADER: Final = struct.Struct("<BBxxIQQQ")
"""The header of a frame: the kind of the frame, the direction (1 for outbound), and the length of the body
(bytes). The last fields are the session, time and offset of the event (`refractium.contract.Event`)."""

START: Final = 255
"""Kind of the first frame."""

HURRY: Final = signal.SIGUSR1
"""Signal on which the process drops all waiting events, and stops the hook after the hook's present call."""

encode: Final = msgspec.msgpack.Encoder().encode
"""Encodes a struct as the body of a frame."""

_CONTEXT: Final = msgspec.msgpack.Decoder(HookContext)
_STATS: Final = msgspec.msgpack.Decoder(SessionStats)
_KINDS: Final = tuple(EventKind)
_DIRECTIONS: Final = (Direction.INBOUND, Direction.OUTBOUND)


class Start(Struct, frozen=True):
    """The first frame: the hook to run, and the settings of the hook's process.

    Attributes:
        module: module that defines the class of the hook.
        qualname: qualified name of the class in this module.
        settings: settings of the hook, as MessagePack.
        path: folders in which to look for modules: `sys.path` of the proxy.
        levels: levels of the proxy's loggers ``root`` and ``refractium``, by the name of the logger.
        style: style of log lines, which is the proxy's style (`refractium.logs.install`).
        source: source of the module, if the module comes from a single file (`refractium.system.modules`).
    """

    module: str
    qualname: str
    settings: bytes
    path: list[str]
    levels: dict[str, int]
    style: str
    source: ModuleSource | None


class Receipt(Struct, frozen=True):
    """A receipt: the deliveries and failures since the last receipt.

    Attributes:
        inbound: number and bytes of the packets from clients that the hook received.
        outbound: number and bytes of the packets from backends that the hook received.
        failures: number of exceptions that the hook has raised.
        detached: reason why the hook is detached; empty while the hook receives events.
    """

    inbound: tuple[int, int]
    outbound: tuple[int, int]
    failures: int
    detached: str = ""


class Frames:
    """A decoder of frames. It accepts the bytes of the pipe in pieces of any size, and decodes the events.

    Attributes:
        contexts: contexts of the open sessions, by `HookContext.session`.
    """

    def __init__(self) -> None:
        self.contexts: dict[int, HookContext] = {}
        self._rest = b""

    def start(self, chunk: bytes) -> Start | None:
        """Append bytes of the pipe. Return the first frame, or None while this frame is incomplete."""
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
        """Decode a piece of the pipe's bytes, and append each event that is now complete to `events`."""
        at = 0
        if self._rest:
            # Join only the incomplete frame, because a join with the whole piece would copy the whole piece.
            at = self._needed(chunk)
            whole = self._rest + chunk[:at]
            self._rest = whole[self._take(whole, 0, events) :]
        if not self._rest:
            self._rest = chunk[self._take(chunk, at, events) :]

    def _needed(self, chunk: bytes) -> int:
        """Return how many bytes of `chunk` the incomplete frame needs: all, while its length is unknown."""
        head = (self._rest[: HEADER.size] + chunk[: HEADER.size])[: HEADER.size]
        if len(head) < HEADER.size:
            return len(chunk)
        needed = HEADER.size + int(HEADER.unpack(head)[2]) - len(self._rest)
        # `_rest` may contain whole frames that came together with the `Start` frame.
        return min(needed, len(chunk)) if needed > 0 else len(chunk)

    def _take(self, data: bytes, at: int, events: deque[Item]) -> int:
        """Append the complete events of `data` from `at` on. Return the position after these events."""
        contexts, unpack, header = self.contexts, HEADER.unpack_from, HEADER.size
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
                context = contexts[session] = _CONTEXT.decode(body)
                body = b""
            elif kind is EventKind.CLOSE:
                context, stats, body = contexts.pop(session), _STATS.decode(body), b""
            else:
                context = contexts[session]
            events.append((kind, time, context, _DIRECTIONS[is_outbound], body, offset, stats))
        return at
