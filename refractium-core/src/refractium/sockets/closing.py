"""The close of a TCP socket, which its peer sees as an orderly end or as a reset.

The kernel closes the sockets of a killed process, and a peer cannot distinguish such a close from others.
So the close of a socket is a reset while the peer may have received only a part of a stream. A unix socket
accepts the option SO_LINGER too, but has no reset: the peer always sees an orderly end.
"""

from __future__ import annotations

import fcntl
import select
import socket
import struct
import termios
from socket import SO_LINGER, SOL_SOCKET
from typing import Final

_RESET: Final = struct.pack("ii", 1, 0)
"""A struct linger (socket(7)) that turns the option on, with a time of 0 s."""
_END: Final = struct.pack("ii", 0, 0)
_AF_UNIX: Final = int(socket.AF_UNIX)
_TCP_CLOSE: Final = 7
"""The tcpi_state of a connection that is over (Linux, net/tcp_states.h)."""


def reset_on_close(sock: socket.socket) -> None:
    """Make the close of a TCP socket a reset; accepted sockets inherit this option."""
    sock.setsockopt(SOL_SOCKET, SO_LINGER, _RESET)


def end_on_close(sock: socket.socket) -> None:
    """Make the close of a TCP socket an orderly end again, after `reset_on_close`."""
    sock.setsockopt(SOL_SOCKET, SO_LINGER, _END)


def is_reset_on_close(sock: socket.socket) -> bool:
    """Return whether the close of a socket is a reset."""
    return sock.getsockopt(SOL_SOCKET, SO_LINGER, len(_RESET)) == _RESET


def is_over(sock: socket.socket) -> bool:
    """Return whether a connection is over.

    A TCP connection is over after a reset, a timeout, or the end of both directions. A connection on a unix
    socket is over when the peer has closed its socket or has shut down its reading side.
    """
    if sock.family != _AF_UNIX:
        return bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE)
    try:
        sock.send(b"")  # a unix socket whose peer reads no more refuses even 0 bytes (unix_stream_sendmsg)
    except OSError:
        return True
    poll = select.poll()
    poll.register(sock, 0)
    return bool(poll.poll(0))  # POLLHUP, which poll(2) always reports: the peer has closed


def unacknowledged(sock: socket.socket) -> int:
    """Return the number of bytes that the peer's kernel has not acknowledged. A reset discards these bytes.

    The number is 0 for a dead connection, and also if the kernel does not report the number, so that the
    caller does not wait. The number is 0 for a unix socket, which has no reset and discards nothing on close.
    """
    return 0 if sock.family == _AF_UNIX or is_over(sock) else unreceived(sock)


def unreceived(sock: socket.socket) -> int:
    """Return an amount that falls to 0 while the peer receives the bytes that were sent.

    On TCP, the amount is the number of bytes that the peer's kernel has not acknowledged (SIOCOUTQ, tcp(7)).
    On a unix socket, the amount is the memory of the bytes that the peer has not read. If the kernel does not
    report the amount, it is 0.
    """
    try:
        (count,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))
    except OSError:
        return 0
    return int(count)
