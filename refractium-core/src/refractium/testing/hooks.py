"""One session through a packet hook, for tests."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeVar

from refractium.contract import (
    Direction,
    Event,
    EventKind,
    HookContext,
    PacketHook,
    SessionStats,
    Transport,
    problems_of_hook,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from msgspec import Struct

    from refractium.contract import MetadataValue

H = TypeVar("H", bound=PacketHook[Any])


def run_hook(
    hook: type[H],
    *,
    inbound: Iterable[bytes] = (),
    outbound: Iterable[bytes] = (),
    settings: Struct | None = None,
    protocol: str = "http",
    metadata: Mapping[str, MetadataValue] | None = None,
    transport: Transport = Transport.TCP,
    ended: str = "closed",
) -> H:
    r"""Run one whole session through a hook in this thread, and stop the hook.

    ::

        hook = run_hook(CountBytes, inbound=[b"GET / HTTP/1.1\r\n\r\n"], outbound=[b"HTTP/1.1 404 "])
        assert hook.total == 31

    The client speaks first: all of `inbound` comes before `outbound`. The IP addresses are from RFC 5737.

    Args:
        hook: class of the hook; its isolation has no effect.
        inbound: packets that the client sends.
        outbound: packets that the backend sends.
        settings: settings of the hook; None for the default settings of the hook.
        protocol: name of the protocol, and of the route.
        metadata: metadata from the first bytes.
        transport: transport of the client.
        ended: the way in which the session ended.

    Returns:
        The instance of the hook.

    Raises:
        AssertionError: the class is not a hook, or the hook refuses the settings.
        Exception: any exception that the hook raises.
    """
    if problems := list(problems_of_hook(hook)):
        raise AssertionError("; ".join(problems))
    if settings is None:
        settings = hook.settings_type()
    if problems := [f"{key}: {message}" for key, message in hook.problems(settings)]:
        raise AssertionError("; ".join(problems))
    began = time.time_ns()
    context = HookContext(
        session=1,
        transport=transport,
        protocol=protocol,
        route=protocol,
        client=("192.0.2.1", 50_000),
        backend=("198.51.100.1", 80),
        metadata=dict(metadata or {}),
        started=began,
    )
    packets = {Direction.INBOUND: list(inbound), Direction.OUTBOUND: list(outbound)}
    stats = SessionStats(
        seconds=0.001,
        inbound=sum(map(len, packets[Direction.INBOUND])),
        outbound=sum(map(len, packets[Direction.OUTBOUND])),
        ended=ended,
    )
    told = hook(settings)
    told.start()
    if type(told).on_batch is PacketHook.on_batch:
        told.on_open(context)
        for direction, pieces in packets.items():
            for data in pieces:
                told.on_packet(context, direction, data)
        told.on_close(context, stats)
    else:
        told.on_batch(_events(context, packets, stats))
    told.stop()
    return told


def _events(
    context: HookContext, packets: Mapping[Direction, list[bytes]], stats: SessionStats
) -> list[Event]:
    """Return the session as events, one millisecond apart."""
    events = [Event(EventKind.OPEN, context.started, context)]

    def add(kind: EventKind, direction: Direction = Direction.INBOUND, **fields: Any) -> None:
        events.append(Event(kind, events[-1].time + 1_000_000, context, direction, **fields))

    for direction, pieces in packets.items():
        offset = 0
        for data in pieces:
            add(EventKind.PACKET, direction, data=data, offset=offset)
            offset += len(data)
        if context.transport is Transport.TCP:
            add(EventKind.END, direction, offset=offset)
    add(EventKind.CLOSE, stats=stats)
    return events
