"""The change from root to the user that the configuration names: its steps and its possible errors."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from refractium.assembly.lint.rules import UNREADABLE_FILE
from refractium.errors import ConfigError, RefractiumError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from refractium.config import Decoded
    from refractium.errors import ListenError
    from refractium.problems import Problem
    from refractium.system.users import Identity

log = logging.getLogger("refractium")

_PACKAGE: Final = Path(__file__).parents[1] / "__init__.py"


def begin(decoded: Decoded) -> Identity | None:
    """Return the user to run as. Prevent this process, before its first thread, from gaining rights.

    Returns:
        The user, for `give_up`; None if the configuration names no user or is not valid.

    Raises:
        ConfigError: this process cannot change to that user.
        RefractiumError: the kernel refuses this change.
    """
    if decoded.problems or (identity := decoded.config.server.identity) is None:
        return None
    if os.geteuid() != 0 and not identity.is_current:
        reason = "only root can run as another user or group: start it as root, or leave user and group out"
        raise ConfigError([decoded.source.problem("server.user", reason)])
    from refractium.system import privileges  # noqa: PLC0415 - imports ctypes, which few runs need

    try:
        privileges.forgo_new_privileges()
    except OSError as error:
        raise _refused(identity, error) from error
    return identity


def give_up(identity: Identity) -> None:
    """Run as the user `identity` from now on.

    Raises:
        RefractiumError: the kernel refuses the change, or the user could not run the program.
    """
    from refractium.system import privileges  # noqa: PLC0415 - imports ctypes, which few runs need

    try:
        privileges.become(identity)
    except OSError as error:
        raise _refused(identity, error) from error
    # The user must be able to read these files: workers and hooks start new interpreters, and Python imports
    # some modules later.
    for path, mode in ((sys.executable, os.X_OK), (os.__file__, os.R_OK), (_PACKAGE, os.R_OK)):
        if not os.access(path, mode):
            reason = f"user {identity.user} cannot read {path}"
            raise RefractiumError(f"{reason}: install Python and Refractium where that user can read them")


def is_lost(path: Path, identity: Identity) -> bool:
    """Return whether a reload can no longer read a file; log a warning if so."""
    if os.access(path, os.R_OK):
        return False
    log.warning("server.user: %s", _unreadable(path, identity))
    return True


def doubts(decoded: Decoded, files: Iterable[Path] = ()) -> Iterator[Problem]:
    """Yield a warning for each file that the configured user cannot read. Only root can check this.

    Args:
        decoded: the configuration file.
        files: the files of the local plugins.
    """
    if UNREADABLE_FILE.code in decoded.config.check.ignore:
        return
    if decoded.problems or (identity := decoded.config.server.identity) is None or os.geteuid() != 0:
        return
    for path in (decoded.source.name, *map(str, files)):
        try:
            asked = subprocess.run(  # noqa: S603 - no shell reads the name of the file
                ["test", "-r", path],  # noqa: S607 - a program of POSIX
                check=False,
                user=identity.uid,
                group=identity.gid,
                extra_groups=identity.groups,
            )
        except OSError:  # a container may not allow a change of user, or may have no `test` program
            return
        if asked.returncode == 1:
            yield decoded.source.problem("server.user", _unreadable(path, identity), UNREADABLE_FILE.code)


def explained(error: ListenError, identity: Identity | None) -> str:
    """Return the message about an address that a reload could not bind."""
    if identity is None or error.errno != errno.EACCES:
        return str(error)
    ways = "restart Refractium, or lower net.ipv4.ip_unprivileged_port_start (sysctl)"
    return f"{error}; user {identity.user} has neither: {ways}"


def _unreadable(path: Path | str, identity: Identity) -> str:
    reason = f"{identity.user} cannot read {path}, so every reload will fail"
    return f"{reason}: let that user or its group read the file"


def _refused(identity: Identity, error: OSError) -> RefractiumError:
    hint = "a container must leave root the capabilities SETUID and SETGID"
    return RefractiumError(f"cannot run as user {identity.user}: {error.strerror}: {hint}")
