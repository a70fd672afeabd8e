"""The close of a TCP socket, which its peer sees as an orderly end or as a reset.

Also a process that is killed closes its sockets, and a peer cannot tell that end from any other. So a socket
that may have been sent a part of a stream is reset on close until the stream has ended. A unix socket takes
the option too, but has no reset: its peer always sees an end.
"""

from __future__ import annotations

import struct
from socket import SO_LINGER, SOL_SOCKET
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import socket

_RESET: Final = struct.pack("ii", 1, 0)
"""A struct linger (socket(7)): on, for no time."""
_END: Final = struct.pack("ii", 0, 0)


def reset_on_close(sock: socket.socket) -> None:
    """Make the close of a TCP socket a reset; sockets that it accepts inherit that."""
    sock.setsockopt(SOL_SOCKET, SO_LINGER, _RESET)


def end_on_close(sock: socket.socket) -> None:
    """Make the close of a TCP socket an orderly end, which it is unless it was made a reset."""
    sock.setsockopt(SOL_SOCKET, SO_LINGER, _END)


def is_reset_on_close(sock: socket.socket) -> bool:
    """Return whether the close of a socket is a reset."""
    return sock.getsockopt(SOL_SOCKET, SO_LINGER, len(_RESET)) == _RESET
