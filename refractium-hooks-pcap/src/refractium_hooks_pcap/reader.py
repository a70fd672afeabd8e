"""Reads pcapng and pcap as they come in, and finds where a file that was cut off has its last whole record.

Both byte orders, every resolution of time, any link type; of pcapng, several sections in one stream. Section
numbers are those of draft-ietf-opsawg-pcapng and draft-ietf-opsawg-pcap.
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
"""Bytes of a block or of the data of a record: what tells of more is no capture. No packet is as long."""
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
"""In if_tsresol: the other bits are a power of 2, not of 10."""

_PCAP: Final = {
    struct.pack(f"{_PREFIX[order]}I", magic): (order, resolution)
    for order in _PREFIX
    for magic, resolution in ((0xA1B2_C3D4, 1_000_000), (0xA1B2_3C4D, _SECOND))
}
"""How pcap starts: its byte order, and the parts of a second that its times count."""
_PCAP_HEADER: Final = 24
_PCAP_RECORD: Final = 16
_LINKTYPE: Final = 0xFFFF
"""The rest of that word tells of checksums at the end of frames (section 4)."""

_MAGIC: Final = 4
"""Bytes that tell which format it is."""


class NotACaptureError(ValueError):
    """The bytes are neither pcapng nor pcap, or they break its rules."""


class Captured(NamedTuple):
    """One packet that was read.

    Attributes:
        time: when (ns since the epoch).
        interface: the name of the interface, where it has one.
        linktype: what `data` starts with; 101 is an IP header.
        data: the bytes that were kept.
        length: bytes that the packet had.
        comment: the first comment on it, where there is one.
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
        byte_order: of all its numbers.
        resolution: parts of a second that its times count: 1,000,000 or 1,000,000,000.
        snaplen: bytes that are kept of a packet, at the most.
        linktype: what packets start with.
    """

    byte_order: ByteOrder
    resolution: int
    snaplen: int
    linktype: int


class Extent(NamedTuple):
    """How much of a file is sound.

    Attributes:
        end: the offset (bytes) behind the last whole record; what follows was cut off, or is no record.
        pcap: the header, if it is pcap; None if it is pcapng, where a further section may follow at `end`.
    """

    end: int
    pcap: PcapHeader | None


class Reader:
    """Reads a stream. Of pcapng, blocks other than those of interfaces and packets are passed over."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._format: _Pcapng | _Pcap | None = None

    def feed(self, data: bytes) -> list[Captured]:
        """Take further bytes, however they are cut.

        Returns:
            The packets that are whole with them.

        Raises:
            NotACaptureError: nothing further can be read. Packets ahead of the fault have been returned.
        """
        self._buffer += data
        found: list[Captured] = []
        try:
            self._read(found)
        except NotACaptureError:
            if not found:
                raise  # Else the next call comes upon it.
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
    """Find how much of a regular file is sound, without reading the packets in it.

    Returns:
        None if the file is neither pcapng nor pcap: so it is if it is empty, or not even its header is whole.

    Raises:
        OSError: it cannot be mapped into memory.
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
            pass  # What follows is no record.
        if end == 0:
            return None
        return Extent(end, form.header if isinstance(form, _Pcap) else None)


def _recognise(data: bytearray | mmap.mmap) -> _Pcapng | _Pcap | None:
    """The format of what starts so; None if that is too little to tell.

    Raises:
        NotACaptureError: it is neither.
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
    """What a section tells of one of its interfaces.

    Attributes:
        name: where it has one.
        linktype: what its packets start with.
        resolution: parts of a second that its times count.
        offset: seconds to be added to these.
    """

    name: str | None
    linktype: int
    resolution: int
    offset: int


