"""Turns the events of a session into the packets of a capture of this session, without any I/O.

The packets show the session as if client and backend were directly connected. The packets look like a capture
on a loopback interface, or a capture behind receive offload. A TCP connection (RFC 9293) gets a handshake,
acknowledgements and a FIN or RST. The bytes of an event become as few segments as the MSS allows, and an
analyser finds no fault with window and MSS. Bytes that the hook did not receive leave a gap in the sequence
numbers: an analyser reports the missing bytes, and later bytes keep their sequence numbers.

The module does not copy the bytes of a session: a packet consists of a new header and a reference to the
bytes of the event.
"""

from __future__ import annotations

import struct
from socket import AF_INET, AF_INET6, inet_pton
from typing import TYPE_CHECKING, Final, NamedTuple

from refractium.contract import Direction, EventKind, Transport
from refractium.kit import Address
from refractium_hooks_pcap.checksum import checksum, words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refractium.contract import Event, HookContext, SessionStats

_INBOUND: Final = Direction.INBOUND
_PACKET: Final = EventKind.PACKET
"""Enumeration members as module constants, because Python 3.11 takes long to find a member."""

_IPV4_SIZE: Final = 4
_MAPPED: Final = bytes(10) + b"\xff\xff"
"""The bytes before the IPv4 address in an IPv4-mapped IPv6 address (RFC 4291 section 2.5.5.2)."""
_LOOPBACK_IPV4: Final = b"\x7f\0\0\1"
_LOOPBACK_IPV6: Final = bytes(15) + b"\1"
_PORTS: Final = {"http": 80, "https": 443, "ssh": 22, "dns": 53, "ftp": 21}
"""The port that the packets show for a backend on a unix socket, by protocol. A unix socket has no port, but
an analyser recognises the protocol by the port."""
_NO_PORT: Final = 65_535
"""The port for other protocols. No protocol has this port, so an analyser examines the bytes instead."""

_TCP_PROTOCOL: Final = 6
_UDP_PROTOCOL: Final = 17

_IPV4: Final = "HHHIH8s"
"""The IPv4 header (RFC 791 section 3.1).

The fields are: version, length and service; total length; identification; `_IPV4_MIDDLE` and protocol;
checksum; both addresses.
"""
_IPV4_START: Final = 0x4500
_IPV4_MIDDLE: Final = 0x4000_4000
"""The flag "do not fragment", and a time to live of 64."""
_IPV4_HEADER: Final = 20
_IPV6: Final = "IHBB32s"
"""The IPv6 header (RFC 8200 section 3).

The fields are: version, class and label; payload length; protocol; hop limit; both addresses.
"""
_IPV6_START: Final = 0x6000_0000
_HOP_LIMIT: Final = 64

_UDP: Final = "4sHH"
"""The UDP header (RFC 768): ports, length, checksum."""
_UDP_HEADER: Final = 8
_MAX_DATAGRAM: Final = {4: 65_507, 16: 65_527}
"""Largest payload (bytes) that the length fields of the headers allow, by the size (bytes) of an address."""

_TCP: Final = "4sIIIH2x"
"""The TCP header (RFC 9293 section 3.1).

The fields are: ports; sequence; acknowledgement; header length, flags and window; checksum; no urgent
pointer.
"""
_TCP_HEADER: Final = 20

_TCP_IPV4: Final = struct.Struct(f"!{_IPV4}{_TCP}")
_TCP_IPV6: Final = struct.Struct(f"!{_IPV6}{_TCP}")
_UDP_IPV4: Final = struct.Struct(f"!{_IPV4}{_UDP}")
_UDP_IPV6: Final = struct.Struct(f"!{_IPV6}{_UDP}")

