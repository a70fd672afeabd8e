"""Where sessions that have hooks tell of what passes. Sessions without hooks never come here."""

from __future__ import annotations

import itertools
import secrets
from typing import TYPE_CHECKING, Final

from refractium.contract import HookContext
from refractium.hooks.clock import EPOCH
from refractium.proxy.outcome import metadata_of

if TYPE_CHECKING:
    import socket

    from refractium.backends.backend import Backend
    from refractium.contract import ProtocolMatch, Transport
    from refractium.hooks import Tap
    from refractium.routing import Pool

_SESSIONS: Final = itertools.count(secrets.randbits(63))
"""Numbers of 64 bits, of which no two runs are likely to have the same."""


def open_tap(
    pool: Pool,
    transport: Transport,
    client: tuple[str, int],
    backend: Backend,
    sock: socket.socket,
    match: ProtocolMatch | None,
    stamp: float,
) -> Tap:
    """Tell the hooks of a pool that a session has begun.

    Args:
        pool: one that has taps.
        transport: how the client came.
        client: its address and port.
        backend: the backend.
        sock: what is connected to it.
        match: what its first bytes told.
        stamp: monotonic time (s) at which it came.
    """
    assert pool.taps is not None  # noqa: S101 - who has none does not call
    context = HookContext(
        session=next(_SESSIONS) & 0xFFFF_FFFF_FFFF_FFFF,
        transport=transport,
        protocol=pool.protocol,
        route=pool.label,
        client=client,
        backend=address_of(backend, sock),
        metadata=dict(metadata_of(match)),
        started=int(stamp * 1e9) + EPOCH,
    )
    return pool.taps.open(context)


def address_of(backend: Backend, sock: socket.socket) -> tuple[str, int] | str:
    """Where a socket is connected to: an address and a port, or the path of a unix socket."""
    try:
        peer = sock.getpeername()
    except OSError:  # it has reset the connection already
        ((_, peer), *_) = backend.socket_addresses
    return peer if isinstance(peer, str) else peer[:2]
