"""Helpers that make the events of TCP connections."""

from __future__ import annotations

from typing import Any

from hooks_pcap.capturing import context_of, opening
from refractium.contract import Direction, Event, EventKind, HookContext, SessionStats, Transport


def tcp(**changed: Any) -> HookContext:
    return context_of(**{"transport": Transport.TCP, "protocol": "https", "route": "web"} | changed)


def sent(
    context: HookContext, direction: Direction, data: bytes, offset: int = 0, time: int | None = None
) -> Event:
    return Event(EventKind.PACKET, time or context.started, context, direction, data, offset)


def closed(
    context: HookContext, inbound: int, outbound: int, ended: str = "closed", time: int | None = None
) -> Event:
    return Event(
        EventKind.CLOSE, time or context.started, context, stats=SessionStats(1.0, inbound, outbound, ended)
    )


def connection(context: HookContext, up: bytes = b"up", down: bytes = b"down!") -> list[Event]:
    return [
        opening(context),
        sent(context, Direction.INBOUND, up),
        sent(context, Direction.OUTBOUND, down),
        closed(context, len(up), len(down)),
    ]
