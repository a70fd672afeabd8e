"""The settings in ``[plugins.pcap]``: the destination, the format and the selection of packets."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Annotated, Final, Literal

from msgspec import Meta, Struct

from refractium.kit import Address, is_host_name, parse_network
from refractium_hooks_pcap.outputs.names import FileNames
from refractium_hooks_pcap.outputs.ownership import why_not_ours
from refractium_hooks_pcap.reader import NotACaptureError, Reader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

STDOUT: Final = "-"
LOOPBACK: Final = "127.0.0.1"
_HEAD: Final = 24
"""Number of bytes at the start of a file that show whether the file is a capture."""

_FileBytes = Annotated[int, Meta(ge=65_536, le=1 << 50)]
_FileSeconds = Annotated[int, Meta(ge=1, le=366 * 24 * 3600)]
_FileCount = Annotated[int, Meta(ge=1, le=1_000_000)]


class PcapSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The destination of packets, the rotation of files, and the selection of sessions."""

    path: Annotated[
        str | None,
        Meta(
            description="A file (one for each {protocol}, {route} or {transport}), a FIFO, or - for stdout."
            " {date} and {time} (UTC) are the date and time of the first packet; {number} counts the files."
        ),
    ] = None
    format: Annotated[
        Literal["pcapng", "pcap"] | None,
        Meta(description="The format. Default: pcap if path ends in .pcap, else pcapng."),
    ] = None
    snaplen: Annotated[int, Meta(ge=64, le=262_144, description="Bytes to store of each packet.")] = 262_144
    max_bytes: Annotated[
        _FileBytes | None, Meta(description="Start another file before a file exceeds this size.")
    ] = None
    max_seconds: Annotated[
        _FileSeconds | None, Meta(description="Start another file when a file has reached this age.")
    ] = None
    max_files: Annotated[
        _FileCount | None, Meta(description="Remove the oldest file when a run exceeds this number of files.")
    ] = None
    listen: Annotated[
        int | str | None,
        Meta(description="The port, or address and port, to which Wireshark connects: TCP@127.0.0.1:19000."),
    ] = None
    protocols: Annotated[
        tuple[str, ...], Meta(description="Write only sessions of these protocols. Default: all.")
    ] = ()
    clients: Annotated[
        tuple[str, ...],
        Meta(description="Write only sessions of clients with these addresses or networks. Default: all."),
    ] = ()
    sni: Annotated[
        tuple[str, ...],
        Meta(description="Write only sessions with these TLS server names; * is one label. Default: all."),
    ] = ()

    @property
    def is_classic(self) -> bool:
        """Whether the format is pcap, not pcapng."""
        if self.format is None:
            return self.path is not None and self.path.endswith(".pcap")
        return self.format == "pcap"

    @property
    def is_rotated(self) -> bool:
        return self.max_bytes is not None or self.max_seconds is not None

    @property
    def file_names(self) -> FileNames:
        """The file names that `path` describes. `path` must be neither stdout nor a FIFO.

        Raises:
            ValueError: `path` cannot be the name of a file.
        """
        return FileNames.parse(self.path or "", numbered=self.is_rotated)

    @property
    def sni_names(self) -> tuple[str, ...]:
        """The names of `sni` in lower case, without a final dot."""
        return tuple(name.lower().removesuffix(".") for name in self.sni)


def listen_address(listen: int | str) -> tuple[str, int]:
    """Return the IP address and the port of the setting ``listen``; port 0 stands for any free port.

    Args:
        listen: a port on the loopback address, or an address and a port: ``127.0.0.1:19000``,
            ``[::1]:19000``.

    Raises:
        ValueError: `listen` is neither a port nor an address and a port.
    """
    address = parse_address(str(listen), lowest_port=0)
    if address.is_unix or address.is_name:
        raise ValueError(f'"{address}" is not an IP address and a port: write {LOOPBACK}:19000')
    return address.host, address.port


def parse_address(text: str, lowest_port: int = 1) -> Address:
    """Parse an address, or a port of the loopback address.

    Raises:
        ValueError: the text is neither an address nor a port.
    """
    return Address.parse(f"{LOOPBACK}:{text}" if text.isdecimal() else text, lowest_port)


def problems_of_settings(settings: PcapSettings) -> Iterator[tuple[str, str]]:
    """Yield a pair of a key and a message for each problem of settings. All types are correct already.

    The function also checks the folder of `path`, and the file if it exists. So a bad path fails at the start
    and not at the first packet.
    """
    if settings.path is None and settings.listen is None:
        yield "path", "packets have nowhere to go: set path or listen"
    if settings.path not in (None, STDOUT):
        yield from _refused("path", _check_path, [settings])
    if settings.listen is not None:
        yield from _refused("listen", listen_address, [settings.listen])
    yield from _problems_of_rotation(settings)
    yield from _refused("clients", parse_network, settings.clients)
    yield from _refused("sni", _check_server_name, settings.sni)


def _problems_of_rotation(settings: PcapSettings) -> Iterator[tuple[str, str]]:
    if settings.is_rotated and (settings.path in (None, STDOUT) or is_fifo(settings.path)):
        key = "max_seconds" if settings.max_bytes is None else "max_bytes"
        yield key, "only files are rotated: set path to a file, or leave this out"
    if settings.max_files is not None and not settings.is_rotated:
        yield "max_files", "without max_bytes or max_seconds there is one file: set one, or leave this out"


def _refused(key: str, check: Callable[..., object], values: Iterable[object]) -> Iterator[tuple[str, str]]:
    for value in values:
        try:
            check(value)
        except ValueError as error:
            yield key, str(error)


def is_fifo(path: str) -> bool:
    """Return whether a path names a FIFO now."""
    try:
        return stat.S_ISFIFO(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def _check_path(settings: PcapSettings) -> None:
    names = settings.file_names
    folder = names.folder
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"cannot create files in the folder {folder}")
    if (path := names.only_path) is not None:
        _check_file(path)


def _check_file(path: Path) -> None:
    try:
        stat_result = path.lstat()
    except FileNotFoundError:
        return
    mode = stat_result.st_mode
    if stat.S_ISLNK(mode):
        raise ValueError(f"{path} is a symbolic link: give the path of the file itself")
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
        raise ValueError(f"{path} is neither a file nor a FIFO")
    if (fault := why_not_ours(stat_result)) is not None:
        raise ValueError(f"{path}: {fault}")
    if not os.access(path, os.W_OK if stat.S_ISFIFO(mode) else os.R_OK | os.W_OK):
        raise ValueError(f"{path} cannot be written")
    if stat.S_ISREG(mode):
        _check_content(path)


def _check_content(path: Path) -> None:
    """Check by the first bytes that an existing file is a capture, because the hook appends to the file."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    try:
        Reader().feed(head)
    except NotACaptureError:
        raise ValueError(f"{path} exists and is not a capture: remove it, or choose another path") from None


def _check_server_name(name: str) -> None:
    if not (name.isascii() and is_host_name(name.removeprefix("*."))):
        raise ValueError(f'"{name}" is not a server name: write a name such as example.org or *.example.org')
