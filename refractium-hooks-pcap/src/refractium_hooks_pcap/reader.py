"""Reads pcapng and pcap from a stream, and finds the last whole record of a file that was cut off.

The reader accepts both byte orders, every resolution of time, any link type, and several pcapng sections in
one stream. Section numbers refer to draft-ietf-opsawg-pcapng and draft-ietf-opsawg-pcap.
"""

from __future__ import annotations

import mmap
import struct
from typing import TYPE_CHECKING, BinaryIO, Final, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

ByteOrder: TypeAlias = Literal["little", "big"]

_SECOND: Final = 1_000_000_000
_MAX_RECORD: Final = 16 * 1024 * 1024
"""Largest valid size (bytes) of a block, or of the data of a record; every packet is shorter."""
_PREFIX: Final[dict[ByteOrder, str]] = {"little": "<", "big": ">"}

_SECTION_HEADER: Final = b"\x0a\x0d\x0d\x0a"
_BYTE_ORDERS: Final[dict[bytes, ByteOrder]] = {b"\x4d\x3c\x2b\x1a": "little", b"\x1a\x2b\x3c\x4d": "big"}
_MIN_BLOCK: Final = 12
_INTERFACE_DESCRIPTION: Final = 1
_ENHANCED_PACKET: Final = 6
_ENDOFOPT: Final = 0
_COMMENT: Final = 1
_IF_NAME: Final = 2
_IF_TSRESOL: Final = 9
_IF_TSOFFSET: Final = 14
_BINARY: Final = 0x80
"""The bit of if_tsresol that makes the other bits an exponent of 2 instead of an exponent of 10."""

_PCAP: Final = {
    struct.pack(f"{_PREFIX[order]}I", magic): (order, resolution)
    for order in _PREFIX
    for magic, resolution in ((0xA1B2_C3D4, 1_000_000), (0xA1B2_3C4D, _SECOND))
}
"""The byte order and the number of time units per second, by the first bytes of a pcap file."""
_PCAP_HEADER: Final = 24
_PCAP_RECORD: Final = 16
_LINKTYPE: Final = 0xFFFF
"""The bits of the link type in a field of 32 bits. The other bits describe checksums at the end of frames
(section 4)."""

_MAGIC: Final = 4
"""Number of bytes at the start of a capture that show the format."""


class NotACaptureError(ValueError):
    """An error about bytes that are neither pcapng nor pcap, or that break the rules of the format."""


class Captured(NamedTuple):
    """One packet from a capture.

    Attributes:
        time: time of the packet (ns since the epoch).
        interface: the name of the interface; None if the interface has no name.
        linktype: the kind of header at the start of `data`; 101 is an IP header.
        data: the bytes of the packet that the capture contains.
        length: number of bytes of the whole packet.
        comment: the first comment on the packet; None if there is no comment.
    """

    time: int
    interface: str | None
    linktype: int
    data: bytes
    length: int
    comment: str | None


class PcapHeader(NamedTuple):
    """The header of a pcap file.

    Attributes:
        byte_order: the byte order of all numbers in the file.
        resolution: time units per second: 1,000,000 or 1,000,000,000.
        snaplen: the largest number of bytes that the file contains of each packet.
        linktype: the kind of header at the start of packets.
    """

    byte_order: ByteOrder
    resolution: int
    snaplen: int
    linktype: int


class Extent(NamedTuple):
    """The intact part of a file.

    Attributes:
        end: the offset (bytes) of the end of the last whole record. Any bytes after `end` are an incomplete
            record, or no record.
        pcap: the header of a pcap file; None for pcapng, where a further section may follow at `end`.
    """

    end: int
    pcap: PcapHeader | None


