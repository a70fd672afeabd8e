"""The control socket: a unix socket on which a running instance sends its status.

The instance sends each client one JSON document (`refractium.observe.status.Status`) and closes the
connection. The instance reads nothing. It answers only root and its own user.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
import struct
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from refractium.errors import RefractiumError
from refractium.observe.status import Status

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from refractium.system.users import Identity

log = logging.getLogger("refractium")

_RUN: Final = Path("/run")
_MODE: Final = 0o600
_FOLDER_MODE: Final = 0o755
_CREDENTIALS: Final = struct.Struct("3i")
"""The pid, uid and gid of the peer: struct ucred (unix(7), SO_PEERCRED)."""
_AT_ONCE: Final = 8
"""Largest number of clients that the instance answers at the same time. It closes further connections without
an answer."""
_PATIENCE: Final = 5.0
"""Seconds that an instance may take to send an answer, and for which a client waits for the answer."""
_LOOK: Final = 5.0
"""Seconds between two checks that the file of the socket still exists."""
_MAX_ANSWER: Final = 256 << 20
"""Bytes of an answer after which a client stops reading."""


class _NoSocketError(RefractiumError):
    """No control socket exists at a path."""


def folders() -> tuple[Path, ...]:
    """Return the default folders of control sockets.

    An instance uses the first folder. A client searches all folders.

    The folder of a systemd service with DynamicUser is a link to a folder that only root may enter. The
    result contains this folder for every user, so that `ask` can report the missing rights.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    own = [one for one in sorted(_RUN.glob("refractium*")) if one.is_symlink() or one.is_dir()]
    return tuple(dict.fromkeys((*([Path(runtime)] if runtime else []), _RUN, *own)))


def find() -> list[Path]:
    """Return the control sockets in the default folders.

    For a folder that this user may not enter, the result contains a path whose connection fails with
    PermissionError.
    """
    found = []
    for folder in folders():
        try:
            found += sorted(one for one in folder.iterdir() if fnmatch(one.name, file_name("*")))
        except PermissionError:
            found.append(folder / file_name("*"))
        except OSError:
            continue
    return found


def folder_for(identity: Identity | None) -> Path:
    """Return the folder of the control socket, if the configuration names no path.

    Args:
        identity: the user to which the instance changes after root has started it, or None. This user may not
            write to ``/run``, but can create and remove sockets in the user's own folder there
            (`make_folder`).
    """
    return folders()[0] if identity is None or identity.is_current else _RUN / f"refractium-{identity.user}"


def make_folder(identity: Identity) -> None:
    """Make the folder for the control socket of a user. Clients trust the owner of the folder.

    Only root can do this, so call the function before this process gives up its rights.
    """
    folder = folder_for(identity)
    with contextlib.suppress(OSError):  # then `ControlSocket.open` fails, and the caller warns
        folder.mkdir(_FOLDER_MODE, exist_ok=True)
        os.chown(folder, identity.uid, identity.gid)


def file_name(port: int | str) -> str:
    """Return the default file name of the control socket of the instance that listens on a port.

    Args:
        port: the port, or ``*`` for a pattern that matches the name for each port.
    """
    return f"refractium-{port}.sock"


