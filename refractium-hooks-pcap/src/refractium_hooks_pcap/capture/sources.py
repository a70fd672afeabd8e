"""Sources of packets: files, stdin, and running instances."""

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
from refractium_hooks_pcap.settings import is_fifo, listen_address, parse_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from io import FileIO
    from typing import Self

    from refractium_hooks_pcap.outputs import FileNames
    from refractium_hooks_pcap.reader import Captured
    from refractium_hooks_pcap.settings import PcapSettings

STDIN: Final = "-"
_AT_A_PORT: Final = "TCP@"
"""The prefix that Wireshark puts before the address of a connection."""
_PIECE: Final = 1 << 18
"""Largest number of bytes in one read."""
_TICK: Final = 0.25
"""Seconds until a silent stream yields an empty sequence, and seconds between two reads of followed files."""
_PATIENCE: Final = 5.0
"""Seconds within which an instance must accept the connection, and then send the first bytes."""


class Source(Protocol):
    """A source of packets.

    Attributes:
        name: the name of the source, for messages and tables.
        is_live: whether more packets may arrive later.
        warnings: problems that `read` found at the end of the source.
    """

    name: str
    is_live: bool
    warnings: list[str]

    def read(self, copy: Copy | None) -> Iterator[Sequence[Captured]]:
        """Yield packets as they arrive, until the source ends.

        While no packet arrives, `read` yields an empty sequence several times a second.

        Args:
            copy: the target to which all bytes are copied; None for no copy.

        Raises:
            CaptureError: the source cannot be read any further.
        """

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def open_source(text: str, *, follow: bool) -> Source:
    """Open the source that the command line names.

    Args:
        text: a file, ``-`` for stdin, ``TCP@HOST:PORT``, ``HOST:PORT`` or ``PORT``.
        follow: whether to wait at the end of a file until it grows or is replaced.

    Raises:
        CaptureError: the source does not exist or cannot be opened.
        ConfigError: the text after ``TCP@`` is not a valid address.
    """
    if text == STDIN:
        return Stream("stdin", 0)
    if text[: len(_AT_A_PORT)].upper() == _AT_A_PORT:
        try:
            return connect(parse_address(text[len(_AT_A_PORT) :]))
        except ValueError as error:
            raise ConfigError([Problem(str(error), where=text)]) from None
    path = Path(text)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        try:
            return connect(parse_address(text))
        except ValueError:
            raise CaptureError(f"cannot read {text}: {reason_of(error)}") from None
    if stat.S_ISREG(mode):
        return Files(text, lambda: [path], follow=follow)
    return _open_stream(path)


def open_configured(settings: PcapSettings, *, follow: bool) -> Source:
    """Open the source that settings name: the address in ``listen``, or else the files in ``path``.

    Args:
        settings: settings with ``listen`` or ``path``.
        follow: whether to wait for further bytes and files after the last file.

    Raises:
        CaptureError: the source does not exist or cannot be opened.
        ValueError: the settings name no source that can be read; the message gives the reason.
    """
    if settings.listen is not None:
        host, port = listen_address(settings.listen)
        if port == 0:
            raise ValueError("the port of listen is 0, any free port: give the port in use, as TCP@HOST:PORT")
        return connect(Address(host, port))
    if settings.path is None:
        raise ValueError("there is neither listen nor path: name the capture on the command line")
    if settings.path == STDOUT:
        raise ValueError("packets go to stdout: add `| refractium capture -` to the command that serves")
    if is_fifo(settings.path):
        return _open_stream(Path(settings.path))
    find = _finder(settings.file_names)
    if not find() and not follow:
        raise CaptureError(f"there is no file {settings.path} yet; --follow waits for it")
    return Files(settings.path, find, follow=follow)


def connect(address: Address) -> Stream:
    """Connect to a running instance, and return the stream of packets.

    Raises:
        CaptureError: the connection fails.
        ValueError: the address is a unix socket, at which no instance serves viewers.
    """
    if address.is_unix:
        raise ValueError("viewers are not served at unix sockets: give HOST:PORT")
    try:
        connection = socket.create_connection((address.host, address.port), _PATIENCE)
    except OSError as error:
        message = f"cannot connect to {address}: {reason_of(error)}; set listen = {address.port}"
        raise CaptureError(f"{message} in [plugins.pcap] of the instance there") from None
    return Stream(f"{_AT_A_PORT}{address}", connection.detach(), patience=_PATIENCE)


def _open_stream(path: Path) -> Stream:
    try:
        return Stream(str(path), os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        raise CaptureError(f"cannot read {path}: {reason_of(error)}") from None


def _finder(names: FileNames) -> Callable[[], list[Path]]:
    """Return a function that returns the existing files with these names, sorted by path."""
    pattern = "".join(glob.escape(text) + ("*" if field else "") for text, field in names.parts)
    return lambda: sorted(path for path in names.folder.glob(pattern) if path.is_file())


class Stream:
    """A source that is a connection, a pipe, or stdin.

    Args:
        name: the name of the source, for messages and tables.
        fd: the descriptor to read from; the end of the block closes the descriptor.
        patience: seconds within which the first bytes must arrive; None for no limit.
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
                    raise CaptureError(f"{self.name}: no data comes, so this is not a capture")
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
    """A source that reads files one after the other, or follows all growing files at once.

    While `Files` follows files, new files may appear, and other programs may replace or remove files.

    Args:
        name: the name of the source, for messages and tables.
        find: a function that returns the files that exist now.
        follow: whether to wait for further bytes and files after the last file.
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
            is_there = file.is_there  # checked before the read, so that a removed file is read to its end
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
    """Open a file; return None if the file has just been removed."""
    try:
        return _File(path, path.open("rb", buffering=0), copy)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CaptureError(f"cannot read {path}: {reason_of(error)}") from None


class _File:
    """An open file of `Files`."""

    def __init__(self, path: Path, file: FileIO, copy: Copy | None) -> None:
        self.intake = Intake(str(path), copy)
        self._path = path
        self._file = file

    @property
    def is_there(self) -> bool:
        """Whether the path still names this file, and the file still contains all bytes that were read."""
        try:
            there = self._path.stat()
        except OSError:
            return False
        return os.path.samestat(there, os.fstat(self._file.fileno())) and there.st_size >= self._file.tell()

    def read(self) -> Iterator[list[Captured]]:
        """Yield the packets that are in the file now.

        Raises:
            CaptureError: the file cannot be read any further.
        """
        try:
            while data := self._file.read(_PIECE):
                yield self.intake.take(data)
        except OSError as error:
            raise CaptureError(f"cannot read {self._path}: {reason_of(error)}") from None

    def rewind(self) -> None:
        """Move the read position back to the end of the last whole record.

        The writer of the file may later complete the incomplete record, or cut this record off.
        """
        self._file.seek(-self.intake.forget_pending(), os.SEEK_CUR)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
