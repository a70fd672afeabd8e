"""What ``[plugins.pcap]`` says: where packets go, in which form, and whose."""

from __future__ import annotations

import os
import stat
from ipaddress import ip_address
from typing import TYPE_CHECKING, Annotated, Final, Literal

from msgspec import Meta, Struct

from refractium.kit import is_host_name, parse_network
from refractium_hooks_pcap.outputs.names import FileNames
from refractium_hooks_pcap.outputs.ownership import why_not_ours
from refractium_hooks_pcap.reader import NotACaptureError, Reader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

STDOUT: Final = "-"
LOOPBACK: Final = "127.0.0.1"
_HEAD: Final = 24
"""Bytes that tell whether a file is a capture."""
_MAX_PORT: Final = 65_535

_FileBytes = Annotated[int, Meta(ge=65_536, le=1 << 50)]
_FileSeconds = Annotated[int, Meta(ge=1, le=366 * 24 * 3600)]
_FileCount = Annotated[int, Meta(ge=1, le=1_000_000)]


class PcapSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the packets go, how files are rotated, and which sessions are written."""

    path: Annotated[
        str | None,
        Meta(
            description="The file; one for each {protocol}, {route} or {transport}. {date} and {time} (UTC)"
            " are those of its first packet; {number} counts. Or a FIFO, or - for stdout."
        ),
    ] = None
    format: Annotated[
        Literal["pcapng", "pcap"] | None,
        Meta(description="The form. Without it: pcap if path ends in .pcap, else pcapng."),
    ] = None
    snaplen: Annotated[int, Meta(ge=64, le=262_144, description="Bytes kept of each packet.")] = 262_144
    max_bytes: Annotated[
        _FileBytes | None, Meta(description="A file that would get larger is followed by another.")
    ] = None
    max_seconds: Annotated[
        _FileSeconds | None, Meta(description="A file that gets older is followed by another.")
    ] = None
    max_files: Annotated[
        _FileCount | None, Meta(description="Of more files of one run, the oldest is removed.")
    ] = None
    listen: Annotated[
        int | str | None,
        Meta(description="The port, or address and port, where Wireshark can look on: TCP@127.0.0.1:19000."),
    ] = None
    protocols: Annotated[
        tuple[str, ...], Meta(description="The protocols that are written. Without it: all.")
    ] = ()
    clients: Annotated[
        tuple[str, ...],
        Meta(description="Addresses and networks of the clients that are written. Without it: all."),
    ] = ()
    sni: Annotated[
        tuple[str, ...],
        Meta(
            description="TLS server names that are written; *.example.org covers one label. Without it: all."
        ),
    ] = ()

    @property
    def is_classic(self) -> bool:
        """Whether the form is pcap, not pcapng."""
        if self.format is None:
            return self.path is not None and self.path.endswith(".pcap")
        return self.format == "pcap"

    @property
    def is_rotated(self) -> bool:
        return self.max_bytes is not None or self.max_seconds is not None

    @property
    def file_names(self) -> FileNames:
        """What `path` says, if it is neither stdout nor a FIFO.

        Raises:
            ValueError: no file can have that name.
        """
        return FileNames.parse(self.path or "", numbered=self.is_rotated)

    @property
    def sni_names(self) -> tuple[str, ...]:
        """What `sni` says, in lower case, without the dot that may end a name."""
        return tuple(name.lower().removesuffix(".") for name in self.sni)


def listen_address(listen: int | str) -> tuple[str, int]:
    """The IP address, loopback unless one is written, and the port, 0 for any free one.

    Args:
        listen: a port, or ``127.0.0.1:19000``, ``[::1]:19000``.

    Raises:
        ValueError: it is none of these.
    """
    host, colon, port = str(listen).rpartition(":")
    if not (port.isascii() and port.isdecimal() and int(port[:6]) <= _MAX_PORT):
        raise ValueError(f"write a port, from 0 to {_MAX_PORT}, or an address and a port: {LOOPBACK}:19000")
    if not colon:
        return LOOPBACK, int(port)
    bare = host.removeprefix("[").removesuffix("]")
    if (host != bare) != (":" in bare):
        raise ValueError("brackets belong to an IPv6 address: [::1]:19000")
    try:
        return str(ip_address(bare)), int(port)
    except ValueError:
        raise ValueError(f"{bare!r} is not an IP address") from None


def problems_of_settings(settings: PcapSettings) -> Iterator[tuple[str, str]]:
    """What is wrong with settings whose types are right: pairs of a key and a message.

    The folder and, where it is there already, the file are looked at, so that the start fails, not the first
    packet.
    """
    if settings.path is None and settings.listen is None:
        yield "path", "packets have nowhere to go: give a path, or listen for viewers"
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
        yield key, "only files can be followed by others"
    if settings.max_files is not None and not settings.is_rotated:
        yield "max_files", "without max_bytes or max_seconds there is one file"


def _refused(key: str, check: Callable[..., object], values: Iterable[object]) -> Iterator[tuple[str, str]]:
    for value in values:
        try:
            check(value)
        except ValueError as error:
            yield key, str(error)


def is_fifo(path: str) -> bool:
    """Whether a path is that of a FIFO now."""
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
        raise ValueError(f"no file can be made in the folder {folder}")
    if (path := names.only_path) is not None:
        _check_file(path)


def _check_file(path: Path) -> None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    mode = status.st_mode
    if stat.S_ISLNK(mode):
        raise ValueError(f"{path} is a symbolic link, and these are not followed")
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
        raise ValueError(f"{path} is neither a file nor a FIFO")
    if (fault := why_not_ours(status)) is not None:
        raise ValueError(f"{path}: {fault}")
    if not os.access(path, os.W_OK if stat.S_ISFIFO(mode) else os.R_OK | os.W_OK):
        raise ValueError(f"{path} cannot be written")
    if stat.S_ISREG(mode):
        _check_content(path)


def _check_content(path: Path) -> None:
    """What is there is appended to; without its packets that is seen from its first bytes."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    try:
        Reader().feed(head)
    except NotACaptureError:
        raise ValueError(f"{path} is there already and no capture, so it is left as it is") from None


def _check_server_name(name: str) -> None:
    if not (name.isascii() and is_host_name(name.removeprefix("*."))):
        raise ValueError(f"{name!r} is not a server name: they are like example.org or *.example.org")