_SYN: Final = 0x7002_FFFF
_SYN_ACK: Final = 0x7012_FFFF
_ACK: Final = 0x5010_FFFF
_PUSH_ACK: Final = 0x5018_FFFF
_FIN_ACK: Final = 0x5011_FFFF
_RST_ACK: Final = 0x5014_FFFF
"""Words of a TCP header, each with the header length (7 or 5 words), the flags and the largest window."""
_SYN_OPTIONS: Final = struct.Struct("!BBHBBBB")
_WINDOW_SCALE: Final = 14
"""The largest window scale (RFC 7323 section 2.3): the window is 1 GiB and is never full."""
_MSS: Final = {4: 65_495, 16: 65_475}
"""The MSS of a Linux loopback interface, by the size (bytes) of an address: packets have 65,535 bytes."""
_SEQUENCE: Final = 0xFFFF_FFFF
_UNANSWERED: Final = 16
"""Number of segments from one side after which the other side acknowledges the segments.

Analysers search a list of all unacknowledged segments, so a long list makes an analyser slow.
"""

_MAX_WORD: Final = 300
"""Largest number of characters in a word of the comment, enough for a server name."""
_MAX_METADATA: Final = 16
"""Largest number of words of the comment that come from the metadata of a plugin."""


class Packet(NamedTuple):
    """One IP packet.

    Attributes:
        time: time of the event that the packet shows (ns since the epoch).
        header: the IP header and the TCP or UDP header.
        payload: the bytes after the headers.
        route: the label of the route of the session.
        comment: the description of the session, on the first packet of the session only.
    """

    time: int
    header: bytes
    payload: bytes | memoryview
    route: str
    comment: str | None = None

    @property
    def data(self) -> bytes:
        """The whole packet, from the start of the IP header."""
        return b"".join((self.header, self.payload))


class SessionRenderer:
    """A renderer that makes the packets of one session.

    The initial sequence numbers are the halves of the session's number: the lower 32 bits for the client, the
    upper 32 bits for the backend. If only one side has an IPv4 address, the renderer maps this address to
    IPv6.

    Args:
        context: the context of the session. A backend without an IP address (a unix socket) gets a loopback
            address in the packets, and the comment names the path.
    """

    def __init__(self, context: HookContext) -> None:
        client, backend = _ends(context)
        self._is_stream = context.transport == Transport.TCP
        protocol = _TCP_PROTOCOL if self._is_stream else _UDP_PROTOCOL
        self._client = _Side(context.route, protocol, client, backend, context.session & _SEQUENCE)
        self._backend = _Side(context.route, protocol, backend, client, context.session >> 32 & _SEQUENCE)
        address = client[0]
        self._mss = _MSS[len(address)]
        self._max_datagram = _MAX_DATAGRAM[len(address)]
        self._comment: str | None = " ".join(_comment(context))

    def render(self, event: Event) -> list[Packet]:
        """Return the packets of the next event of the session, in order.

        `render` accepts events in any order. When a direction of a connection has ended, further data of this
        direction gives no packets.
        """
        kind, time, _, direction, data, offset, stats = event
        if direction is _INBOUND:
            side, other = self._client, self._backend
        else:
            side, other = self._backend, self._client
        if not self._is_stream:
            packets = [self._datagram(time, side, data)] if kind is _PACKET else []
        elif kind is _PACKET:
            packets = self._segments(time, side, other, data, offset)
        elif kind == EventKind.OPEN:
            packets = self._handshake(time)
        elif kind == EventKind.END:
            packets = _finish(time, side, other, offset)
        else:
            packets = self._close(time, stats)
        if self._comment is not None and packets:
            packets[0] = packets[0]._replace(comment=self._comment)
            self._comment = None
        return packets

    def _datagram(self, time: int, side: _Side, data: bytes) -> Packet:
        payload = data if len(data) <= self._max_datagram else memoryview(data)[: self._max_datagram]
        return side.datagram(time, payload)

    def _segments(self, time: int, side: _Side, other: _Side, data: bytes, offset: int) -> list[Packet]:
        if side.ended:
            return []
        size, mss, sequence = len(data), self._mss, side.start + offset
        side.next = sequence + size
        if 0 < size <= mss:
            packets = [side.segment(time, _PUSH_ACK, sequence, other.next, data)]
        else:
            view = memoryview(data)
            packets = [
                side.segment(time, _PUSH_ACK, sequence + at, other.next, view[at : at + mss])
                for at in range(0, size, mss)
            ]
        other.unanswered = 0
        side.unanswered += len(packets)
        if side.unanswered >= _UNANSWERED:
            packets.append(_acknowledge(time, side, other))
        return packets

    def _handshake(self, time: int) -> list[Packet]:
        """Return the three packets of a handshake (RFC 9293 section 3.5)."""
        client, backend = self._client, self._backend
        options = _SYN_OPTIONS.pack(2, 4, self._mss, 1, 3, 3, _WINDOW_SCALE)
        return [
            client.segment(time, _SYN, client.start - 1, 0, options),
            backend.segment(time, _SYN_ACK, backend.start - 1, client.start, options),
            _acknowledge(time, backend, client),
        ]

    def _close(self, time: int, stats: SessionStats | None) -> list[Packet]:
        client, backend = self._client, self._backend
        inbound, outbound, ended = (stats.inbound, stats.outbound, stats.ended) if stats else (0, 0, "")
        if ended == "closed":
            return _finish(time, client, backend, inbound) + _finish(time, backend, client, outbound)
        client.skip(inbound)
        backend.skip(outbound)
        client.ended = backend.ended = True
        side, other = (client, backend) if ended == "client_reset" else (backend, client)
        return [side.segment(time, _RST_ACK, side.next, other.next)]


