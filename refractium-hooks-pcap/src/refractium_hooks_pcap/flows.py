"""Finds the beginning of each flow in a capture: the first bytes of each TCP client and UDP client.

dpkt reads the headers. The side that sends the SYN is the client of a TCP flow (RFC 9293 section 3.5). The
side that sends the first datagram is the client of a UDP flow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from socket import AF_INET, AF_INET6, inet_ntop
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple, TypeAlias

import dpkt
from dpkt import ethernet, ip, ip6, loopback, sll, sll2, tcp, udp

from refractium.contract import MAX_BYTES_LIMIT, Transport
from refractium_hooks_pcap.reader import Reader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from refractium_hooks_pcap.reader import Captured

_MOST: Final = MAX_BYTES_LIMIT + 4096
"""Largest number of bytes kept of a flow: the bytes that a protocol may read, and a PROXY header."""
_CHUNK: Final = 1 << 20
_HALF: Final = 1 << 31
_MODULO: Final = 1 << 32
_MAPPED: Final = bytes(10) + b"\xff\xff"


def _ip(data: bytes) -> Any:
    return ip6.IP6(data) if data[0] >> 4 == 6 else ip.IP(data)  # noqa: PLR2004 - RFC 8200 section 3


_LINKS: Final[Mapping[int, Callable[[bytes], Any]]] = {
    0: loopback.Loopback,
    1: ethernet.Ethernet,
    12: _ip,
    14: _ip,
    101: _ip,
    108: loopback.Loopback,
    113: sll.SLL,
    228: _ip,
    229: _ip,
    276: sll2.SLL2,
}
"""Functions that read a packet, by link type: loopback, Ethernet, raw IP and Linux cooked captures."""

_End: TypeAlias = tuple[bytes, int]
_Key: TypeAlias = tuple[Transport, _End, _End]
"""The transport, the client and the server."""


@dataclass(slots=True, eq=False)
class Flow:
    """The beginning of a flow.

    Attributes:
        transport: the transport.
        client: the IP address and the port of the client.
        server: the IP address and the port of the server.
        started: time of the first packet (ns since the epoch).
        data: the first bytes of the client, or its first datagram.
        first_at: time of the first byte of the client (ns since the epoch); None if the client is silent.
        has_beginning: whether the capture contains the beginning of the flow. If not, `data` is empty.
        has_gap: whether bytes are missing in the capture after `data`.
        has_ended: whether the client has ended its stream after `data`.
        server_first: whether the server sent bytes before the client.
    """

    transport: Transport
    client: tuple[str, int]
    server: tuple[str, int]
    started: int
    data: bytes = b""
    first_at: int | None = None
    has_beginning: bool = True
    has_gap: bool = False
    has_ended: bool = False
    server_first: bool = False
    _next: int = 0
    _parts: dict[int, bytes] = field(default_factory=dict)
    _end: int | None = None

    def starts_at(self, sequence: int) -> bool:
        """Return whether the first byte of the client has this sequence number."""
        return self.has_beginning and (self._next - len(self.data)) % _MODULO == sequence

    def _add(self, sequence: int, payload: bytes, time: int) -> None:
        """Add a segment, which may be out of order, repeat earlier bytes or overlap other segments."""
        offset = (sequence - self._next) % _MODULO
        if offset >= _HALF:
            offset -= _MODULO
        if offset > _MOST or len(self.data) >= _MOST:
            return
        at = len(self.data) + offset
        if len(payload) > len(self._parts.get(at, b"")):
            self._parts[at] = payload
        before = len(self.data)
        found = bytearray(self.data)
        for at in sorted(self._parts):
            if at > len(found):
                break
            found += self._parts.pop(at)[len(found) - at :]
        self.data = bytes(found)
        self._next = (self._next + len(self.data) - before) % _MODULO
        if self.data and self.first_at is None:
            self.first_at = time

    def _add_end(self, sequence: int) -> None:
        """Note a FIN after the byte before a sequence number."""
        distance = (sequence - self._next) % _MODULO
        self._end = len(self.data) + distance - (_MODULO if distance >= _HALF else 0)

    def _finish(self) -> None:
        self.has_gap = self.has_gap or bool(self._parts) or (self._end or 0) > len(self.data)
        self.has_ended = self._end is not None and self._end <= len(self.data) and not self.has_gap


class Flows(NamedTuple):
    """The flows of a capture, and the number of packets that are neither TCP nor UDP or cannot be read."""

    flows: list[Flow]
    skipped: int


class _Packet(NamedTuple):
    source: _End
    destination: _End
    payload: Any
    is_cut: bool


def read_flows(file: BinaryIO) -> Flows:
    """Return the beginnings of all flows in a capture (pcapng or pcap), in the order of their first packets.

    Raises:
        NotACaptureError: the file is no capture, or is damaged.
    """
    collected = _Collected()
    for captured in _captured(file):
        packet = _parse(captured)
        if packet is None:
            collected.skipped += 1
        elif isinstance(packet.payload, udp.UDP):
            collected.add_datagram(packet, captured.time)
        else:
            collected.add_segment(packet, captured.time)
    for flow in collected.flows:
        flow._finish()  # noqa: SLF001 - this module makes flows
    return Flows(collected.flows, collected.skipped)


def _captured(file: BinaryIO) -> Iterator[Captured]:
    reader = Reader()
    while chunk := file.read(_CHUNK):
        yield from reader.feed(chunk)
    yield from reader.feed(b"")


def _parse(captured: Captured) -> _Packet | None:
    """Return the packet in a frame; None if the frame contains no whole TCP or UDP header."""
    read = _LINKS.get(captured.linktype)
    try:
        found = None if read is None else read(captured.data)
        while found is not None and not isinstance(found, ip.IP | ip6.IP6):
            found = found.data if isinstance(found.data, dpkt.Packet) else None
    except (dpkt.Error, ValueError, LookupError, AttributeError, ArithmeticError):
        return None
    if found is None or not isinstance(found.data, tcp.TCP | udp.UDP):
        return None
    if isinstance(found, ip.IP):
        wanted = found.len - found.hl * 4 if found.len else 0
        offset, more = found.offset, bool(found.mf)
    else:
        headers = found.all_extension_headers
        wanted = found.plen - sum(one.length for one in headers) if found.plen else 0
        offset = sum(getattr(one, "frag_off", 0) for one in headers)
        more = any(getattr(one, "m_flag", 0) for one in headers)
    if offset:
        return None
    payload = found.data
    header = payload.off * 4 if isinstance(payload, tcp.TCP) else 8
    is_cut = more or wanted - header > len(payload.data)
    return _Packet((found.src, payload.sport), (found.dst, payload.dport), payload, is_cut)


class _Collected:
    """The flows so far, and the latest flow from each client to each server."""

    def __init__(self) -> None:
        self.flows: list[Flow] = []
        self.skipped = 0
        self._latest: dict[_Key, Flow] = {}

    def add_datagram(self, packet: _Packet, time: int) -> None:
        forth = Transport.UDP, packet.source, packet.destination
        if forth in self._latest or (Transport.UDP, packet.destination, packet.source) in self._latest:
            return
        flow = self._begin(forth, time)
        flow.data, flow.first_at = bytes(packet.payload.data), time
        flow.has_gap = packet.is_cut

    def add_segment(self, packet: _Packet, time: int) -> None:
        segment = packet.payload
        is_syn = bool(segment.flags & tcp.TH_SYN)
        flow = self._opened(packet, time) if is_syn else self._flow_from_client(packet, time)
        if flow is None or not flow.has_beginning:
            return
        sequence = (segment.seq + is_syn) % _MODULO
        if segment.data:
            flow._add(sequence, bytes(segment.data), time)  # noqa: SLF001 - this module makes flows
        flow.has_gap = flow.has_gap or packet.is_cut
        if segment.flags & tcp.TH_FIN:
            flow._add_end(sequence + len(segment.data))  # noqa: SLF001

    def _opened(self, packet: _Packet, time: int) -> Flow | None:
        """Return the flow that the SYN of a client opens; None for a SYN-ACK."""
        segment = packet.payload
        # A SYN-ACK shows the beginning of the flow as well, if the SYN is not in the capture.
        is_answer = bool(segment.flags & tcp.TH_ACK)
        ends = packet.source, packet.destination
        key = Transport.TCP, *(ends[::-1] if is_answer else ends)
        first = segment.ack if is_answer else (segment.seq + 1) % _MODULO
        flow = self._latest.get(key)
        if flow is None or not flow.starts_at(first):
            flow = self._begin(key, time)
            flow._next = first  # noqa: SLF001
        return None if is_answer else flow

    def _flow_from_client(self, packet: _Packet, time: int) -> Flow | None:
        """Return the flow whose client sends a segment; None for a segment of a server."""
        forth = Transport.TCP, packet.source, packet.destination
        back = Transport.TCP, packet.destination, packet.source
        if (flow := self._latest.get(forth)) is not None:
            return flow
        if (flow := self._latest.get(back)) is not None:
            if packet.payload.data and flow.first_at is None:
                flow.server_first = True
        elif packet.payload.data:
            # Without a SYN, the side with the higher port is only probably the client.
            flow = self._begin(forth if packet.source[1] >= packet.destination[1] else back, time)
            flow.has_beginning = False
        return None

    def _begin(self, key: _Key, time: int) -> Flow:
        flow = self._latest[key] = Flow(key[0], _shown(key[1]), _shown(key[2]), time)
        self.flows.append(flow)
        return flow


def _shown(end: _End) -> tuple[str, int]:
    address = end[0].removeprefix(_MAPPED)
    family = AF_INET if len(address) == 4 else AF_INET6  # noqa: PLR2004 - bytes of an IPv4 address
    return inet_ntop(family, address), end[1]
