"""Encodes packets as records of the two capture formats, without any input or output.

One writer makes one stream: a file, or the stream to one viewer. Each rotated file and each viewer has a
separate writer. A stream starts with the bytes of `begin`, and the records follow.

The formats are pcapng (draft-ietf-opsawg-pcapng) and pcap (draft-ietf-opsawg-pcap). In both formats, the
writers use little-endian numbers, times in ns, and bare IP packets (`LINKTYPE_RAW`).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from refractium_hooks_pcap.packets import Packet

LINKTYPE_RAW: Final = 101
"""The link type of packets that start with an IPv4 or IPv6 header."""

_SECTION_HEADER: Final = 0x0A0D_0D0A
_INTERFACE_DESCRIPTION: Final = 1
_ENHANCED_PACKET: Final = 6
"""Block types of pcapng (section 11.1)."""
_BYTE_ORDER: Final = 0x1A2B_3C4D
_UNKNOWN_LENGTH: Final = -1
_SECTION: Final = struct.Struct("<IHHq")
_INTERFACE: Final = struct.Struct("<HHI")
_OPTION: Final = struct.Struct("<HH")
_OPT_ENDOFOPT: Final = bytes(4)
_OPT_COMMENT: Final = 1
_SHB_USERAPPL: Final = 4
_IF_NAME: Final = 2
_IF_TSRESOL: Final = 9
_NANOSECONDS: Final = b"\x09"
"""The value of if_tsresol for ns: times are in units of 10^-9 s (section 4.2)."""
_MAX_OPTION: Final = 65_535

_BLOCK: Final = struct.Struct("<II")
_PACKET: Final = struct.Struct("<7I")
_PACKET_SIZE: Final = 32
"""Size (bytes) of an enhanced packet block without data and options."""
_TRAILERS: Final = tuple(struct.Struct(f"<{padding}xI") for padding in range(4))
"""The end of a block without options: padding of the data to 4 bytes, and the length of the block again."""
_LENGTH: Final = struct.Struct("<I")

_PCAP_NANOSECONDS: Final = 0xA1B2_3C4D
_PCAP_HEADER: Final = struct.Struct("<IHHiIII")
_PCAP_RECORD: Final = struct.Struct("<4I")
_SECOND: Final = 1_000_000_000


class PcapngWriter:
    """An encoder of a pcapng stream, in which every route is an interface with the name of the route.

    Args:
        snaplen: the largest number of bytes to store of each packet.
    """

    def __init__(self, snaplen: int) -> None:
        self._snaplen = snaplen
        self._interfaces: dict[str, int] = {}

    def begin(self) -> bytes:
        """Return the section header block, with which the stream begins."""
        body = _SECTION.pack(_BYTE_ORDER, 1, 0, _UNKNOWN_LENGTH)
        return _block(_SECTION_HEADER, body + _option(_SHB_USERAPPL, b"Refractium") + _OPT_ENDOFOPT)

    def record(self, packet: Packet) -> bytes:
        """Return the block of a packet; for the first packet of a route, an interface block comes first."""
        return b"".join(self.parts(packet))

    def parts(self, packet: Packet) -> tuple[bytes | memoryview, ...]:
        """Return the bytes of `record` in pieces; one piece is the payload itself, not a copy."""
        time, header, payload, route, comment = packet
        interface = self._interfaces.get(route)
        if interface is None:
            self._interfaces[route] = len(self._interfaces)
            return (self._description(route), *self.parts(packet))
        length = stored = len(header) + len(payload)
        if length > self._snaplen:
            stored = self._snaplen
            header, payload = header[:stored], payload[: max(0, stored - len(header))]
        padding = -stored & 3
        size = _PACKET_SIZE + stored + padding
        if comment is None:
            trailer = _TRAILERS[padding].pack(size)
        else:
            options = _option(_OPT_COMMENT, comment.encode()) + _OPT_ENDOFOPT
            size += len(options)
            trailer = bytes(padding) + options + _LENGTH.pack(size)
        start = _PACKET.pack(
            _ENHANCED_PACKET, size, interface, time >> 32, time & 0xFFFF_FFFF, stored, length
        )
        return start, header, payload, trailer

    def _description(self, route: str) -> bytes:
        return _block(
            _INTERFACE_DESCRIPTION,
            _INTERFACE.pack(LINKTYPE_RAW, 0, self._snaplen)
            + _option(_IF_NAME, route.encode())
            + _option(_IF_TSRESOL, _NANOSECONDS)
            + _OPT_ENDOFOPT,
        )


class PcapWriter:
    """An encoder of a pcap stream, which has neither interfaces nor comments.

    Args:
        snaplen: the largest number of bytes to store of each packet.
    """

    def __init__(self, snaplen: int) -> None:
        self._snaplen = snaplen

    def begin(self) -> bytes:
        """Return the file header, with which the stream begins."""
        return _PCAP_HEADER.pack(_PCAP_NANOSECONDS, 2, 4, 0, 0, self._snaplen, LINKTYPE_RAW)

    def record(self, packet: Packet) -> bytes:
        """Return the record of a packet."""
        return b"".join(self.parts(packet))

    def parts(self, packet: Packet) -> tuple[bytes | memoryview, ...]:
        """Return the bytes of `record` in pieces; one piece is the payload itself, not a copy."""
        time, header, payload, _, _ = packet
        length = stored = len(header) + len(payload)
        if length > self._snaplen:
            stored = self._snaplen
            header, payload = header[:stored], payload[: max(0, stored - len(header))]
        seconds, nanoseconds = divmod(time, _SECOND)
        return _PCAP_RECORD.pack(seconds, nanoseconds, stored, length), header, payload


def _block(kind: int, body: bytes) -> bytes:
    size = len(body) + 12
    return _BLOCK.pack(kind, size) + body + _LENGTH.pack(size)


def _option(code: int, value: bytes) -> bytes:
    value = value[:_MAX_OPTION]
    return _OPTION.pack(code, len(value)) + value + bytes(-len(value) & 3)
