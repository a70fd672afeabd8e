"""What every output takes: packets, and the form in which it writes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias

from refractium_hooks_pcap.formats import PcapngWriter, PcapWriter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from refractium_hooks_pcap.packets import Packet

Writer: TypeAlias = PcapngWriter | PcapWriter

MAX_ROOM: Final = 1 << 17
"""More than a record ever has (bytes): an IP packet has 64 KiB, a comment is bounded as well."""
_AROUND: Final = 512
"""More than what either format puts around a packet, the block of its interface included (bytes)."""


class Form(NamedTuple):
    """In which form packets are written.

    Attributes:
        is_classic: whether it is pcap, not pcapng.
        snaplen: bytes that are kept of a packet, at the most.
    """

    is_classic: bool
    snaplen: int

    def writer(self) -> Writer:
        """A writer for one stream."""
        return PcapWriter(self.snaplen) if self.is_classic else PcapngWriter(self.snaplen)

    def room_for(self, packet: Packet) -> int:
        """Bytes that a record will have at the most, whatever is ahead of it.

        A record that may be lost must not be made: the first one of a route brings the interface with it.
        """
        size = min(len(packet.header) + len(packet.payload), self.snaplen)
        return size + len(packet.comment or "") + _AROUND


class Output(Protocol):
    """Where packets go. A failure stays inside: it is logged, and what is lost is counted."""

    lost: int
    """Packets that could not be written."""

    def write(self, packets: Sequence[Packet]) -> None:
        """Write them all, in order."""

    def close(self) -> None:
        """Let go of everything, within a second."""