class Reader:
    """A reader of one stream, which skips pcapng blocks that describe neither an interface nor a packet."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._format: _Pcapng | _Pcap | None = None

    def feed(self, data: bytes) -> list[Captured]:
        """Parse the next bytes of the stream; `data` may end anywhere in a record.

        Returns:
            The packets that these bytes complete.

        Raises:
            NotACaptureError: the next bytes are invalid. Earlier calls have returned all packets before the
                invalid bytes.
        """
        self._buffer += data
        found: list[Captured] = []
        try:
            self._read(found)
        except NotACaptureError:
            if not found:
                raise  # Otherwise return the packets; the next call fails at the same bytes and raises.
        return found

    def _read(self, found: list[Captured]) -> None:
        position = 0
        if self._format is None:
            self._format = _recognise(self._buffer)
            if self._format is None:
                return
            position = self._format.start
        try:
            while (end := self._format.end_of(self._buffer, position)) is not None:
                packet = self._format.read(bytes(self._buffer[position:end]))
                if packet is not None:
                    found.append(packet)
                position = end
        finally:
            del self._buffer[:position]


def examine(file: BinaryIO) -> Extent | None:
    """Find the intact part of a regular file, without reading the packets.

    Returns:
        The intact part; None if the file is neither pcapng nor pcap, is empty, or has no whole header.

    Raises:
        OSError: the file cannot be mapped into memory.
    """
    file.seek(0, 2)
    if file.tell() == 0:
        return None
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            form = _recognise(data)
        except NotACaptureError:
            return None
        if form is None:
            return None
        end = form.start
        try:
            while (further := form.end_of(data, end)) is not None:
                end = further
        except NotACaptureError:
            pass  # The bytes from `end` on are not a valid record.
        if end == 0:
            return None
        return Extent(end, form.header if isinstance(form, _Pcap) else None)


def _recognise(data: bytearray | mmap.mmap) -> _Pcapng | _Pcap | None:
    """Return the format of a capture that starts with `data`; None if the bytes are too few to decide.

    Raises:
        NotACaptureError: the bytes are neither pcapng nor pcap.
    """
    magic = bytes(data[:_MAGIC])
    if magic == _SECTION_HEADER:
        return _Pcapng()
    if magic in _PCAP:
        return _Pcap(bytes(data[:_PCAP_HEADER])) if len(data) >= _PCAP_HEADER else None
    if len(magic) == _MAGIC:
        raise NotACaptureError("this is neither pcapng nor pcap")
    return None


class _Interface(NamedTuple):
    """An interface of a pcapng section.

    Attributes:
        name: the name of the interface; None if the interface has no name.
        linktype: the kind of header at the start of packets.
        resolution: time units per second.
        offset: seconds to add to the times of packets.
    """

    name: str | None
    linktype: int
    resolution: int
    offset: int


class _Pcapng:
    """A reader of pcapng blocks (section 3.1)."""

    start: Final = 0

    def __init__(self) -> None:
        self._use("little")

    def _use(self, order: ByteOrder) -> None:
        """Prepare to read a section in this byte order. Sections do not share interfaces (section 4.1)."""
        prefix = _PREFIX[order]
        self._head = struct.Struct(f"{prefix}4sI")
        self._word = struct.Struct(f"{prefix}I")
        self._packet = struct.Struct(f"{prefix}5I")
        self._description = struct.Struct(f"{prefix}H6x")
        self._option = struct.Struct(f"{prefix}HH")
        self._offset = struct.Struct(f"{prefix}q")
        self._interfaces: list[_Interface] = []

    def end_of(self, data: bytearray | mmap.mmap, position: int) -> int | None:
        """Return the end of the block that starts at a position; None if the block is not whole."""
        available = len(data) - position
        if available < _MIN_BLOCK:
            return None
        kind, size = self._head.unpack_from(data, position)
        if kind == _SECTION_HEADER:
            order = _BYTE_ORDERS.get(bytes(data[position + 8 : position + 12]))
            if order is None:
                raise NotACaptureError("invalid section header: it has no byte-order magic")
            self._use(order)
            _, size = self._head.unpack_from(data, position)
        if not _MIN_BLOCK <= size <= _MAX_RECORD or size & 3:
            raise NotACaptureError(f"invalid block of {size} bytes")
        if available < size:
            return None
        if self._word.unpack_from(data, position + size - 4)[0] != size:
            raise NotACaptureError("invalid block: its two lengths differ")
        return int(position + size)

    def read(self, block: bytes) -> Captured | None:
        """Return the packet in a whole block; None if the block contains no packet."""
        kind = self._word.unpack_from(block)[0]
        body = block[8:-4]
        try:
            if kind == _INTERFACE_DESCRIPTION:
                self._interfaces.append(self._interface(body))
            elif kind == _ENHANCED_PACKET:
                return self._captured(body)
        except (struct.error, IndexError):
            message = f"invalid block of type {kind}: it is too short, or its interface is unknown"
            raise NotACaptureError(message) from None
        return None

    def _interface(self, body: bytes) -> _Interface:
        """Read an interface description block (section 4.2)."""
        linktype = self._description.unpack_from(body)[0]
        options = dict(self._options(body[self._description.size :]))
        name = options.get(_IF_NAME)
        resolution = options.get(_IF_TSRESOL, b"\6")[0]
        return _Interface(
            name=None if name is None else name.decode(errors="replace"),
            linktype=linktype,
            resolution=2 ** (resolution & ~_BINARY) if resolution & _BINARY else 10**resolution,
            offset=self._offset.unpack_from(options[_IF_TSOFFSET])[0] if _IF_TSOFFSET in options else 0,
        )

    def _captured(self, body: bytes) -> Captured:
        """Read an enhanced packet block (section 4.3)."""
        number, high, low, stored, length = self._packet.unpack_from(body)
        interface = self._interfaces[number]
        at = self._packet.size
        data = body[at : at + stored]
        if len(data) < stored:
            raise NotACaptureError("invalid block: its packet is longer than the block")
        comment = next(
            (v for k, v in self._options(body[at + stored + (-stored & 3) :]) if k == _COMMENT), None
        )
        return Captured(
            time=(high << 32 | low) * _SECOND // interface.resolution + interface.offset * _SECOND,
            interface=interface.name,
            linktype=interface.linktype,
            data=data,
            length=length,
            comment=None if comment is None else comment.decode(errors="replace"),
        )

    def _options(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield the code and the value of each option (section 3.5)."""
        at = 0
        while at < len(data):
            code, size = self._option.unpack_from(data, at)
            if code == _ENDOFOPT:
                return
            at += self._option.size
            if at + size > len(data):
                raise NotACaptureError("invalid block: an option is longer than the block")
            yield code, data[at : at + size]
            at += size + (-size & 3)


