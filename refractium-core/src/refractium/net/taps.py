"""Where sessions that have hooks tell of what passes. Sessions without hooks never come here."""

from __future__ import annotations

import itertools
import secrets
import socket
from typing import TYPE_CHECKING, Final

from refractium.contract import Direction, HookContext
from refractium.hooks.clock import EPOCH
from refractium.net.report import metadata_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from refractium.contract import ProtocolMatch, Transport
    from refractium.hooks import Tap
    from refractium.net.weld import Endpoint
    from refractium.routing import Pool

_SESSIONS: Final = itertools.count(secrets.randbits(63))
"""Numbers of 64 bits, of which no two runs are likely to have the same."""


def open_tap(
    pool: Pool,
    transport: Transport,
    client: tuple[str, int],
    backend: socket.socket,
    match: ProtocolMatch | None,
    stamp: float,
) -> Tap:
    """Tell the hooks of a pool that a session has begun.

    Args:
        pool: one that has taps.
        transport: how the client came.
        client: its address and port.
        backend: the socket that is connected to the backend.
        match: what its first bytes told.
        stamp: monotonic time (s) at which it came.
    """
    assert pool.taps is not None  # noqa: S101 - who has none does not call
    peer = backend.getpeername()
    context = HookContext(
        session=next(_SESSIONS) & 0xFFFF_FFFF_FFFF_FFFF,
        transport=transport,
        protocol=pool.protocol,
        route=pool.label,
        client=client,
        backend=peer if backend.family == socket.AF_UNIX else peer[:2],
        metadata=dict(metadata_of(match)),
        started=int(stamp * 1e9) + EPOCH,
    )
    return pool.taps.open(context)


def tapped(endpoint: Endpoint, tap: Tap, direction: Direction) -> Callable[[memoryview], int]:
    """What receives from an endpoint in the place of its socket, and tells of it."""
    receive = endpoint.receive

    def receive_and_tell(view: memoryview) -> int:
        got = receive(view)
        if got:
            tap.packet(direction, bytes(view[:got]))
        elif not endpoint.broken:
            tap.end(direction)
        return got

    return receive_and_tell
