"""What there is to be read: files, stdin, and running instances."""

from __future__ import annotations

import glob
import os
import select
import socket
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from refractium.kit import Address, ConfigError, Problem
from refractium_hooks_pcap.capture.intake import STDOUT, CaptureError, Copy, Intake, reason_of
from refractium_hooks_pcap.settings import LOOPBACK, is_fifo, listen_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from io import FileIO
    from typing import Self

    from refractium_hooks_pcap.outputs import FileNames
    from refractium_hooks_pcap.reader import Captured
    from refractium_hooks_pcap.settings import PcapSettings

STDIN: Final = "-"
_AT_A_PORT: Final = "TCP@"
"""How Wireshark calls what comes over a connection."""
_PIECE: Final = 1 << 18
"""Bytes that are read at once."""
_TICK: Final = 0.25
"""Seconds until it is said that nothing has come, and until files are looked at again."""
_PATIENCE: Final = 5.0
"""Seconds that an instance has to answer, and to send the beginning, which it sends unasked."""


class Source(Protocol):
    """What packets come from.

    Attributes:
        name: what it is, for people.
        is_live: whether more may come than there is now.
        warnings: what was found amiss at its end.
    """

    name: str
    is_live: bool
    warnings: list[str]

    def read(self, copy: Copy | None) -> Iterator[Sequence[Captured]]:
        """Packets as they come, to the end; none of them several times a second while none come.

        Args:
            copy: where all is passed on to.

        Raises:
            CaptureError: nothing further can be read.
        """

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def open_source(text: str, *, follow: bool) -> Source:
    """What the command line names: a file, ``-`` for stdin, ``TCP@HOST:PORT``, ``HOST:PORT`` or ``PORT``.

    Args:
        text: it.
        follow: whether to go on as a file grows.

    Raises:
        CaptureError: it is not there.
        ConfigError: it is an address that cannot be.
    """
    if text == STDIN:
        return Stream("stdin", 0)
    if text[: len(_AT_A_PORT)].upper() == _AT_A_PORT:
        try:
            return connect(_parse_address(text[len(_AT_A_PORT) :]))
        except ValueError as error:
            raise ConfigError([Problem(str(error), where=text)]) from None
    path = Path(text)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        try:
            return connect(_parse_address(text))
        except ValueError:
            raise CaptureError(f"cannot read {text}: {reason_of(error)}") from None
    if stat.S_ISREG(mode):
        return Files(text, lambda: [path], follow=follow)
    return _open_stream(path)


def open_configured(settings: PcapSettings, *, follow: bool) -> Source:
    """What a configuration says that packets go to: where it listens, or else its files.

    Args:
        settings: with ``listen`` or ``path``.
        follow: whether to go on as the files grow.

    Raises:
        CaptureError: it is not there.
        ValueError: it says nothing that can be read; the message says why.
    """
    if settings.listen is not None:
        host, port = listen_address(settings.listen)
        if port == 0:
            raise ValueError("the port is any free one: say which one it was given, as TCP@HOST:PORT")
        return connect(Address(host, port))
    if settings.path is None:
        raise ValueError("there is neither listen nor path: say what is to be read")
    if settings.path == STDOUT:
        raise ValueError("packets go to stdout: put `| refractium capture -` behind the command that serves")
    if is_fifo(settings.path):
        return _open_stream(Path(settings.path))
    find = _finder(settings.file_names)
    if not find() and not follow:
        raise CaptureError(f"there is no file {settings.path} yet; --follow waits for it")
    return Files(settings.path, find, follow=follow)


def connect(address: Address) -> Stream:
    """The stream of a running instance.

    Raises:
        CaptureError: nobody is there.
        ValueError: no connection can be made to such an address.
    """
    if address.is_unix:
        raise ValueError("viewers are not served at unix sockets")
    try:
        connection = socket.create_connection((address.host, address.port), _PATIENCE)
    except OSError as error:
        message = f"no capture can be had at {address}: {reason_of(error)}; is listen = {address.port} under"
        raise CaptureError(f"{message} [plugins.pcap] of what runs there?") from None
    return Stream(f"{_AT_A_PORT}{address}", connection.detach(), patience=_PATIENCE)


def _parse_address(text: str) -> Address:
    return Address.parse(f"{LOOPBACK}:{text}" if text.isdecimal() else text)