class _Side:
    """One side of a session as a sender.

    Attributes:
        start: the sequence number of the first byte from this side. Neither `start` nor `next` wraps.
        next: the sequence number of the next byte from this side.
        ended: whether this side sends no more data.
        unanswered: number of segments from this side since the last segment from the other side.
    """

    __slots__ = (
        "_addresses",
        "_identification",
        "_ip_sum",
        "_is_ipv4",
        "_middle",
        "_ports",
        "_route",
        "_sum",
        "ended",
        "next",
        "start",
        "unanswered",
    )

    def __init__(
        self,
        route: str,
        protocol: int,
        source: tuple[bytes, int],
        destination: tuple[bytes, int],
        initial: int,
    ) -> None:
        self._route = route
        self._addresses = source[0] + destination[0]
        self._ports = struct.pack("!HH", source[1], destination[1])
        self._is_ipv4 = len(source[0]) == _IPV4_SIZE
        self._identification = 0
        self._middle = _IPV4_MIDDLE + protocol
        self._ip_sum = _IPV4_START + _IPV4_HEADER + self._middle + words(self._addresses)
        # The sum of the ports, and of the pseudo header without the length (RFC 9293 section 3.1, RFC 8200
        # section 8.1).
        self._sum = words(self._addresses) + protocol + words(self._ports)
        self.start = self.next = initial + 1
        self.ended = False
        self.unanswered = 0

    def segment(
        self,
        time: int,
        control: int,
        sequence: int,
        acknowledgement: int,
        payload: bytes | memoryview = b"",
    ) -> Packet:
        """Return a TCP segment; `payload` contains the TCP options of a SYN."""
        size = _TCP_HEADER + len(payload)
        sequence &= _SEQUENCE
        acknowledgement &= _SEQUENCE
        field = checksum(self._sum + size + sequence + acknowledgement + control + words(payload))
        tcp = (self._addresses, self._ports, sequence, acknowledgement, control, field)
        if self._is_ipv4:
            header = _TCP_IPV4.pack(*self._ipv4(size), *tcp)
        else:
            header = _TCP_IPV6.pack(_IPV6_START, size, _TCP_PROTOCOL, _HOP_LIMIT, *tcp)
        return Packet(time, header, payload, self._route)

    def datagram(self, time: int, payload: bytes | memoryview) -> Packet:
        """Return a UDP datagram."""
        size = _UDP_HEADER + len(payload)
        # The pseudo header also contains the length, so the length counts twice.
        # A checksum of zero means that the datagram has no checksum (RFC 768).
        field = checksum(self._sum + size + size + words(payload)) or 0xFFFF
        udp = (self._addresses, self._ports, size, field)
        if self._is_ipv4:
            header = _UDP_IPV4.pack(*self._ipv4(size), *udp)
        else:
            header = _UDP_IPV6.pack(_IPV6_START, size, _UDP_PROTOCOL, _HOP_LIMIT, *udp)
        return Packet(time, header, payload, self._route)

    def _ipv4(self, size: int) -> tuple[int, int, int, int, int]:
        """Return the fields of an IPv4 header, without the addresses; `size` bytes follow the header."""
        self._identification = number = (self._identification + 1) & 0xFFFF
        field = checksum(self._ip_sum + size + number)
        return _IPV4_START, _IPV4_HEADER + size, number, self._middle, field

    def skip(self, offset: int) -> None:
        """Move `next` forward to an offset in the stream, across bytes that the hook did not receive."""
        self.next = max(self.next, self.start + offset)


