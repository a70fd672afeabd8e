"""Helpers that make sessions to be captured, and read captures."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Final

from refractium.contract import Direction, Event, EventKind, HookContext, SessionStats, Transport
from refractium_hooks_pcap.outputs import Form
from refractium_hooks_pcap.packets import Packet, SessionRenderer
from refractium_hooks_pcap.reader import Captured, Reader, examine

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

NOON: Final = 1_784_980_800_000_000_000
"""2026-07-25 12:00:00 UTC (ns since the epoch)."""
SECOND: Final = 1_000_000_000
PCAPNG: Final = Form(is_classic=False, snaplen=262_144)
PCAP: Final = Form(is_classic=True, snaplen=262_144)
UDP_HEADERS: Final = 28
"""Bytes of an IPv4 and a UDP header."""

_numbers = itertools.count(1)


def context_of(**changed: Any) -> HookContext:
    """Return a UDP session from 10.0.0.1, so that its packets are exactly its datagrams; `changed` replaces
    values."""
    values: dict[str, Any] = {
        "session": next(_numbers),
        "transport": Transport.UDP,
        "protocol": "dns",
        "route": "names",
        "client": ("10.0.0.1", 40_000),
        "backend": ("10.0.0.2", 53),
        "metadata": {},
        "started": NOON,
    }
    return HookContext(**values | changed)


def opening(context: HookContext) -> Event:
    return Event(EventKind.OPEN, context.started, context)


def passing(context: HookContext, data: bytes, time: int = NOON, offset: int = 0) -> Event:
    return Event(EventKind.PACKET, time, context, Direction.INBOUND, data, offset)


def closing(context: HookContext, time: int = NOON) -> Event:
    return Event(EventKind.CLOSE, time, context, stats=SessionStats(1.0, 0, 0, "closed"))


def session_of(context: HookContext, *datagrams: bytes) -> list[Event]:
    """Return all events of a session that sends these datagrams."""
    return [opening(context), *(passing(context, one) for one in datagrams), closing(context)]


def records_of(*datagrams: bytes, time: int = NOON, route: str = "names") -> list[Packet]:
    """Return a packet for each datagram."""
    context = context_of(route=route)
    renderer = SessionRenderer(context)
    events = [opening(context), *(passing(context, one, time) for one in datagrams)]
    return [packet for event in events for packet in renderer.render(event)]


def numbered(count: int, size: int = 100, start: int = 0) -> list[bytes]:
    """Return datagrams that all differ."""
    return [b"%08d" % number + bytes(size - 8) for number in range(start, start + count)]


def datagrams_of(captured: Iterable[Captured]) -> list[bytes]:
    """Return the payload of each captured datagram."""
    return [one.data[UDP_HEADERS:] for one in captured]


def read(data: bytes) -> list[Captured]:
    """Return the packets of a capture, which must end with a whole record."""
    reader = Reader()
    found = []
    while more := reader.feed(data):
        found += more
        data = b""
    assert not reader._buffer, "the last record is not whole"
    return found


def read_file(path: Path) -> list[Captured]:
    """Return the packets of a file, which must end with a whole record."""
    if path.stat().st_size == 0:
        return []
    with path.open("rb") as file:
        extent = examine(file)
    assert extent is not None
    assert extent.end == path.stat().st_size, "the last record is not whole"
    return read(path.read_bytes())


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