class _Pcap:
    """A reader of pcap records (section 5)."""

    start: Final = _PCAP_HEADER

    def __init__(self, header: bytes) -> None:
        order, resolution = _PCAP[header[:_MAGIC]]
        prefix = _PREFIX[order]
        snaplen, linktype = struct.unpack_from(f"{prefix}II", header, 16)
        self.header = PcapHeader(order, resolution, snaplen, linktype & _LINKTYPE)
        self._record = struct.Struct(f"{prefix}4I")

    def end_of(self, data: bytearray | mmap.mmap, position: int) -> int | None:
        """Return the end of the record that starts at a position; None if the record is not whole."""
        available = len(data) - position
        if available < _PCAP_RECORD:
            return None
        seconds, fraction, stored, length = self._record.unpack_from(data, position)
        if fraction >= self.header.resolution or stored > _MAX_RECORD:
            raise NotACaptureError(f"invalid record of {stored} bytes")
        if not (seconds or length):
            raise NotACaptureError("invalid record: nothing but zeros")  # A power failure can leave zeros.
        end: int = position + _PCAP_RECORD + stored
        return None if len(data) < end else end

    def read(self, record: bytes) -> Captured:
        """Return the packet in a whole record."""
        seconds, fraction, _, length = self._record.unpack_from(record)
        return Captured(
            time=seconds * _SECOND + fraction * (_SECOND // self.header.resolution),
            interface=None,
            linktype=self.header.linktype,
            data=record[_PCAP_RECORD:],
            length=length,
            comment=None,
        )
