"""The interface of all outputs, and the format in which outputs write packets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias

from refractium_hooks_pcap.formats import PcapngWriter, PcapWriter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from refractium_hooks_pcap.packets import Packet

Writer: TypeAlias = PcapngWriter | PcapWriter

MAX_ROOM: Final = 1 << 17
"""Upper bound of a record's size (bytes): an IP packet has at most 64 KiB, and the comment is bounded too."""
_AROUND: Final = 512
"""Upper bound of the bytes that a format adds to a packet, including the block of the interface."""


class Form(NamedTuple):
    """The format of packets in an output.

    Attributes:
        is_classic: whether the format is pcap, not pcapng.
        snaplen: the largest number of bytes to store of each packet.
    """

    is_classic: bool
    snaplen: int

    def writer(self) -> Writer:
        """Return a new writer for one stream."""
        return PcapWriter(self.snaplen) if self.is_classic else PcapngWriter(self.snaplen)

    def room_for(self, packet: Packet) -> int:
        """Return the largest size (bytes) that the record of a packet can have, including an interface block.

        An output that may drop a packet needs this size before the writer makes the record. A dropped record
        could contain the interface block of a route, and the writer makes this block only once.
        """
        size = min(len(packet.header) + len(packet.payload), self.snaplen)
        return size + len(packet.comment or "") + _AROUND


class Output(Protocol):
    """A destination for packets. An output raises no errors, but logs failures and counts lost packets."""

    lost: int
    """Number of packets that could not be written."""

    def write(self, packets: Sequence[Packet]) -> None:
        """Write all packets, in order."""

    def close(self) -> None:
        """Release all resources within a second."""
