"""The messages and sockets that the program exchanges with systemd, if systemd has started the program."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import Final

from refractium.errors import ListenError
from refractium.wire.text import escape

_FIRST_INHERITED: Final = 3
"""The first descriptor that systemd hands down (sd_listen_fds(3))."""

_relay: socket.socket | None = None


def notify_through(sock: socket.socket) -> None:
    """From now on, send all states to another process, which passes them on to the service manager.

    By default, the service manager accepts states only from the process that it has started
    (systemd.service(5), NotifyAccess).
    """
    global _relay  # noqa: PLW0603 - a global, like the environment that names the service manager's socket
    _relay = sock


def notify(*states: str) -> None:
    """Send states to the service manager, if NOTIFY_SOCKET names its socket (sd_notify(3))."""
    message = "\n".join(states).encode()
    if _relay is not None:
        with contextlib.suppress(OSError):
            _relay.send(message, socket.MSG_DONTWAIT)
        return
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # in the abstract namespace
        address = "\0" + address[1:]
    # Continue to serve if the service manager cannot be reached.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(address)
        sock.send(message)


def ready() -> None:
    """Report that the program listens, or that a reload has ended."""
    notify("READY=1")


def reloading() -> None:
    """Report that a reload has begun; `ready` follows, even if the reload fails."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def stopping() -> None:
    """Report that the program accepts no more clients."""
    notify("STOPPING=1")


def inherited() -> list[socket.socket]:
    """Return the sockets handed down to this process (sd_listen_fds(3)). Later calls return no sockets.

    Raises:
        ListenError: a descriptor that was handed down is not a socket that clients can reach.
    """
    if os.environ.pop("LISTEN_PID", None) != str(os.getpid()):
        return []
    number = os.environ.pop("LISTEN_FDS", "0")
    os.environ.pop("LISTEN_FDNAMES", None)
    if not (number.isascii() and number.isdecimal()):
        raise ListenError("LISTEN_FDS", f"{escape(number)} is not a number of sockets")
    count = int(number)
    sockets = []
    for fd in range(_FIRST_INHERITED, _FIRST_INHERITED + count):
        try:
            sock = socket.socket(fileno=fd)
        except OSError as error:
            raise ListenError(f"descriptor {fd} of LISTEN_FDS", error.strerror or str(error)) from error
        sock.set_inheritable(False)
        if (fault := _fault_of(sock)) is not None:
            raise ListenError(f"descriptor {fd} of LISTEN_FDS", fault)
        sockets.append(sock)
    return sockets


def _fault_of(sock: socket.socket) -> str | None:
    """Return the reason why clients cannot reach a socket that was handed down; None if they can reach it."""
    if sock.family not in {socket.AF_INET, socket.AF_INET6}:
        return "it is not an IPv4 or IPv6 socket: give ListenStream= an address and a port"
    if sock.type == socket.SOCK_STREAM:
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        return None if listens else "it does not listen: use ListenStream= with Accept=no"
    if sock.type != socket.SOCK_DGRAM or not sock.getsockname()[1] or _is_connected(sock):
        return "it is not a UDP socket that is bound to a port and open to all: use ListenDatagram="
    return None


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True
