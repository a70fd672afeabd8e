"""Sans-IO: from packets, the sessions that they belong to.

It is made for what `refractium_hooks_pcap.packets` writes, where the first packet of each session says in a
comment whose it is. It does without: a viewer that comes later, and whoever reads pcap, knows addresses only.
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
from refractium_hooks_pcap.formats import LINKTYPE_RAW

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from refractium_hooks_pcap.reader import Captured

_SECOND: Final = 1_000_000_000
_SILENCE: Final = 60 * _SECOND
"""What ends a UDP session, which has no end of its own; it is the proxy's own default."""
_RATE_OVER: Final = 2 * _SECOND
"""A rate is that of about this long (ns)."""
_MAX_OPEN: Final = 5_000
"""Sessions of one transport that are kept; of more, the one that has been silent for longest is let go."""
_MAX_ENDED: Final = 1_000
"""Sessions that are kept after their end, the latest."""
_MAX_COMMENT: Final = 8_192
"""Letters of a comment that are looked at: more than there are in one of ours."""
_NAMES: Final = ("sni", "host", "qname")
"""Words of the comment that say what the client asked for, the best first."""

_IPV4_HEADER: Final = 20
_IPV6_HEADER: Final = 40
_FRAGMENT_OFFSET: Final = 0x1FFF
_MAPPED: Final = bytes(10) + b"\xff\xff"
"""Before an IPv4 address, the IPv6 form of it (RFC 4291 section 2.5.5.2)."""
_TCP_PROTOCOL: Final = 6
_UDP_PROTOCOL: Final = 17
_LENGTH: Final = struct.Struct("!H")
_TCP: Final = struct.Struct("!HHIIBB")
"""RFC 9293 section 3.1: ports, sequence, acknowledgement, header length, flags."""
_UDP: Final = struct.Struct("!HHH")
"""RFC 768: ports, length."""
_UDP_HEADER: Final = 8
_FIN: Final = 1
_SYN: Final = 2
_RST: Final = 4
_ACK: Final = 16
_SEQUENCE: Final = 0xFFFF_FFFF
_HALF: Final = 0x8000_0000

_End: TypeAlias = "tuple[bytes, int]"
"""IP address, as on the wire, and port."""
_Key: TypeAlias = "tuple[str | None, _End, _End]"
"""The interface (the label of the route), client and backend."""


class State(StrEnum):
    """How far a session is."""

    OPEN = "open"
    CLOSED = "closed"
    RESET = "reset"


class Flow:
    """What one side of a session sends.

    Attributes:
        bytes: that it has sent; those of a connection that were not captured are known from what follows.
        has_ended: whether it has said that it sends no more.
    """

    __slots__ = ("_next", "_rate", "_time", "bytes", "has_ended")

    def __init__(self) -> None:
        self.bytes = 0
        self.has_ended = False
        self._next: int | None = None
        self._rate = 0.0
        self._time = 0

    def expect(self, sequence: int) -> None:
        """Its first byte will have this sequence number."""
        self._next = sequence & _SEQUENCE

    def reach(self, sequence: int, size: int, time: int) -> None:
        """It has sent so many bytes from a sequence number on; what came before is told of once only."""
        end = (sequence + size) & _SEQUENCE
        advance = size if self._next is None else (end - self._next) & _SEQUENCE
        if advance < _HALF:
            self._next = end
            self.count(advance, time)

    def count(self, size: int, time: int) -> None:
        """It has sent so many bytes more."""
        if size:
            self.bytes += size
            self._rate = self.rate(time) + size * _SECOND / _RATE_OVER
            self._time = time

    def rate(self, now: int) -> float:
        """Bytes per second, of late: those of long ago count less and less."""
        return self._rate * exp(min(0, self._time - now) / _RATE_OVER)


