"""What systemd and the program tell each other, where systemd has started it."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import Final

from refractium.errors import ListenError

_FIRST_INHERITED: Final = 3
"""The first descriptor that is handed down (sd_listen_fds(3))."""


def notify(*states: str) -> None:
    """Tell the service manager, if there is one that wants to know (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # in the abstract namespace
        address = "\0" + address[1:]
    # Nobody there any more is no reason not to serve.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(address)
        sock.send("\n".join(states).encode())


def ready() -> None:
    """It listens, or it has reloaded."""
    notify("READY=1")


def reloading() -> None:
    """It has begun to reload; `ready` follows, however that ends."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def stopping() -> None:
    """It accepts nothing any more."""
    notify("STOPPING=1")


def inherited() -> list[socket.socket]:
    """The sockets that were handed down to this process (sd_listen_fds(3)), once.

    Raises:
        ListenError: what was handed down is no socket.
    """
    if os.environ.pop("LISTEN_PID", None) != str(os.getpid()):
        return []
    count = int(os.environ.pop("LISTEN_FDS", "0"))
    os.environ.pop("LISTEN_FDNAMES", None)
    sockets = []
    for fd in range(_FIRST_INHERITED, _FIRST_INHERITED + count):
        try:
            sock = socket.socket(fileno=fd)
        except OSError as error:
            raise ListenError(f"descriptor {fd} of LISTEN_FDS", error.strerror or str(error)) from error
        sock.set_inheritable(False)
        sockets.append(sock)
    return sockets
