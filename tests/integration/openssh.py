"""The OpenSSH server with keys and a configuration of its own, independent of the files of the user."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from integration.stage import by_inetd
from support.process import TIMEOUT

_PRIVILEGE_SEPARATION: Final = Path("/run/sshd")
"""A folder that must exist where sshd runs as root."""

_CONFIGURATION: Final = """
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
"""


class Sshd:
    """Keys and configuration of the server and of the client.

    Attributes:
        serve: a handler that serves a connection.
        user_key: the file of the private key that the server accepts.
        known_hosts: a file that contains the key of the server.
        log: the log file of the server.
    """

    def __init__(self, program: str, folder: Path) -> None:
        self.log = folder / "sshd.log"
        self.user_key = folder / "user_key"
        self.known_hosts = folder / "known_hosts"
        for name in ("host_key", "user_key"):
            keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(folder / name)]
            subprocess.run(keygen, check=True, timeout=TIMEOUT)
        self.known_hosts.write_text(f"behind-the-proxy {(folder / 'host_key.pub').read_text()}")
        configuration = folder / "sshd_config"
        configuration.write_text(_CONFIGURATION.format(folder=folder))
        self.serve = by_inetd(program, "-i", "-f", configuration, "-E", self.log)


def begin_sshd(folder: Path) -> Sshd | None:
    """Return the server, or None if it is not installed or may not run."""
    program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None or shutil.which("ssh-keygen") is None:
        return None
    if os.getuid() == 0:
        try:
            _PRIVILEGE_SEPARATION.mkdir(mode=0o755, exist_ok=True)
        except OSError:
            return None
    return Sshd(program, folder)
