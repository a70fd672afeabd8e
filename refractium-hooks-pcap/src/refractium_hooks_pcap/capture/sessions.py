"""Groups packets into sessions, without any input or output.

`refractium_hooks_pcap.packets` writes a comment on the first packet of a session; the comment describes the
session. In a pcap file, and for a viewer that connects after the start of the session, this comment is
missing. Then only the addresses of the session are known.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain
from math import exp
from socket import AF_INET, AF_INET6, inet_ntop
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from refractium.contract import Transport
from refractium.kit import Address
from refractium_hooks_pcap.formats import LINKTYPE_RAW

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from refractium_hooks_pcap.reader import Captured

_SECOND: Final = 1_000_000_000
_SILENCE: Final = 60 * _SECOND
"""Silence (ns) after which a UDP session ends, because no UDP packet ends a session.

The proxy has the same default.
"""
_RATE_OVER: Final = 2 * _SECOND
"""Time constant (ns) of the average of a rate."""
_MAX_OPEN: Final = 5_000
"""Largest number of open sessions of one transport.

Above this number, `Sessions` forgets the session with the longest silence.
"""
_MAX_ENDED: Final = 1_000
"""Number of ended sessions that `Sessions` remembers: the latest ended sessions."""
_MAX_COMMENT: Final = 8_192
"""Largest number of characters read of a comment; all comments of `refractium_hooks_pcap` are shorter."""
_NAMES: Final = ("sni", "host", "qname")
"""Keys of the comment for the name that the client asked for, in order of priority."""

_IPV4_HEADER: Final = 20
_IPV6_HEADER: Final = 40
_FRAGMENT_OFFSET: Final = 0x1FFF
_MAPPED: Final = bytes(10) + b"\xff\xff"
"""The bytes before the IPv4 address in an IPv4-mapped IPv6 address (RFC 4291 section 2.5.5.2)."""
_TCP_PROTOCOL: Final = 6
_UDP_PROTOCOL: Final = 17
_LENGTH: Final = struct.Struct("!H")
_TCP: Final = struct.Struct("!HHIIBB")
"""The first fields of TCP (RFC 9293 section 3.1): ports, sequence, acknowledgement, header length, flags."""
_UDP: Final = struct.Struct("!HHH")
"""The first fields of UDP (RFC 768): ports, length."""
_UDP_HEADER: Final = 8
_FIN: Final = 1
_SYN: Final = 2
_RST: Final = 4
_ACK: Final = 16
_SEQUENCE: Final = 0xFFFF_FFFF
_HALF: Final = 0x8000_0000

_End: TypeAlias = "tuple[bytes, int]"
"""An IP address in network byte order, and a port."""
_Key: TypeAlias = "tuple[str | None, _End, _End]"
"""The interface (the label of the route), the client and the backend."""


class SessionState(StrEnum):
    """The state of a session."""

    OPEN = "open"
    CLOSED = "closed"
    RESET = "reset"


class HalfSession:
    """The bytes that one side of a session sends.

    Attributes:
        bytes: number of bytes sent. For TCP, this number includes bytes that were not captured, because the
            sequence numbers show these bytes.
        has_ended: whether the side has sent a FIN.
    """

    __slots__ = ("_next", "_rate", "_time", "bytes", "has_ended")

    def __init__(self) -> None:
        self.bytes = 0
        self.has_ended = False
        self._next: int | None = None
        self._rate = 0.0
        self._time = 0

    def expect(self, sequence: int) -> None:
        """Set the sequence number of the first byte."""
        self._next = sequence & _SEQUENCE

    def reach(self, sequence: int, size: int, time: int) -> None:
        """Count `size` bytes that begin at a sequence number, without the bytes that were counted before."""
        end = (sequence + size) & _SEQUENCE
        advance = size if self._next is None else (end - self._next) & _SEQUENCE
        if advance < _HALF:
            self._next = end
            self.count(advance, time)

    def count(self, size: int, time: int) -> None:
        """Add `size` bytes to the number of bytes sent."""
        if size:
            self.bytes += size
            self._rate = self.rate(time) + size * _SECOND / _RATE_OVER
            self._time = time

    def rate(self, now: int) -> float:
        """Return the recent rate in bytes per second; older bytes count less."""
        return self._rate * exp(min(0, self._time - now) / _RATE_OVER)


@dataclass(slots=True, eq=False, kw_only=True)
class Session:
    """A connection, or a UDP session.

    Attributes:
        id: the number of the session in the proxy (16 hexadecimal digits); None if the first packet of the
            session was not captured or had no comment.
        transport: the transport between client and proxy.
        protocol: the name of the protocol; None if `id` is None.
        route: the label of the route; None if neither the comment nor the interface names the route.
        metadata: the other words of the comment on the first packet, such as sni, alpn and host.
        client: address and port of the client.
        backend: address and port of the backend, or the path of the backend's unix socket.
        started: time of the first packet (ns since the epoch).
        latest: time of the latest packet (ns since the epoch).
        state: the state of the session.
        inbound: the bytes that the client sends.
        outbound: the bytes that the backend sends.
    """

    id: str | None
    transport: Transport
    protocol: str | None
    route: str | None
    metadata: dict[str, str]
    client: str
    backend: str
    started: int
    latest: int
    state: SessionState = SessionState.OPEN
    inbound: HalfSession = field(default_factory=HalfSession)
    outbound: HalfSession = field(default_factory=HalfSession)

    @property
    def name(self) -> str | None:
        """The name that the client asked for: the name of a server, or the name in a DNS query."""
        return next((self.metadata[key] for key in _NAMES if key in self.metadata), None)

    @property
    def seconds(self) -> float:
        """Seconds from the first packet to the latest packet."""
        return (self.latest - self.started) / _SECOND


class Sessions:
    """The open sessions of one capture and the latest ended sessions; two limits bound the memory.

    Args:
        on_end: function that receives each session that has ended, or that `Sessions` forgets because too
            many sessions are open. A UDP session ends after a minute of silence. If packets follow later, the
            session opens again and will end again.

    Attributes:
        now: the current time in the capture (ns since the epoch).
        count: number of sessions so far.
        skipped: number of packets that are neither TCP nor UDP, or that do not start with an IP header.
    """

    def __init__(self, on_end: Callable[[Session], object] = lambda _: None) -> None:
        self.now = 0
        self.count = 0
        self.skipped = 0
        self._on_end = on_end
        # Sorted by silence: the session with the longest silence comes first.
        self._open: dict[Transport, OrderedDict[_Key, Session]] = {one: OrderedDict() for one in Transport}
        self._ended: OrderedDict[_Key, Session] = OrderedDict()

    def __iter__(self) -> Iterator[Session]:
        """Iterate over the remembered sessions: ended sessions first, then open sessions."""
        return chain(self._ended.values(), *(one.values() for one in self._open.values()))

    @property
    def open(self) -> list[Session]:
        """The open sessions, in the order in which they began."""
        found = chain.from_iterable(one.values() for one in self._open.values())
        return sorted(found, key=lambda session: session.started)

    def add(self, captured: Captured) -> None:
        """Add the next packet to its session."""
        self.now = captured.time
        packet = _parse(captured.data) if captured.linktype == LINKTYPE_RAW else None
        if packet is None:
            self.skipped += 1
            return
        if packet.transport is Transport.TCP:
            self._add_segment(captured, packet)
        else:
            self._add_datagram(captured, packet)
        self._end_silent()

    def wait(self, time: int) -> None:
        """Move `now` forward by `time` ns in which no packet arrived."""
        self.now += time
        self._end_silent()

    def _add_segment(self, captured: Captured, packet: _ParsedPacket) -> None:
        key, is_inbound = self._find(captured, packet)
        session = self._connection(key, captured, packet)
        if session is None:
            return
        session.latest = captured.time
        self._open[Transport.TCP].move_to_end(key)
        mine, other = session.inbound, session.outbound
        if not is_inbound:
            mine, other = other, mine
        if packet.flags & _SYN:
            mine.expect(packet.sequence + 1)
            return
        mine.reach(packet.sequence, packet.size, captured.time)
        if packet.flags & _RST:
            if not other.has_ended:  # the acknowledgement shows how many bytes the other side has sent
                other.reach(packet.acknowledgement, 0, captured.time)
            self._end(key, session, SessionState.RESET)
        elif packet.flags & _FIN:
            mine.has_ended = True
            if other.has_ended:
                self._end(key, session, SessionState.CLOSED)

    def _connection(self, key: _Key, captured: Captured, packet: _ParsedPacket) -> Session | None:
        """Return the session of a segment; None for an empty segment without an open session."""
        session = self._open[Transport.TCP].get(key)
        if packet.flags & _SYN and not packet.flags & _ACK:
            if session is not None:  # the end of this earlier session was not captured
                self._end(key, session, SessionState.CLOSED)
            return self._begin(key, captured, packet)
        if session is None and packet.size:
            return self._begin(key, captured, packet)
        return session

    def _add_datagram(self, captured: Captured, packet: _ParsedPacket) -> None:
        key, is_inbound = self._find(captured, packet)
        sessions = self._open[Transport.UDP]
        session = sessions.get(key)
        if session is not None and captured.comment is not None:
            self._end(key, session, SessionState.CLOSED)
            session = None
        if session is None and captured.comment is None and key in self._ended:
            session = sessions[key] = self._ended.pop(key)
            session.state = SessionState.OPEN
        if session is None:
            session = self._begin(key, captured, packet)
        session.latest = captured.time
        sessions.move_to_end(key)
        (session.inbound if is_inbound else session.outbound).count(packet.size, captured.time)

    def _find(self, captured: Captured, packet: _ParsedPacket) -> tuple[_Key, bool]:
        """Return the key of the session of a packet, and whether the client sent the packet.

        A packet with a comment comes from the client. If the session is unknown, a SYN comes from the client
        and a SYN-ACK from the backend. For any other packet of an unknown session, the side with the higher
        port counts as client.
        """
        forth = captured.interface, packet.source, packet.destination
        back = captured.interface, packet.destination, packet.source
        known = self._open[packet.transport]
        if forth in known or captured.comment is not None:
            return forth, True
        if back in known:
            return back, False
        is_first = packet.transport is Transport.TCP and packet.flags & _SYN
        is_inbound = not packet.flags & _ACK if is_first else packet.source[1] >= packet.destination[1]
        return (forth, True) if is_inbound else (back, False)

    def _begin(self, key: _Key, captured: Captured, packet: _ParsedPacket) -> Session:
        words = _words(captured.comment or "")
        interface, client, backend = key
        session = Session(
            id=words.pop("session", None),
            transport=packet.transport,
            protocol=words.pop("protocol", None),
            route=words.pop("route", None if interface is None else _printable(interface[:_MAX_COMMENT])),
            client=_shown(client),
            backend=words.pop("backend", _shown(backend)),
            metadata=words,
            started=captured.time,
            latest=captured.time,
        )
        self.count += 1
        sessions = self._open[packet.transport]
        sessions[key] = session
        if len(sessions) > _MAX_OPEN:
            _, longest = sessions.popitem(last=False)
            self._on_end(longest)
        return session

    def _end(self, key: _Key, session: Session, state: SessionState) -> None:
        del self._open[session.transport][key]
        session.state = state
        self._ended[key] = session
        self._ended.move_to_end(key)
        if len(self._ended) > _MAX_ENDED:
            self._ended.popitem(last=False)
        self._on_end(session)

    def _end_silent(self) -> None:
        sessions = self._open[Transport.UDP]
        while sessions:
            key, session = next(iter(sessions.items()))
            if self.now - session.latest <= _SILENCE:
                break
            self._end(key, session, SessionState.CLOSED)


class _ParsedPacket(NamedTuple):
    """The relevant fields of one packet: source, destination, size of the payload (bytes), and TCP fields."""

    transport: Transport
    source: _End
    destination: _End
    size: int
    flags: int = 0
    sequence: int = 0
    acknowledgement: int = 0


def _parse(data: bytes) -> _ParsedPacket | None:
    """Parse a packet that starts with an IP header; return None if the packet belongs to no session.

    The payload of the packet may be cut off.
    """
    try:
        version = data[0] >> 4
        if version == 4:  # noqa: PLR2004 - RFC 791 section 3.1
            start = (data[0] & 15) * 4
            end = _LENGTH.unpack_from(data, 2)[0]
            if _LENGTH.unpack_from(data, 6)[0] & _FRAGMENT_OFFSET or start < _IPV4_HEADER:
                return None
            protocol, source, destination = data[9], data[12:16], data[16:20]
        elif version == 6:  # noqa: PLR2004 - RFC 8200 section 3
            start = _IPV6_HEADER
            end = start + _LENGTH.unpack_from(data, 4)[0]
            protocol, source, destination = data[6], data[8:24], data[24:40]
        else:
            return None
        if protocol == _TCP_PROTOCOL:
            from_port, to_port, sequence, acknowledgement, words, flags = _TCP.unpack_from(data, start)
            size = end - start - (words >> 4) * 4
            return _ParsedPacket(
                Transport.TCP,
                (source, from_port),
                (destination, to_port),
                max(0, size),
                flags,
                sequence,
                acknowledgement,
            )
        if protocol == _UDP_PROTOCOL:
            from_port, to_port, length = _UDP.unpack_from(data, start)
            size = max(0, length - _UDP_HEADER)
            return _ParsedPacket(Transport.UDP, (source, from_port), (destination, to_port), size)
    except (struct.error, IndexError):
        pass  # the capture contains only a part of the headers
    return None


def _words(comment: str) -> dict[str, str]:
    """Return the ``key=value`` pairs of a comment; spaces separate the pairs."""
    pairs = (word.partition("=") for word in comment[:_MAX_COMMENT].split(" "))
    return {_printable(key): _printable(value) for key, equals, value in pairs if equals}


def _printable(text: str) -> str:
    """Escape all characters except printable ASCII, because another program may have written the file."""
    if text.isascii() and text.isprintable():
        return text
    return text.encode("unicode_escape").decode("ascii")


def _shown(end: _End) -> str:
    address, port = end
    address = address.removeprefix(_MAPPED)
    family = AF_INET if len(address) == 4 else AF_INET6  # noqa: PLR2004 - bytes of an IPv4 address
    return str(Address(inet_ntop(family, address), port))