@dataclass(slots=True, eq=False, kw_only=True)
class Session:
    """A connection, or a UDP session.

    Attributes:
        id: that of the proxy, 16 hexadecimal digits; None if its first packet was not seen, or told nothing.
        transport: how the client came.
        protocol: the name of the protocol; None where `id` is.
        route: the label of the route; None if that is not told either.
        metadata: what else the first packet tells, such as sni, alpn and host.
        client: address and port of the client.
        backend: those of the backend, or the path of its unix socket.
        started: time of its first packet (ns since the epoch).
        latest: time of its latest packet.
        state: how far it is.
        inbound: what the client sends.
        outbound: what the backend sends.
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
    state: State = State.OPEN
    inbound: Flow = field(default_factory=Flow)
    outbound: Flow = field(default_factory=Flow)

    @property
    def name(self) -> str | None:
        """What the client asked for: a server, or what DNS is to resolve."""
        return next((self.metadata[key] for key in _NAMES if key in self.metadata), None)

    @property
    def seconds(self) -> float:
        """From its first packet to the latest."""
        return (self.latest - self.started) / _SECOND


class Sessions:
    """All sessions of one capture; of those that are over, the latest, so that memory is bounded.

    Args:
        on_end: told of each session that has ended, or that is let go because there are too many. UDP
            sessions count as ended after a minute of silence; one that goes on after all will end again.

    Attributes:
        now: the time that it is in the capture (ns since the epoch).
        count: how many sessions there have been.
        skipped: packets that are neither TCP nor UDP, or do not start with an IP header.
    """

    def __init__(self, on_end: Callable[[Session], object] = lambda _: None) -> None:
        self.now = 0
        self.count = 0
        self.skipped = 0
        self._on_end = on_end
        # Those that have been silent for longest are first.
        self._open: dict[Transport, OrderedDict[_Key, Session]] = {one: OrderedDict() for one in Transport}
        self._ended: OrderedDict[_Key, Session] = OrderedDict()

    def __iter__(self) -> Iterator[Session]:
        """Those that are kept, the ended ones first."""
        return chain(self._ended.values(), *(one.values() for one in self._open.values()))

    @property
    def open(self) -> list[Session]:
        """Those that have not ended, the one that began first ahead."""
        found = chain.from_iterable(one.values() for one in self._open.values())
        return sorted(found, key=lambda session: session.started)

    def add(self, captured: Captured) -> None:
        """Take the next packet."""
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
        """So much time has passed without a packet (ns)."""
        self.now += time
        self._end_silent()

    def _add_segment(self, captured: Captured, packet: _Packet) -> None:
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
            if not other.has_ended:  # what it has sent is known by what is acknowledged
                other.reach(packet.acknowledgement, 0, captured.time)
            self._end(key, session, State.RESET)
        elif packet.flags & _FIN:
            mine.has_ended = True
            if other.has_ended:
                self._end(key, session, State.CLOSED)

    def _connection(self, key: _Key, captured: Captured, packet: _Packet) -> Session | None:
        """The one that a segment belongs to; None if it is only the last word of one that is over."""
        session = self._open[Transport.TCP].get(key)
        if packet.flags & _SYN and not packet.flags & _ACK:
            if session is not None:  # its end was not captured
                self._end(key, session, State.CLOSED)
            return self._begin(key, captured, packet)
        if session is None and packet.size:
            return self._begin(key, captured, packet)
        return session

    def _add_datagram(self, captured: Captured, packet: _Packet) -> None:
        key, is_inbound = self._find(captured, packet)
        sessions = self._open[Transport.UDP]
        session = sessions.get(key)
        if session is not None and captured.comment is not None:
            self._end(key, session, State.CLOSED)
            session = None
        if session is None and captured.comment is None and key in self._ended:
            session = sessions[key] = self._ended.pop(key)
            session.state = State.OPEN
        if session is None:
            session = self._begin(key, captured, packet)
        session.latest = captured.time
        sessions.move_to_end(key)
        (session.inbound if is_inbound else session.outbound).count(packet.size, captured.time)

    def _find(self, captured: Captured, packet: _Packet) -> tuple[_Key, bool]:
        """Whose a packet is, and whether it is the client's.

        Of a session that is not known yet, the first packet is the client's, if it has the comment, or if it
        is the first of a connection; else the client is who has the higher port.
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

    def _begin(self, key: _Key, captured: Captured, packet: _Packet) -> Session:
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

    def _end(self, key: _Key, session: Session, state: State) -> None:
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
            self._end(key, session, State.CLOSED)


class _Packet(NamedTuple):
    """What is wanted of one packet: its ends, the size of its payload (bytes), and what TCP says."""

    transport: Transport
    source: _End
    destination: _End
    size: int
    flags: int = 0
    sequence: int = 0
    acknowledgement: int = 0


def _parse(data: bytes) -> _Packet | None:
    """What starts with an IP header; None if it is of no session. It may be cut off behind its headers."""
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
            return _Packet(
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
            return _Packet(Transport.UDP, (source, from_port), (destination, to_port), size)
    except (struct.error, IndexError):
        pass  # not even its headers are there
    return None


def _words(comment: str) -> dict[str, str]:
    """What a comment tells: ``key=value``, between blanks."""
    pairs = (word.partition("=") for word in comment[:_MAX_COMMENT].split(" "))
    return {_printable(key): _printable(value) for key, equals, value in pairs if equals}


def _printable(text: str) -> str:
    """Printable ASCII, which ours is already; anybody may have written a file."""
    if text.isascii() and text.isprintable():
        return text
    return text.encode("unicode_escape").decode("ascii")


def _shown(end: _End) -> str:
    address, port = end
    address = address.removeprefix(_MAPPED)
    if len(address) == 4:  # noqa: PLR2004 - bytes of an IPv4 address
        return f"{inet_ntop(AF_INET, address)}:{port}"
    return f"[{inet_ntop(AF_INET6, address)}]:{port}"