def _acknowledge(time: int, side: _Side, other: _Side) -> Packet:
    """Return a segment in which `other` acknowledges all bytes that `side` has sent."""
    side.unanswered = 0
    return other.segment(time, _ACK, other.next, side.next)


def _finish(time: int, side: _Side, other: _Side, offset: int) -> list[Packet]:
    """Return the packets that end a direction (RFC 9293 section 3.6), or none if the direction has ended."""
    if side.ended:
        return []
    side.skip(offset)
    finish = side.segment(time, _FIN_ACK, side.next, other.next)
    side.ended = True
    side.next += 1
    return [finish, _acknowledge(time, side, other)]


def _ends(context: HookContext) -> tuple[tuple[bytes, int], tuple[bytes, int]]:
    """Return address and port of the client and of the backend; both addresses have the same family."""
    host, port = context.client
    client = _address(host) or _LOOPBACK_IPV4
    backend = None
    backend_port = _PORTS.get(context.protocol, _NO_PORT)
    if not isinstance(context.backend, str):
        backend, backend_port = _address(context.backend[0]), context.backend[1]
    backend = backend or (_LOOPBACK_IPV4 if len(client) == _IPV4_SIZE else _LOOPBACK_IPV6)
    if len(client) != len(backend):
        client, backend = ((_MAPPED + one)[-16:] for one in (client, backend))
    return (client, port), (backend, backend_port)


def _address(host: str) -> bytes | None:
    """Return an IP address in network byte order; None if `host` is not an IP address.

    An IPv4-mapped IPv6 address becomes an IPv4 address. The zone of an IPv6 address is left out.
    """
    try:
        if ":" not in host:
            return inet_pton(AF_INET, host)
        address = inet_pton(AF_INET6, host.partition("%")[0])
    except (OSError, ValueError):
        return None
    return address.removeprefix(_MAPPED)


def _comment(context: HookContext) -> Iterator[str]:
    """Yield the words of the comment, each of bounded length and without spaces."""
    yield _word("protocol", context.protocol)
    for key, value in list(context.metadata.items())[:_MAX_METADATA]:
        yield _word(key, ",".join(value) if isinstance(value, tuple) else value)
    yield f"session={context.session:016x}"
    yield _word("route", context.route)
    if isinstance(context.backend, str):
        yield _word("backend", Address.of(context.backend))


def _word(key: str, value: object) -> str:
    """Return ``key=value`` in printable ASCII, with all other characters escaped."""
    text = f"{key}={value}".encode("unicode_escape").decode("ascii").replace(" ", r"\x20")
    return text if len(text) <= _MAX_WORD else text[: _MAX_WORD - 3] + "..."
