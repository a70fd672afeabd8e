from __future__ import annotations

import random
import re
import struct
import subprocess
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refractium.contract import Direction, Event, EventKind, HookContext, SessionStats, Transport
from refractium_hooks_pcap.formats import PcapngWriter
from refractium_hooks_pcap.packets import Packet, SessionRenderer
from support.programs import require_program

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from refractium.contract import MetadataValue

IN: Final = Direction.INBOUND
OUT: Final = Direction.OUTBOUND
START: Final = 1_764_000_000_123_456_789
TIMEOUT: Final = 60
"""Seconds after which tshark has hung."""
V4: Final = ("192.0.2.1", 40_001), ("198.51.100.2", 9_000)
V6: Final = ("2001:db8::1", 40_001), ("2001:db8::2", 9_000)
V4_TO_V6: Final = ("192.0.2.1", 40_001), ("2001:db8::2", 9_000)
V6_TO_V4: Final = ("2001:db8::1", 40_001), ("198.51.100.2", 9_000)
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
UNREMARKABLE: Final = {
    "This frame initiates the connection closing",
    "This frame undergoes the connection closing",
    "Connection establish request (SYN): server port 9000",
    "Connection establish acknowledge (SYN+ACK): server port 9000",
    "Connection finish (FIN)",
}
"""Remarks of the expert system of tshark about every connection."""


class Session:
    """Events as the proxy sends them, and the packets rendered from them."""

    def __init__(
        self,
        ends: tuple[tuple[str, int], tuple[str, int] | str] = V4,
        transport: Transport = Transport.TCP,
        *,
        session: int = 0x0123_4567_89AB_CDEF,
        protocol: str = "fallback",
        route: str = "web",
        metadata: dict[str, MetadataValue] | None = None,
    ) -> None:
        self.context = HookContext(
            session, transport, protocol, route, ends[0], ends[1], metadata or {}, START
        )
        self.time = START
        self.offsets = Counter[Direction]()
        self.sent = {IN: b"", OUT: b""}
        self.packets: list[Packet] = []
        self._renderer = SessionRenderer(self.context)

    def tell(
        self,
        kind: EventKind,
        direction: Direction = IN,
        data: bytes = b"",
        offset: int = 0,
        stats: SessionStats | None = None,
    ) -> list[Packet]:
        self.time += 1_000_001
        rendered = self._renderer.render(Event(kind, self.time, self.context, direction, data, offset, stats))
        self.packets += rendered
        return rendered

    def open(self) -> list[Packet]:
        return self.tell(EventKind.OPEN)

    def send(self, direction: Direction, data: bytes) -> list[Packet]:
        rendered = self.tell(EventKind.PACKET, direction, data, self.offsets[direction])
        self.drop(direction, len(data))
        self.sent[direction] += data
        return rendered

    def drop(self, direction: Direction, size: int) -> None:
        """Let bytes pass in the proxy without an event for them."""
        self.offsets[direction] += size

    def end(self, direction: Direction) -> list[Packet]:
        return self.tell(EventKind.END, direction, offset=self.offsets[direction])

    def close(self, ended: str = "closed") -> list[Packet]:
        stats = SessionStats(1.0, self.offsets[IN], self.offsets[OUT], ended)
        return self.tell(EventKind.CLOSE, stats=stats)


class Segment(NamedTuple):
    """The fields of a TCP packet over IPv4 or IPv6."""

    port: int
    sequence: int
    acknowledgement: int
    flags: int
    payload: bytes


