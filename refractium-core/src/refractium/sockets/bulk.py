"""Socket options for bulk: bounded memory in the kernel, and no pauses between sockets of this machine."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Final

_UNSENT: Final = 1_048_576
"""Maximum number of unsent bytes that the kernel buffers for a sink of bulk (TCP_NOTSENT_LOWAT, tcp(7)). A
lower number costs more context switches between the proxy and its peers."""
_AF_UNIX: Final = int(socket.AF_UNIX)


def bound_sink(sock: socket.socket) -> None:
    """Limit the bytes that the kernel keeps for a slow TCP peer; a unix socket has its own limit."""
    with suppress(OSError):  # the socket has been reset; the flow notices this at the next turn
        if sock.family != _AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)


def bound_source(sock: socket.socket, size: int) -> None:
    """Limit the number of bytes that the kernel holds for this process to read (SO_RCVBUF)."""
    with suppress(OSError):  # the socket has been reset
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


def stop_pacing_here(sock: socket.socket) -> None:
    """Let a TCP socket whose peer is on this machine send without pauses.

    If the machine's congestion control is BBR, the kernel delays packets by timers and probes for the
    bandwidth of a path that has no limit. Bulk then takes 1.6 times as long. Every kernel contains Reno
    (tcp(7), TCP_CONGESTION). The window of Reno only grows as long as no packet is lost. Sockets with peers
    on other machines keep the machine's congestion control.
    """
    with suppress(OSError):  # the socket has been reset
        if sock.getpeername()[0] == sock.getsockname()[0]:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
