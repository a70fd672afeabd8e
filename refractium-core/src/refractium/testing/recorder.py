"""A packet hook for tests, which records the sessions of a proxy."""

from __future__ import annotations

import itertools
import queue
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from refractium.contract import Direction, NoSettings, PacketHook
from refractium.testing.backend import PATIENCE

if TYPE_CHECKING:
    from refractium.contract import HookContext, SessionStats

_QUEUE: Final = 1 << 30
"""Size of the queue (bytes): a recorder must not miss a packet."""
_numbers: Final = itertools.count(1)


@dataclass(frozen=True, slots=True)
class RecordedSession:
    """A finished session, as a packet hook sees it.

    Attributes:
        context: the facts about the session: protocol, route, metadata, addresses.
        packets: the pieces of the streams, or the datagrams, with their directions, in order.
        stats: the result of the session.
    """

    context: HookContext
    packets: tuple[tuple[Direction, bytes], ...]
    stats: SessionStats

    @property
    def inbound(self) -> bytes:
        """All bytes that the client sent."""
        return b"".join(data for direction, data in self.packets if direction is Direction.INBOUND)

    @property
    def outbound(self) -> bytes:
        """All bytes that the backend sent."""
        return b"".join(data for direction, data in self.packets if direction is Direction.OUTBOUND)


class Recorder:
    r"""A packet hook that records sessions.

    ::

        recorder = Recorder()
        with serve(knock, hooks=[recorder.hook]) as proxy:
            proxy.ask(b"KNOCK\n")
            assert recorder.session().inbound == b"KNOCK\n"

    Attributes:
        hook: the class of the hook, for `serve`, for a `Route` or for `run_hook`.
        sessions: the finished sessions, in the order of their ends.
    """

    hook: type[PacketHook[NoSettings]]
    sessions: list[RecordedSession]

    def __init__(self) -> None:
        self.sessions = []
        self._new: queue.SimpleQueue[RecordedSession] = queue.SimpleQueue()
        # A route has one hook of each name, and a test may use several recorders.
        own = {"name": f"recorder-{next(_numbers)}", "recorder": self}
        self.hook = type("Recording", (_Recording,), own)

    def session(self) -> RecordedSession:
        """Wait for the end of the next session, and return the session. Each call returns another session.

        Raises:
            TimeoutError: no session has ended within 30 seconds.
        """
        try:
            return self._new.get(timeout=PATIENCE)
        except queue.Empty:
            earlier = len(self.sessions)
            raise TimeoutError(
                f"no session has ended within {PATIENCE:g} s, after {earlier} earlier sessions"
            ) from None

    def add(self, session: RecordedSession) -> None:
        """Record a session."""
        self.sessions.append(session)
        self._new.put(session)


@dataclass(slots=True)
class _Open:
    context: HookContext
    packets: list[tuple[Direction, bytes]] = field(default_factory=list)


class _Recording(PacketHook[NoSettings]):
    """The base class of the hooks of recorders."""

    summary = "records sessions for a test"
    queue_bytes = _QUEUE
    recorder: Recorder

    def start(self) -> None:
        self._open: dict[int, _Open] = {}

    def on_open(self, context: HookContext) -> None:
        self._open[context.session] = _Open(context)

    def on_packet(self, context: HookContext, direction: Direction, data: bytes) -> None:
        self._open[context.session].packets.append((direction, data))

    def on_close(self, context: HookContext, stats: SessionStats) -> None:
        packets = self._open.pop(context.session).packets
        self.recorder.add(RecordedSession(context, tuple(packets), stats))