def seeded(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - every run must have the same bytes


def segment(packet: Packet) -> Segment:
    data = packet.data
    ip = 20 if data[0] >> 4 == 4 else 40
    port, _, sequence, acknowledgement, length, flags = struct.unpack_from("!HHIIBB", data, ip)
    return Segment(port, sequence, acknowledgement, flags, data[ip + (length >> 4) * 4 :])


def segments(packets: Iterable[Packet]) -> list[Segment]:
    return [segment(packet) for packet in packets]


def payloads(packets: Iterable[Packet]) -> bytes:
    return b"".join(bytes(packet.payload) for packet in packets if segment(packet).flags & PSH)


def capture(path: Path, sessions: Sequence[Session]) -> Path:
    """Write all packets as pcapng, in the order of their times."""
    writer = PcapngWriter(262_144)
    packets = [packet for session in sessions for packet in session.packets]
    packets.sort(key=lambda one: one.time)
    path.write_bytes(writer.begin() + b"".join(map(writer.record, packets)))
    return path


def tshark(path: Path, *options: str) -> str:
    run = subprocess.run(
        [
            require_program("tshark"),
            "-n",
            "-r",
            path,
            *("-o", "ip.check_checksum:TRUE", "-o", "tcp.check_checksum:TRUE"),
            *("-o", "udp.check_checksum:TRUE"),
            # Now and then random bytes look like some protocol, whose dissector then finds faults.
            *("-d", "tcp.port==9000,data", "-d", "udp.port==9000,data"),
            *options,
        ],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
    )
    return run.stdout


def remarks(path: Path) -> dict[str, int]:
    """Return the remarks of tshark's expert system that not every connection causes, and their counts."""
    lines = re.findall(r"^ +(\d+) +(\S+) +(\S+)  (.*)$", tshark(path, "-q", "-z", "expert"), re.MULTILINE)
    return {
        summary: int(count)
        for count, group, _, summary in lines
        if group != "Comment" and summary not in UNREMARKABLE
    }


def followed(path: Path, streams: int, transport: str = "tcp") -> list[tuple[bytes, bytes]]:
    """Return the bytes of each stream as tshark reassembles them: from the client, from the backend."""
    options = [one for number in range(streams) for one in ("-z", f"follow,{transport},raw,{number}")]
    found = {}
    for block in re.split(r"={5,}\n", tshark(path, "-q", *options))[1::2]:
        head, lines = block.splitlines()[:4], block.splitlines()[4:]
        found[int(head[1].rpartition(" ")[2])] = (
            bytes.fromhex("".join(line for line in lines if not line.startswith("\t"))),
            bytes.fromhex("".join(line[1:] for line in lines if line.startswith("\t"))),
        )
    return [found[number] for number in range(streams)]


def fields(path: Path, *names: str) -> list[list[str]]:
    options = [one for name in names for one in ("-e", name)]
    return [line.split("\t") for line in tshark(path, "-T", "fields", *options).splitlines()]


# Captures as tshark reads them


SIZES: Final = (0, 1, 1, 2, 7, 100, 1_448, 65_475, 65_476, 65_495, 65_496, 65_536, 131_072, 200_000)


def random_session(seed: int) -> Session:
    """Return a connection without drops that ends in an orderly way."""
    chance = seeded(seed)
    ends = chance.choice((V4, V6, V4_TO_V6, V6_TO_V4))
    near_the_wrap = 2**32 - chance.randrange(2, 400_000)
    session = Session(
        ((ends[0][0], 20_000 + seed), ends[1]),
        session=chance.choice(
            (seed, chance.getrandbits(64), near_the_wrap << 32 | 3 * near_the_wrap % 2**32)
        ),
        route=f"route {seed % 3}",
    )
    alive = [IN, OUT]
    session.open()
    for _ in range(chance.randrange(40)):
        if not alive:
            break
        direction = chance.choice(alive)
        if chance.random() < 0.04:
            session.end(direction)
            alive.remove(direction)
            continue
        data = chance.randbytes(chance.choice(SIZES if chance.random() < 0.2 else SIZES[:6]))
        session.send(direction, data)
    session.close()
    return session


def test_tshark_reassembles_random_connections_without_remark(tmp_path: Path) -> None:
    sessions = [random_session(seed) for seed in range(60)]
    path = capture(tmp_path / "random.pcapng", sessions)
    assert remarks(path) == {}
    # All connections open at the same time, so tshark numbers their streams in the order of the list.
    assert followed(path, len(sessions)) == [(session.sent[IN], session.sent[OUT]) for session in sessions]


@pytest.mark.parametrize("ends", [V4, V6])
def test_a_long_download_from_a_silent_client_is_acknowledged(
    tmp_path: Path, ends: tuple[tuple[str, int], tuple[str, int]]
) -> None:
    session = Session(ends, session=2**64 - 2**33 - 2)
    session.open()
    session.send(IN, b"go\n")
    for _ in range(300):
        session.send(OUT, bytes(65_475))
    session.close()
    path = capture(tmp_path / "bulk.pcapng", [session])
    assert remarks(path) == {}
    assert len(session.packets) < 3 + 1 + 300 * 1.07 + 4, "bulk must cost little more than one packet a chunk"
    in_flight = [int(size or 0) for (size,) in fields(path, "tcp.analysis.bytes_in_flight")]
    assert max(in_flight) <= 16 * 65_475


def test_tshark_remarks_on_a_reset_and_on_nothing_else(tmp_path: Path) -> None:
    sessions = []
    for number, ended in enumerate(("client_reset", "backend_reset", "idle", "fault")):
        session = Session((("192.0.2.1", 20_000 + number), V4[1]))
        session.open()
        session.send(IN, b"hello")
        session.send(OUT, b"hello yourself")
        if number & 1:
            session.end(IN)
        session.close(ended)
        sessions.append(session)
    assert remarks(capture(tmp_path / "resets.pcapng", sessions)) == {"Connection reset (RST)": 4}


@pytest.mark.parametrize("where", ["middle", "end"])
def test_dropped_bytes_are_shown_as_missing_and_shift_no_other_byte(tmp_path: Path, where: str) -> None:
    session = Session()
    session.open()
    session.send(OUT, b"before")
    session.drop(OUT, 1_000)
    if where == "middle":
        session.send(OUT, b"behind")
    session.close()
    path = capture(tmp_path / "dropped.pcapng", [session])
    assert "Previous segment(s) not captured (common at capture start)" in remarks(path)
    sequence = {flags: int(number) for flags, number in fields(path, "tcp.flags.str", "tcp.seq")}
    last = 1 + 6 + 1_000 + (6 if where == "middle" else 0)
    backends_fin = [s for s in segments(session.packets) if s.flags & FIN and s.port == 9_000]
    assert backends_fin[0].sequence - (session.context.session >> 32) == last
    assert max(sequence.values()) >= last
    ((_, outbound),) = followed(path, 1)
    assert outbound.startswith(b"before")
    assert outbound.endswith(b"behind") is (where == "middle")


@pytest.mark.parametrize(
    ("ends", "shown"),
    [
        (V4, [*V4[0], *V4[1]]),
        (V6, [*V6[0], *V6[1]]),
        (V4_TO_V6, ["::ffff:192.0.2.1", 40_001, "2001:db8::2", 9_000]),
        (V6_TO_V4, ["2001:db8::1", 40_001, "::ffff:198.51.100.2", 9_000]),
        ((("::ffff:192.0.2.1", 40_001), V4[1]), [*V4[0], *V4[1]]),
        ((("fe80::1%eth0", 1), ("fe80::2%lo", 2)), ["fe80::1", 1, "fe80::2", 2]),
        ((("192.0.2.1", 1), "/run/app.sock"), ["192.0.2.1", 1, "127.0.0.1", 65_535]),
        ((("2001:db8::1", 1), "/run/app.sock"), ["2001:db8::1", 1, "::1", 65_535]),
        ((("192.0.2.1", 1), ("no.address", 2)), ["192.0.2.1", 1, "127.0.0.1", 2]),
    ],
)
@pytest.mark.parametrize("transport", list(Transport))
def test_every_kind_of_address_is_rendered(
    tmp_path: Path,
    ends: tuple[tuple[str, int], tuple[str, int] | str],
    shown: list[str | int],
    transport: Transport,
) -> None:
    session = Session(ends, transport)
    session.open()
    session.send(IN, b"ping")
    session.send(OUT, b"pong")
    path = capture(tmp_path / "addresses.pcapng", [session])
    columns = "_ws.col.Source", f"{transport}.srcport", "_ws.col.Destination", f"{transport}.dstport"
    found = [[shown[0], str(shown[1]), shown[2], str(shown[3])]]
    found.append(found[0][2:] + found[0][:2])
    rows = fields(path, *columns)
    assert [rows[0], rows[-1]] == found
    assert remarks(path).keys() <= UNREMARKABLE | {
        f"Connection establish {what}: server port {shown[3]}"
        for what in ("request (SYN)", "acknowledge (SYN+ACK)")
    }


def test_datagrams_are_one_packet_each(tmp_path: Path) -> None:
    chance = seeded(1)
    sessions = []
    for number, ends in enumerate((V4, V6, V4_TO_V6, V6_TO_V4)):
        session = Session(((ends[0][0], 20_000 + number), ends[1]), Transport.UDP)
        assert session.open() == []
        for size in (0, 1, 100, 601, 65_507):
            assert len(session.send(IN, chance.randbytes(size))) == 1
            assert len(session.send(OUT, chance.randbytes(size))) == 1
        assert session.close("idle") == []
        sessions.append(session)
    path = capture(tmp_path / "datagrams.pcapng", sessions)
    assert remarks(path) == {}
    lengths = Counter(int(length) for (length,) in fields(path, "udp.length"))
    assert lengths == {8: 8, 9: 8, 108: 8, 609: 8, 65_515: 8}
    assert followed(path, 4, "udp") == [(session.sent[IN], session.sent[OUT]) for session in sessions]


def test_a_datagram_that_is_too_long_is_cut() -> None:
    assert len(Session(V4, Transport.UDP).send(IN, bytes(65_600))[0].data) == 65_535
    assert len(Session(V6, Transport.UDP).send(IN, bytes(65_600))[0].data) == 65_535 + 40


def test_a_datagram_never_has_the_checksum_zero() -> None:
    session = Session(V4, Transport.UDP)
    checksum = session.send(IN, bytes(2))[0].header[26:28]
    # With its own checksum in place of the zeros, the sum is 0xffff and its complement zero.
    assert session.send(IN, checksum)[0].header[26:28] == b"\xff\xff"


def test_packets_of_a_side_are_numbered_and_the_number_wraps() -> None:
    session = Session(V4, Transport.UDP)
    numbers = [struct.unpack_from("!H", session.send(IN, b"")[0].header, 4)[0] for _ in range(65_540)]
    assert numbers == [number % 65_536 for number in range(1, 65_541)]


def test_protocols_are_known_by_their_port_and_unix_sockets_by_their_protocol(tmp_path: Path) -> None:
    web = Session((("192.0.2.1", 40_001), ("127.0.0.1", 80)), protocol="http")
    unix = Session((("192.0.2.2", 40_001), "/run/app.sock"), protocol="http")
    names = Session((("2001:db8::1", 40_001), ("127.0.0.1", 53)), Transport.UDP, protocol="dns")
    for session in (web, unix):
        session.open()
        session.send(IN, b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n")
        session.send(OUT, b"HTTP/1.1 204 No Content\r\n\r\n")
        session.close()
    names.open()
    names.send(IN, bytes.fromhex("1234 0100 0001 0000 0000 0000 0765 7861 6d70 6c65 0363 6f6d 00 0001 0001"))
    path = capture(tmp_path / "protocols.pcapng", [web, unix, names])
    protocols = Counter(name for (name,) in fields(path, "_ws.col.Protocol"))
    assert (protocols["HTTP"], protocols["DNS"]) == (4, 1)


def test_the_first_packet_has_a_comment_that_describes_the_session(tmp_path: Path) -> None:
    metadata: dict[str, MetadataValue] = {"sni": "example.com", "alpn": ("h2", "http/1.1"), "ech": True}
    sessions = [
        Session(
            (("192.0.2.1", 20_000 + number), "/run/an app.sock" if number == 2 else V4[1]),
            Transport.UDP if number == 1 else Transport.TCP,
            protocol="https",
            metadata=metadata,
            route=f"web {number}",
        )
        for number in range(3)
    ]
    for session in sessions:
        session.open()
        session.send(IN, b"hello")
        session.send(OUT, b"hello")
        session.close()
    path = capture(tmp_path / "comments.pcapng", sessions)
    start = "protocol=https sni=example.com alpn=h2,http/1.1 ech=True session=0123456789abcdef"
    comments = [row for row in fields(path, "frame.comment", "frame.interface_name") if row[0]]
    assert sorted(comments) == [
        [rf"{start} route=web\x200", "web 0"],
        [rf"{start} route=web\x201", "web 1"],
        [rf"{start} route=web\x202 backend=unix:/run/an\x20app.sock", "web 2"],
    ]
    for session in sessions:
        assert [bool(packet.comment) for packet in session.packets] == [True] + [False] * (
            len(session.packets) - 1
        )


@given(
    st.text(),
    st.text(),
    st.dictionaries(st.text(), st.text() | st.lists(st.text()).map(tuple) | st.booleans()),
)
def test_comments_are_bounded_and_printable(route: str, sni: str, metadata: dict[str, MetadataValue]) -> None:
    metadata = {
        "sni": sni * 100,
        **{f"{key}{n}": value for key, value in metadata.items() for n in range(30)},
    }
    (first, *_) = Session(route=route, metadata=metadata).open()
    assert first.comment is not None
    assert re.fullmatch(r"[!-~]+( [!-~]+)*", first.comment)
    assert len(first.comment) < 8_192
    assert "session=0123456789abcdef" in first.comment.split(" ")


# Rendering


def test_a_connection_from_handshake_to_the_last_acknowledgement() -> None:
    session = Session(session=0x0000_2000_0000_1000)
    session.open()
    session.send(IN, b"ping")
    session.send(OUT, b"pong!")
    session.end(IN)
    session.send(OUT, b"late")
    session.end(OUT)
    assert session.close() == []
    client, backend = 40_001, 9_000
    options = bytes.fromhex("0204ffd7 01 03030e")
    c, b = 0x1000, 0x2000
    assert [packet.data[-8:] for packet in session.packets[:2]] == [options] * 2
    assert segments(session.packets) == [
        (client, c, 0, SYN, b""),
        (backend, b, c + 1, SYN | ACK, b""),
        (client, c + 1, b + 1, ACK, b""),
        (client, c + 1, b + 1, PSH | ACK, b"ping"),
        (backend, b + 1, c + 5, PSH | ACK, b"pong!"),
        (client, c + 5, b + 6, FIN | ACK, b""),
        (backend, b + 6, c + 6, ACK, b""),
        (backend, b + 6, c + 6, PSH | ACK, b"late"),
        (backend, b + 10, c + 6, FIN | ACK, b""),
        (client, c + 6, b + 11, ACK, b""),
    ]


@pytest.mark.parametrize("ended", ["client_reset", "backend_reset", "idle", "drained", "aborted", "fault"])
def test_a_connection_without_an_orderly_end_ends_in_one_reset(ended: str) -> None:
    session = Session(session=0)
    session.open()
    session.send(IN, b"ping")
    session.send(OUT, b"pong!")
    (last,) = segments(session.close(ended))
    if ended == "client_reset":
        assert last == (40_001, 5, 6, RST | ACK, b"")
    else:
        assert last == (9_000, 6, 5, RST | ACK, b"")


def test_a_reset_has_a_sequence_number_after_dropped_bytes() -> None:
    session = Session(session=0)
    session.open()
    session.drop(IN, 10)
    session.drop(OUT, 20)
    assert segments(session.close("client_reset")) == [(40_001, 11, 21, RST | ACK, b"")]


def test_an_end_never_precedes_bytes_already_rendered() -> None:
    session = Session(session=0)
    session.open()
    session.send(IN, b"ping")
    assert segments(session.tell(EventKind.END, IN, offset=2))[0].sequence == 5


def test_a_dialogue_acknowledges_itself() -> None:
    session = Session()
    session.open()
    for _ in range(50):
        assert len(session.send(IN, b"ping")) == 1
        assert len(session.send(OUT, b"pong")) == 1


def test_an_orderly_close_ends_the_directions_still_open() -> None:
    session = Session(session=0)
    session.open()
    session.end(OUT)
    assert segments(session.close()) == [(40_001, 1, 2, FIN | ACK, b""), (9_000, 2, 2, ACK, b"")]


def test_sequence_numbers_wrap() -> None:
    session = Session(session=0xFFFF_FFFF)
    session.open()
    session.drop(IN, 2**32 * 3 + 5)
    assert segments(session.send(IN, b"x"))[0].sequence == 5
    assert segments(session.send(OUT, b"x"))[0].acknowledgement == 6


def test_long_data_is_split_and_not_copied() -> None:
    data = seeded(2).randbytes(200_000)
    session = Session()
    session.open()
    packets = session.send(IN, data)
    assert [len(packet.data) for packet in packets] == [65_535, 65_535, 65_535, 40 + 3_515]
    assert payloads(packets) == data
    assert all(packet.payload.obj is data for packet in packets if isinstance(packet.payload, memoryview))
    (whole,) = session.send(IN, data[:65_495])
    assert not isinstance(whole.payload, memoryview)


def test_packets_have_the_time_of_their_event() -> None:
    session = Session()
    for step in (
        session.open,
        lambda: session.send(IN, bytes(100_000)),
        lambda: session.end(IN),
        session.close,
    ):
        packets = step()
        assert {packet.time for packet in packets} == {session.time}
        assert len(packets) > 1


def test_bytes_after_the_end_of_their_direction_are_not_shown() -> None:
    session = Session()
    session.open()
    session.end(IN)
    assert session.send(IN, b"late") == []
    assert session.end(IN) == []
    session.close("idle")
    assert session.send(OUT, b"late") == []


EVENTS: Final = st.tuples(
    st.sampled_from(EventKind),
    st.sampled_from(Direction),
    st.binary(max_size=3) | st.just(bytes(70_000)),
    st.integers(0, 2**40),
    st.none()
    | st.builds(
        SessionStats,
        st.just(1.0),
        st.integers(0, 2**40),
        st.integers(0, 2**40),
        st.sampled_from(["closed", "client_reset", "backend_reset", "idle", "anything"]),
    ),
)


@given(
    st.sampled_from(Transport),
    st.sampled_from([V4, V6, V4_TO_V6, (V4[0], "/run/app.sock"), (("", 0), ("\0", 0))]),
    st.lists(EVENTS, max_size=12),
)
def test_no_order_of_events_raises(
    transport: Transport,
    ends: tuple[tuple[str, int], tuple[str, int] | str],
    events: list[tuple[EventKind, Direction, bytes, int, SessionStats | None]],
) -> None:
    session = Session(ends, transport)
    for event in events:
        session.tell(*event)
    times = [packet.time for packet in session.packets]
    assert all(earlier <= later for earlier, later in pairwise(times))
    assert [packet.comment is not None for packet in session.packets] == [
        number == 0 for number in range(len(session.packets))
    ]
    for packet in session.packets:
        data = packet.data
        length = (
            struct.unpack_from("!H", data, 2)[0]
            if data[0] >> 4 == 4
            else 40 + struct.unpack_from("!H", data, 4)[0]
        )
        assert length == len(data)
