"""The launcher: the process that the service manager started, if the program serves on sockets of systemd.

The launcher forks a child, and the child serves. At SIGTERM, the child gives up everything that the next
process needs, and tells the launcher. Then the launcher ends, and the child serves its open connections to
their end. So the service manager can start the next process at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from refractium.daemon import rights, systemd
from refractium.errors import RefractiumError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from refractium.system.users import Identity

log = logging.getLogger("refractium")

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""The signals on which the program acts."""

_HANDED_OVER: Final = b"handed over"
"""The message with which the child lets the launcher end. All other messages of the child are for systemd."""
_LONGEST_MESSAGE: Final = 65_536
_SECOND: Final = 2
_HANGING: Final = 15
"""Seconds from the second SIGTERM or SIGINT until the launcher kills a child that still runs. A supervisor
whose worker hangs may take 12 s to end."""
_SAME_STOP: Final = 1.0
"""Seconds after the end of the launcher in which the child ignores signals.

When a service manager stops all processes of a service, it sends SIGTERM to each process. After the end of
the main process, it sends SIGTERM again to the remaining processes (systemd.kill(5),
`KillMode=control-group`).
"""


class Launcher:
    """The launcher, as the child sees it.

    Args:
        sock: the socket to the launcher. Each message from the launcher is the number of a signal.

    Attributes:
        pid: the process id of the launcher.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.pid = os.getppid()
        self._sock = sock
        self._has_handed_over = False
        self._ended_at: float | None = None
        systemd.notify_through(sock)

    def watch(self, on_signal: Callable[[signal.Signals], None]) -> None:
        """Call a function with each signal from now on, in the running event loop.

        While the launcher runs, only the launcher acts on signals: a service manager or a terminal may send a
        signal to both processes. If the launcher ends first, the function receives SIGTERM.
        """
        loop = asyncio.get_running_loop()

        def read() -> None:
            try:
                message = self._sock.recv(1)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            if message:
                on_signal(signal.Signals(message[0]))
                return
            loop.remove_reader(self._sock)
            self._ended_at = time.monotonic()
            if not self._has_handed_over:
                log.error("the launcher, the process that has started this process, was killed: stopping")
                on_signal(signal.SIGTERM)

        def receive(number: signal.Signals) -> None:
            if self._ended_at is not None and time.monotonic() > self._ended_at + _SAME_STOP:
                on_signal(number)

        self._sock.setblocking(False)  # noqa: FBT003 - takes no keyword
        loop.add_reader(self._sock, read)
        for number in SIGNALS:
            loop.add_signal_handler(number, receive, number)

    def hand_over(self) -> None:
        """Let the launcher end, so that the service manager can start the next process."""
        self._has_handed_over = True
        with suppress(OSError):
            self._sock.send(_HANDED_OVER)


def launch(sockets: Sequence[socket.socket], identity: Identity | None) -> Launcher:
    """Fork this process, and return in the child. The parent becomes the launcher, and never returns.

    Call this function before the first thread starts.

    Args:
        sockets: the sockets of systemd, which only the child keeps open.
        identity: the user to run as; None if the configuration names no user.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    sys.stdout.flush()  # otherwise both processes would print the buffered text
    child = os.fork()
    if not child:
        ours.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return Launcher(theirs)

    stops = 0

    def forward(number: int, _frame: object) -> None:
        nonlocal stops
        stops += number != signal.SIGHUP
        if stops == _SECOND:
            signal.alarm(_HANGING)
        with suppress(OSError):
            ours.send(bytes([number]), socket.MSG_DONTWAIT)
            os.kill(child, number)  # ends a child that is still starting; later, the child ignores it

    def kill(_number: int, _frame: object) -> None:
        with suppress(OSError):
            os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGALRM, kill)
    for number in SIGNALS:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    for sock in (theirs, *sockets):
        sock.close()
    if identity is not None:
        with suppress(RefractiumError):  # the child fails as well, and reports the reason
            rights.give_up(identity)
    os._exit(_relay(ours, child))  # the usual end of an interpreter would delay the next process by 0.2 s


def _relay(ours: socket.socket, child: int) -> int:
    """Send the child's messages to systemd until the child hands over or ends. Return the exit code.

    If a signal has killed the child, end this process by the same signal.
    """
    with suppress(OSError):
        while message := ours.recv(_LONGEST_MESSAGE):
            if message == _HANDED_OVER:
                return 0
            systemd.notify(message.decode())
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:  # end by the same signal, so that the service manager learns the reason
        with suppress(OSError):  # SIGKILL has no handler to set
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code
