"""Socket activation, as a service manager does it: the sockets stay open, and programs start on them."""

from __future__ import annotations

import shlex
import socket
import sys
from typing import TYPE_CHECKING, Final

from support.process import Running, environment

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

_HAND_DOWN: Final = """
import fcntl, os, sys
fds, command = sys.argv[1].split(","), sys.argv[2:]
for number, fd in enumerate([fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in fds], 3):
    os.dup2(fd, number)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(fds)))
os.execv(command[0], command)
"""


def start_on(
    *sockets: socket.socket, arguments: tuple[object, ...] = (), cwd: Path, **environ: str
) -> Running:
    """Start ``refractium`` on sockets, which the program inherits (sd_listen_fds(3))."""
    line = f"exec {handing_down(*sockets)}"
    fds = [sock.fileno() for sock in sockets]
    return Running(*arguments, cwd=cwd, env=environment(**environ), shell=line, pass_fds=fds)


def handing_down(*sockets: socket.socket) -> str:
    """Return a command for ``sh`` that runs ``"$@"`` on sockets that are open in the shell."""
    fds = ",".join(str(sock.fileno()) for sock in sockets)
    return f'{sys.executable} -c {shlex.quote(_HAND_DOWN)} {fds} "$@"'


class Activation:
    """A TCP socket and a UDP socket on one port, on which programs start one after the other.

    Args:
        folder: the working folder of the programs, which contains their configuration.
        udp: whether the programs inherit the UDP socket.

    Attributes:
        tcp: the TCP socket.
        udp: the UDP socket.
        address: the address of both sockets.
    """

    def __init__(self, folder: Path, *, udp: bool = True) -> None:
        self._folder = folder
        self._has_udp = udp
        while True:
            self.tcp = socket.create_server(("127.0.0.1", 0), backlog=4096)
            self.address: tuple[str, int] = self.tcp.getsockname()
            self.udp = socket.socket(type=socket.SOCK_DGRAM)
            try:
                self.udp.bind(self.address)
            except OSError:
                self.tcp.close()
                self.udp.close()
            else:
                return

    def start(self, *arguments: object, **environ: str) -> Running:
        """Start a program and wait until it serves."""
        sockets = {"tcp": self.tcp, "udp": self.udp} if self._has_udp else {"tcp": self.tcp}
        program = start_on(*sockets.values(), arguments=arguments, cwd=self._folder, **environ)
        try:
            for transport in sockets:
                program.await_out(f"^Listening on {transport}://")
        except BaseException:
            program.__exit__()
            raise
        return program

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.tcp.close()
        self.udp.close()
