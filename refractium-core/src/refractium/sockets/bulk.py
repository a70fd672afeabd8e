"""Socket options for bulk: bounded memory in the kernel, and no pauses between sockets of this machine."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Final

_UNSENT: Final = 1_048_576
"""Unsent bytes that the kernel takes for a sink of bulk (TCP_NOTSENT_LOWAT, tcp(7)). A lower number costs
more switches between the proxy and its peers."""
_AF_UNIX: Final = int(socket.AF_UNIX)


def bound_sink(sock: socket.socket) -> None:
    """Bound the bytes that the kernel keeps for a slow TCP peer; a unix socket has a bound already."""
    with suppress(OSError):  # the socket has been reset, which the flow learns at the next turn
        if sock.family != _AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)


def bound_source(sock: socket.socket, size: int) -> None:
    """Bound the bytes that the kernel takes from a peer before they are read (SO_RCVBUF)."""
    with suppress(OSError):  # the socket has been reset
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


def stop_pacing_here(sock: socket.socket) -> None:
    """Let a TCP socket whose peer is on this machine send without pauses.

    BBR, if it is the machine's congestion control, paces by timers and probes for the bandwidth of a path
    without a limit: bulk takes 1.6 times as long. Reno is in every kernel (tcp(7), TCP_CONGESTION), and its
    window only grows while nothing is lost. Sockets with peers on other machines keep the machine's setting.
    """
    with suppress(OSError):  # the socket has been reset
        if sock.getpeername()[0] == sock.getsockname()[0]:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