class ControlSocket:
    """A socket that sends the status to each client, until `close` is called.

    Args:
        path: the file of the socket. `open` creates the file, and `close` removes it. If somebody else
            removes the file earlier, this object creates the file again.
        status: the function that returns the answer.
    """

    def __init__(self, path: Path, status: Callable[[], Awaitable[Status]]) -> None:
        self.path = path
        self._status = status
        self._server: asyncio.Server | None = None
        self._made: tuple[int, int] | None = None
        self._answering: set[asyncio.Task[None]] = set()
        self._keeping: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Create the file, and answer clients from now on. Replace the socket file of a dead instance.

        Raises:
            OSError: the file cannot be made, or another instance answers at the path (EADDRINUSE).
        """
        await self._listen()
        self._keeping = asyncio.create_task(self._keep())

    async def _keep(self) -> None:
        """Create the file again if somebody, such as a cleaner of old files, has removed the file."""
        while True:
            await asyncio.sleep(_LOOK)
            if self.path.exists():
                continue
            if self._server is not None:
                self._server.close()  # before `_listen`, because Python 3.13 may remove the file here
                self._server = None
            try:
                await self._listen()
            except OSError as error:
                log.debug("the control socket at %s was removed and cannot be remade: %s", self.path, error)
            else:
                log.info("the control socket at %s was removed and has been remade", self.path)

    async def _listen(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            os.fchmod(sock.fileno(), _MODE)  # before `bind`, so that the file never has other rights
            _bind(sock, self.path)
            made = self.path.stat()
            self._made = made.st_dev, made.st_ino
            self._server = await asyncio.start_unix_server(self._answer, sock=sock)
        except BaseException:
            sock.close()
            raise

    async def close(self) -> None:
        """Stop answering. Remove the file if it is still the file that this object created."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        if self._server is None:
            return
        with contextlib.suppress(OSError):
            now = self.path.stat()
            if (now.st_dev, now.st_ino) == self._made:
                self.path.unlink()
        self._server.close()
        self._server = None
        for task in self._answering:
            task.cancel()
        await asyncio.gather(*self._answering, return_exceptions=True)

    async def _answer(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - asyncio calls this method in a task
        self._answering.add(task)
        try:
            if len(self._answering) <= _AT_ONCE and _is_allowed(writer.get_extra_info("socket")):
                writer.transport.set_write_buffer_limits(0)  # so that `drain` waits for the last byte
                writer.write(msgspec.json.encode(await self._status()))
                await asyncio.wait_for(writer.drain(), _PATIENCE)
            writer.close()
        except (OSError, TimeoutError):
            pass
        except Exception:
            log.exception("the control socket at %s cannot send the status", self.path)
        finally:
            self._answering.discard(task)
            writer.transport.abort() if not writer.is_closing() else writer.close()


def ask(paths: Sequence[Path]) -> bytes:
    """Ask several control sockets in turn. Return the status, as JSON, that the first answer contains.

    Raises:
        RefractiumError: no socket answers, or none sends its status to this user.
    """
    failures = []
    for path in paths:
        try:
            return _ask(path)
        except RefractiumError as error:
            failures.append(error)
    raise _no_answer(failures)


def ask_the_only_one(file: Path | None = None) -> bytes:
    """Ask every control socket in the default folders. Return the status, as JSON, of the only instance.

    Args:
        file: the configuration file that the instance was started from; None for any instance.

    Raises:
        RefractiumError: no such instance answers this user, or several instances answer.
    """
    answers: dict[Path, bytes] = {}
    failures = []
    for path in find():
        try:
            answers[path] = _ask(path)
        except RefractiumError as error:
            failures.append(error)
    if file is not None:
        wanted = str(file.resolve())
        answers = {path: answer for path, answer in answers.items() if _file_of(answer) == wanted}
        if not answers:
            reasons = [f"no running instance was started from {file}", *map(str, failures)]
            raise RefractiumError("; ".join(reasons))
    if len(answers) > 1:
        listed = ", ".join(map(str, answers))
        raise RefractiumError(f"several instances run: choose one with -p, -c or --control: {listed}")
    for answer in answers.values():
        return answer
    raise _no_answer(failures or [_NoSocketError(f"no control socket in {', '.join(map(str, folders()))}")])


def _no_answer(failures: Sequence[RefractiumError]) -> RefractiumError:
    """Return one error for all control sockets that were asked."""
    text = "; ".join(map(str, failures))
    if all(isinstance(one, _NoSocketError) for one in failures):
        text += ": give its path with --control; if an instance has no control socket, its log says why"
    return RefractiumError(text)


def _ask(path: Path) -> bytes:
    """Return the answer of one control socket.

    Raises:
        RefractiumError: the socket does not answer, or does not send its status to this user.
    """
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(_PATIENCE)
            sock.connect(os.fspath(path))
            if not _is_trusted(sock, path):
                raise RefractiumError(
                    f"{path} is not answered by a process of yours, of root or of the owner of its folder"
                )
            answer = _receive_all(sock)
    except FileNotFoundError as error:
        raise _NoSocketError(f"no control socket at {path}") from error
    except ConnectionRefusedError as error:
        raise RefractiumError(f"nothing listens at {path} any more") from error
    except PermissionError as error:
        raise RefractiumError(
            f"{path} belongs to another user: only that user and root get the status"
        ) from error
    except OSError as error:
        raise RefractiumError(f"{path} does not answer: {error.strerror or error}") from error
    if not answer:
        raise RefractiumError(f"{path} gives no answer: the instance may be busy or belong to another user")
    return answer


def decode(answer: bytes) -> Status:
    """Decode an answer that `ask` returned.

    Raises:
        RefractiumError: the answer is not a status, or is the status of another version.
    """
    try:
        return msgspec.json.decode(answer, type=Status)
    except msgspec.DecodeError as error:
        raise RefractiumError(f"cannot read the answer ({error}): is it from another version?") from error


class _File(Struct):
    """The attribute `Status.file` of a status."""

    file: str = ""


def _file_of(answer: bytes) -> str:
    """Return `Status.file` of an answer; empty if the answer is the status of another version."""
    with contextlib.suppress(msgspec.DecodeError):
        return msgspec.json.decode(answer, type=_File).file
    return ""


def _receive_all(sock: socket.socket) -> bytes:
    answer = bytearray()
    while len(answer) < _MAX_ANSWER and (chunk := sock.recv(65_536)):
        answer += chunk
    return bytes(answer)


def _bind(sock: socket.socket, path: Path) -> None:
    try:
        sock.bind(os.fspath(path))
    except OSError as error:
        if error.errno != errno.EADDRINUSE or not _is_stale(path):
            raise
        path.unlink()
        sock.bind(os.fspath(path))


def _is_stale(path: Path) -> bool:
    """Return whether the path is a socket on which nobody listens any more."""
    if not stat.S_ISSOCK(path.lstat().st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        return probe.connect_ex(os.fspath(path)) == errno.ECONNREFUSED


def _is_allowed(sock: socket.socket) -> bool:
    """Return whether a client may get the status: the client runs as root or as the user of this instance."""
    return _peer_uid(sock) in {0, os.geteuid()}


def _is_trusted(sock: socket.socket, path: Path) -> bool:
    """Return whether the peer is trusted: this user, root, or the only user who may write to the folder.

    In a folder such as /tmp, anybody can create a socket with this name before the instance does.
    """
    uid = _peer_uid(sock)
    folder = path.parent.stat()
    owners = set() if folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH) else {folder.st_uid}
    return uid in {0, os.geteuid()} | owners


def _peer_uid(sock: socket.socket) -> int:
    """Return the user id of the peer: of the client if the socket was accepted, else of the listener."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(raw)
    return int(uid)