class _Pcapng:
    """Reads the blocks of pcapng (section 3.1)."""

    start: Final = 0

    def __init__(self) -> None:
        self._use("little")

    def _use(self, order: ByteOrder) -> None:
        """A section begins; it has interfaces of its own (section 4.1)."""
        prefix = _PREFIX[order]
        self._order = order
        self._head = struct.Struct(f"{prefix}4sI")
        self._word = struct.Struct(f"{prefix}I")
        self._packet = struct.Struct(f"{prefix}5I")
        self._description = struct.Struct(f"{prefix}H6x")
        self._option = struct.Struct(f"{prefix}HH")
        self._offset = struct.Struct(f"{prefix}q")
        self._interfaces: list[_Interface] = []

    def end_of(self, data: bytearray | mmap.mmap, position: int) -> int | None:
        """Where the block ends that starts at a position; None if it is not whole."""
        available = len(data) - position
        if available < _MIN_BLOCK:
            return None
        kind, size = self._head.unpack_from(data, position)
        if kind == _SECTION_HEADER:
            order = _BYTE_ORDERS.get(bytes(data[position + 8 : position + 12]))
            if order is None:
                raise NotACaptureError("a section header without a byte-order magic")
            self._use(order)
            _, size = self._head.unpack_from(data, position)
        if not _MIN_BLOCK <= size <= _MAX_RECORD or size & 3:
            raise NotACaptureError(f"a block of {size} bytes")
        if available < size:
            return None
        if self._word.unpack_from(data, position + size - 4)[0] != size:
            raise NotACaptureError("a block whose two lengths differ")
        return int(position + size)

    def read(self, block: bytes) -> Captured | None:
        """The packet in a block that is whole, if there is one."""
        kind = self._word.unpack_from(block)[0]
        body = block[8:-4]
        try:
            if kind == _INTERFACE_DESCRIPTION:
                self._interfaces.append(self._interface(body))
            elif kind == _ENHANCED_PACKET:
                return self._captured(body)
        except (struct.error, IndexError) as fault:
            raise NotACaptureError(f"a block of type {kind} that is too short: {fault}") from None
        return None

    def _interface(self, body: bytes) -> _Interface:
        """Section 4.2."""
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
        """Section 4.3."""
        number, high, low, stored, length = self._packet.unpack_from(body)
        interface = self._interfaces[number]
        at = self._packet.size
        data = body[at : at + stored]
        if len(data) < stored:
            raise NotACaptureError("a packet that is longer than its block")
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
        """Section 3.5."""
        at = 0
        while at < len(data):
            code, size = self._option.unpack_from(data, at)
            if code == _ENDOFOPT:
                return
            at += self._option.size
            if at + size > len(data):
                raise NotACaptureError("an option that is longer than its block")
            yield code, data[at : at + size]
            at += size + (-size & 3)


class _Pcap:
    """Reads the records of pcap (section 5)."""

    start: Final = _PCAP_HEADER

    def __init__(self, header: bytes) -> None:
        order, resolution = _PCAP[header[:_MAGIC]]
        prefix = _PREFIX[order]
        snaplen, linktype = struct.unpack_from(f"{prefix}II", header, 16)
        self.header = PcapHeader(order, resolution, snaplen, linktype & _LINKTYPE)
        self._record = struct.Struct(f"{prefix}4I")

    def end_of(self, data: bytearray | mmap.mmap, position: int) -> int | None:
        """Where the record ends that starts at a position; None if it is not whole."""
        available = len(data) - position
        if available < _PCAP_RECORD:
            return None
        seconds, fraction, stored, length = self._record.unpack_from(data, position)
        if fraction >= self.header.resolution or stored > _MAX_RECORD:
            raise NotACaptureError(f"a record of {stored} bytes")
        if not (seconds or length):
            raise NotACaptureError("a record of nothing but zeros")  # So files end when the power fails.
        end: int = position + _PCAP_RECORD + stored
        return None if len(data) < end else end

    def read(self, record: bytes) -> Captured:
        """The packet in a record that is whole."""
        seconds, fraction, _, length = self._record.unpack_from(record)
        return Captured(
            time=seconds * _SECOND + fraction * (_SECOND // self.header.resolution),
            interface=None,
            linktype=self.header.linktype,
            data=record[_PCAP_RECORD:],
            length=length,
            comment=None,
        )