def _open_stream(path: Path) -> Stream:
    try:
        return Stream(str(path), os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        raise CaptureError(f"cannot read {path}: {reason_of(error)}") from None


def _finder(names: FileNames) -> Callable[[], list[Path]]:
    """What finds the files that are called so, in the order of their names."""
    pattern = "".join(glob.escape(text) + ("*" if field else "") for text, field in names.parts)
    return lambda: sorted(path for path in names.folder.glob(pattern) if path.is_file())


class Stream:
    """A connection, a pipe, or stdin.

    Args:
        name: for people.
        fd: what is read, and closed in the end.
        patience: seconds within which something must come, if at all.
    """

    def __init__(self, name: str, fd: int, *, patience: float | None = None) -> None:
        self.name = name
        self.is_live = True
        self.warnings: list[str] = []
        self._fd = fd
        self._patience = patience

    def read(self, copy: Copy | None) -> Iterator[Sequence[Captured]]:
        intake = Intake(self.name, copy)
        end = None if self._patience is None else time.monotonic() + self._patience
        while True:
            if not select.select((self._fd,), (), (), _TICK)[0]:
                if end is not None and time.monotonic() >= end:
                    raise CaptureError(f"{self.name}: nothing comes, so this is no capture")
                yield ()
                continue
            if not (data := self._receive()):
                break
            end = None
            yield intake.take(data)
        if warning := intake.finish():
            self.warnings.append(warning)

    def _receive(self) -> bytes:
        try:
            return os.read(self._fd, _PIECE)
        except ConnectionResetError:
            return b""
        except OSError as error:
            raise CaptureError(f"cannot read {self.name}: {reason_of(error)}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


class Files:
    """Files, one after the other, or all at once as they grow.

    While they are followed, further ones may come, be replaced and be removed.

    Args:
        name: for people.
        find: the files that there are now.
        follow: whether to go on as they grow.
    """

    def __init__(self, name: str, find: Callable[[], list[Path]], *, follow: bool) -> None:
        self.name = name
        self.is_live = follow
        self.warnings: list[str] = []
        self._find = find
        self._followed: dict[Path, _File] = {}

    def read(self, copy: Copy | None) -> Iterator[Sequence[Captured]]:
        if self.is_live:
            while True:
                yield from self._read_new(copy)
                yield ()
                time.sleep(_TICK)
        for path in self._find():
            if (file := _open_file(path, copy)) is None:
                continue
            with file:
                yield from file.read()
                if warning := file.intake.finish():
                    self.warnings.append(warning)

    def _read_new(self, copy: Copy | None) -> Iterator[Sequence[Captured]]:
        for path in self._find():
            if path not in self._followed and (found := _open_file(path, copy)) is not None:
                self._followed[path] = found
        for path, file in [*self._followed.items()]:
            is_there = file.is_there  # asked first, so that the rest of one that is not is read
            yield from file.read()
            file.rewind()
            if not is_there:
                self._followed.pop(path).close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._followed.values():
            file.close()


def _open_file(path: Path, copy: Copy | None) -> _File | None:
    """None if it has just been removed."""
    try:
        return _File(path, path.open("rb", buffering=0), copy)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CaptureError(f"cannot read {path}: {reason_of(error)}") from None


class _File:
    """One of them, open."""

    def __init__(self, path: Path, file: FileIO, copy: Copy | None) -> None:
        self.intake = Intake(str(path), copy)
        self._path = path
        self._file = file

    @property
    def is_there(self) -> bool:
        """Whether the name is still that of this file, with what has been read of it."""
        try:
            there = self._path.stat()
        except OSError:
            return False
        return os.path.samestat(there, os.fstat(self._file.fileno())) and there.st_size >= self._file.tell()

    def read(self) -> Iterator[list[Captured]]:
        """What there is now.

        Raises:
            CaptureError: nothing further can be read.
        """
        try:
            while data := self._file.read(_PIECE):
                yield self.intake.take(data)
        except OSError as error:
            raise CaptureError(f"cannot read {self._path}: {reason_of(error)}") from None

    def rewind(self) -> None:
        """Go back behind the last whole record.

        What follows it may not be there as a whole yet, or whoever writes may cut it off.
        """
        self._file.seek(-self.intake.forget_pending(), os.SEEK_CUR)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
