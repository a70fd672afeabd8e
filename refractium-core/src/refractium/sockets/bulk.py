"""The socket options of bulk: bounded memory in the kernel, and no pauses on this machine."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Final

_UNSENT: Final = 1_048_576
"""Bytes that the kernel takes for a sink of bulk beyond what is on its way (TCP_NOTSENT_LOWAT, tcp(7)). Fewer
cost more changes between the proxy and its peers."""
_AF_UNIX: Final = int(socket.AF_UNIX)


def bound_sink(sock: socket.socket) -> None:
    """Bound what the kernel keeps for a slow TCP peer; a unix socket has a bound already."""
    with suppress(OSError):  # it has been reset, and says so at the next turn
        if sock.family != _AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)


def bound_source(sock: socket.socket, size: int) -> None:
    """Bound what the kernel takes from a peer before it is read (bytes, SO_RCVBUF)."""
    with suppress(OSError):  # as above
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


def stop_pacing_here(sock: socket.socket) -> None:
    """Let a TCP socket whose peer is on this machine send without pauses.

    BBR, where that is the machine's congestion control, paces by timers and looks for the width of a path
    that has none: bulk takes 1.6 times as long. Reno is in every kernel (tcp(7), TCP_CONGESTION), and its
    window only grows where nothing is lost. What leaves the machine goes by the machine's own rules.
    """
    with suppress(OSError):  # as above
        if sock.getpeername()[0] == sock.getsockname()[0]:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
