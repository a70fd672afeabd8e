"""The link from sessions to packet hooks. A session without hooks uses nothing of this module."""

from __future__ import annotations

import itertools
import secrets
from typing import TYPE_CHECKING, Final

from refractium.contract import HookContext
from refractium.hooks.clock import EPOCH
from refractium.proxy.summary import metadata_of

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from refractium.backends.backend import Backend
    from refractium.contract import Direction, ProtocolMatch, Transport
    from refractium.hooks import Tap
    from refractium.proxy.weld import Flow
    from refractium.routing import Pool

_SESSION_NUMBERS: Final = itertools.count(secrets.randbits(63))
"""Session numbers of 64 bits. The first number is random, so two runs are unlikely to share a number."""


def open_tap(
    pool: Pool,
    transport: Transport,
    client: tuple[str, int],
    backend: Backend,
    sock: socket.socket,
    match: ProtocolMatch | None,
    stamp: float,
) -> Tap:
    """Notify the hooks of a pool that a session has begun, and return the tap of the session.

    Args:
        pool: a pool with packet hooks.
        transport: the client's transport.
        client: the client's IP address and port.
        backend: the session's backend.
        sock: the socket that is connected to the backend.
        match: the protocol match of the client's first bytes; None if no protocol matched.
        stamp: monotonic time (s) at which the session began.
    """
    assert pool.hooks is not None  # noqa: S101 - callers have checked `hooks`
    context = HookContext(
        session=next(_SESSION_NUMBERS) & 0xFFFF_FFFF_FFFF_FFFF,
        transport=transport,
        protocol=pool.protocol,
        route=pool.label,
        client=client,
        backend=address_of(backend, sock),
        metadata=dict(metadata_of(match, pool)),
        started=int(stamp * 1e9) + EPOCH,
    )
    return pool.hooks.open(context)


def address_of(backend: Backend, sock: socket.socket) -> tuple[str, int] | str:
    """Return the address of a connected backend: an IP address and a port, or the path of a unix socket."""
    try:
        peer = sock.getpeername()
    except OSError:  # the backend has reset the connection already
        ((_, peer), *_) = backend.socket_addresses
    return peer if isinstance(peer, str) else peer[:2]


def tapped(flow: Flow, tap: Tap, direction: Direction) -> Callable[[memoryview], int]:
    """Return a replacement for `Flow.receive` that also passes the received bytes to a tap."""
    receive = flow.receive

    def receive_and_tell(view: memoryview) -> int:
        got = receive(view)
        if got:
            tap.packet(direction, bytes(view[:got]))
        elif not flow.broken:
            tap.end(direction)
        return got

    return receive_and_tell
