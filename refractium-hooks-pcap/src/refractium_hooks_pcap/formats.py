"""Sans-IO: packets as records of the two capture formats.

One writer makes one stream: a file, or what one viewer reads. A rotated file and a viewer that comes later
get a writer of their own, whose `begin` is ahead of its records.

pcapng: draft-ietf-opsawg-pcapng; pcap: draft-ietf-opsawg-pcap. Both are written little-endian, with times in
ns, and hold bare IP packets (`LINKTYPE_RAW`).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from refractium_hooks_pcap.packets import Packet

LINKTYPE_RAW: Final = 101
"""Packets start with an IPv4 or IPv6 header."""

_SECTION_HEADER: Final = 0x0A0D_0D0A
_INTERFACE_DESCRIPTION: Final = 1
_ENHANCED_PACKET: Final = 6
"""Block types (section 11.1)."""
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
"""Times count parts of a second, of which there are ten to this power (section 4.2)."""
_MAX_OPTION: Final = 65_535

_BLOCK: Final = struct.Struct("<II")
_PACKET: Final = struct.Struct("<7I")
_PACKET_SIZE: Final = 32
"""Bytes of an enhanced packet block that has neither data nor options."""
_TRAILERS: Final = tuple(struct.Struct(f"<{padding}xI") for padding in range(4))
"""What follows the data where there are no options: padding to 32 bits, and the block's length again."""
_LENGTH: Final = struct.Struct("<I")

_PCAP_NANOSECONDS: Final = 0xA1B2_3C4D
_PCAP_HEADER: Final = struct.Struct("<IHHiIII")
_PCAP_RECORD: Final = struct.Struct("<4I")
_SECOND: Final = 1_000_000_000


class PcapngWriter:
    """Makes a stream of pcapng. Every route is an interface of its own, with the route's name.

    Args:
        snaplen: bytes that are kept of a packet, at the most.
    """

    def __init__(self, snaplen: int) -> None:
        self._snaplen = snaplen
        self._interfaces: dict[str, int] = {}

    def begin(self) -> bytes:
        """The section header block, which is ahead of everything."""
        body = _SECTION.pack(_BYTE_ORDER, 1, 0, _UNKNOWN_LENGTH)
        return _block(_SECTION_HEADER, body + _option(_SHB_USERAPPL, b"Refractium") + _OPT_ENDOFOPT)

    def record(self, packet: Packet) -> bytes:
        """The block of a packet; ahead of it, the first time a route is seen, that of the interface."""
        return b"".join(self.parts(packet))

    def parts(self, packet: Packet) -> tuple[bytes | memoryview, ...]:
        """The same in pieces, of which one is the payload itself, not a copy."""
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
    """Makes a stream of pcap, which knows neither interfaces nor comments.

    Args:
        snaplen: bytes that are kept of a packet, at the most.
    """

    def __init__(self, snaplen: int) -> None:
        self._snaplen = snaplen

    def begin(self) -> bytes:
        """The file header, which is ahead of everything."""
        return _PCAP_HEADER.pack(_PCAP_NANOSECONDS, 2, 4, 0, 0, self._snaplen, LINKTYPE_RAW)

    def record(self, packet: Packet) -> bytes:
        """The record of a packet."""
        return b"".join(self.parts(packet))

    def parts(self, packet: Packet) -> tuple[bytes | memoryview, ...]:
        """The same in pieces, of which one is the payload itself, not a copy."""
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
