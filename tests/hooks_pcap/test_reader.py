from __future__ import annotations

import struct
import subprocess
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refractium_hooks_pcap.formats import PcapngWriter, PcapWriter
from refractium_hooks_pcap.packets import Packet
from refractium_hooks_pcap.reader import Captured, Extent, NotACaptureError, PcapHeader, Reader, examine
from support.programs import require_program

if TYPE_CHECKING:
    from pathlib import Path

TIME: Final = 1_764_000_000_123_456_789
HEADER: Final = bytes.fromhex("45000021 00010000 40110000 7f000001 7f000001 0001 0002 000d 0000")
PACKET: Final = Packet(TIME, HEADER, b"hello", "web", "who")
READ: Final = Captured(TIME, "web", 101, PACKET.data, 33, "who")
TIMEOUT: Final = 60

PACKETS: Final = st.lists(
    st.builds(
        Packet,
        st.integers(10**9, 2**32 * 10**9 - 1),
        st.binary(min_size=1, max_size=60),
        st.binary(max_size=9),
        st.sampled_from(["web", "ssh", "ü"]),
        st.none() | st.text(st.characters(codec="utf-8")),
    ),
    max_size=8,
)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    ends = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(ends)]


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    size = struct.pack(f"{order}I", 12 + len(body))
    return struct.pack(f"{order}I", kind) + size + body + size


def section(order: str = "<") -> bytes:
    return block(0x0A0D0D0A, struct.pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1), order)


def interface(options: bytes = b"", order: str = "<") -> bytes:
    return block(1, struct.pack(f"{order}HHI", 101, 0, 0) + options, order)


def enhanced(ticks: int, data: bytes = b"data", order: str = "<", number: int = 0) -> bytes:
    head = struct.pack(f"{order}5I", number, ticks >> 32, ticks & 0xFFFF_FFFF, len(data), len(data))
    return block(6, head + data + bytes(-len(data) & 3), order)


@given(PACKETS, st.lists(st.integers(0, 10_000), max_size=9), st.integers(1, 80))
def test_the_output_of_a_writer_is_read_however_it_is_cut(
    packets: list[Packet], cuts: list[int], snaplen: int
) -> None:
    for writer in (PcapngWriter(snaplen), PcapWriter(snaplen)):
        is_pcapng = isinstance(writer, PcapngWriter)
        data = writer.begin() + b"".join(map(writer.record, packets))
        reader = Reader()
        found = [one for piece in pieces(data, cuts) for one in reader.feed(piece)]
        assert found == [
            Captured(
                packet.time,
                packet.route if is_pcapng else None,
                101,
                packet.data[:snaplen],
                len(packet.data),
                packet.comment if is_pcapng else None,
            )
            for packet in packets
        ]


def test_a_packet_is_handed_out_with_its_last_byte() -> None:
    writer = PcapngWriter(262_144)
    data = writer.begin() + writer.record(PACKET)
    reader = Reader()
    for at in range(len(data) - 1):
        assert reader.feed(data[at : at + 1]) == []
    assert reader.feed(data[-1:]) == [READ]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("options", "ticks", "time"),
    [
        (b"", 1_764_000_000_123_456, 1_764_000_000_123_456_000),
        ("tsresol 9", TIME, TIME),
        ("tsresol 0", 1_764_000_000, 1_764_000_000_000_000_000),
        ("tsresol 138", (1_764_000_000 << 10) + 512, 1_764_000_000_500_000_000),
        ("tsresol 12", 2**64 - 1, (2**64 - 1) // 1_000),
        ("tsoffset", 5_000_000, 5_000_000_000 + 1_700_000_000 * 10**9),
    ],
)
def test_times_of_pcapng(order: str, options: str | bytes, ticks: int, time: int) -> None:
    if isinstance(options, str):
        name, _, value = options.partition(" ")
        options = (
            struct.pack(f"{order}HHB3x", 9, 1, int(value))
            if name == "tsresol"
            else struct.pack(f"{order}HHq", 14, 8, 1_700_000_000)
        )
    data = section(order) + interface(options, order) + enhanced(ticks, b"data", order)
    assert Reader().feed(data) == [Captured(time, None, 101, b"data", 4, None)]


def test_sections_have_interfaces_and_a_byte_order_of_their_own() -> None:
    name = b"\2\0\3\0web\0"
    data = (
        section()
        + interface(name)
        + enhanced(1)
        + section(">")
        + interface(order=">")
        + enhanced(2, order=">")
    )
    assert [(one.time, one.interface) for one in Reader().feed(data)] == [(1_000, "web"), (2_000, None)]
    with pytest.raises(NotACaptureError, match="type 6"):
        Reader().feed(section() + interface() + section() + enhanced(1))


def test_blocks_of_other_types_are_skipped() -> None:
    data = (
        section() + block(5, bytes(12)) + interface() + block(0xBAD, b"") + enhanced(1) + block(4, bytes(4))
    )
    assert len(Reader().feed(data)) == 1


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize(("magic", "resolution"), [(0xA1B2C3D4, 10**6), (0xA1B23C4D, 10**9)])
def test_pcap_of_both_byte_orders_and_resolutions(
    tmp_path: Path, order: str, magic: int, resolution: int
) -> None:
    prefix = "<" if order == "little" else ">"
    data = struct.pack(f"{prefix}IHHiIII", magic, 2, 4, 0, 0, 99, 0xF000_0001)
    data += struct.pack(f"{prefix}4I", 1_764_000_000, 123_456, 4, 9) + b"data"
    time = 1_764_000_000 * 10**9 + 123_456 * 10**9 // resolution
    assert Reader().feed(data) == [Captured(time, None, 1, b"data", 9, None)]
    path = tmp_path / "capture"
    path.write_bytes(data + b"cut off")
    with path.open("rb") as file:
        extent = examine(file)
    assert extent is not None
    assert extent.end == len(data)
    assert extent.pcap is not None
    assert extent.pcap._asdict() == {
        "byte_order": order,
        "resolution": resolution,
        "snaplen": 99,
        "linktype": 1,
    }


@pytest.mark.parametrize("form", ["pcapng", "pcap", "nsecpcap"])
def test_captures_of_other_programs_are_read(tmp_path: Path, form: str) -> None:
    writer = PcapngWriter(262_144)
    path, copy = tmp_path / "capture.pcapng", tmp_path / "copy"
    path.write_bytes(writer.begin() + b"".join(writer.record(PACKET) for _ in range(50)))
    subprocess.run(
        [require_program("tshark"), "-r", path, "-w", copy, "-F", form],
        capture_output=True,
        timeout=TIMEOUT,
        check=True,
    )
    expected = {
        "pcapng": READ,
        "pcap": READ._replace(interface=None, comment=None, time=TIME // 1_000 * 1_000),
        "nsecpcap": READ._replace(interface=None, comment=None),
    }
    found = Reader().feed(copy.read_bytes())
    # Some programs write the system's number of raw IP packets as the link type.
    assert [one._replace(linktype=101) for one in found] == [expected[form]] * 50


SOUND: Final = section() + interface() + enhanced(1)
PCAP: Final = PcapWriter(99).begin() + PcapWriter(99).record(PACKET)


@pytest.mark.parametrize(
    ("sound", "fault"),
    [
        (b"", b"GET / HTTP/1.1\r\n\r\n"),
        (b"", bytes(64)),
        (b"", section()[:8] + b"none" + section()[12:]),
        (b"", struct.pack("<IHHiIII", 0xA1B2CD34, 2, 4, 0, 0, 99, 101)),
        (SOUND, bytes(64)),
        (SOUND, struct.pack("<II", 6, 8) + bytes(64)),
        (SOUND, struct.pack("<II", 6, 2**31) + bytes(64)),
        (SOUND, struct.pack("<II", 6, 34) + bytes(64)),
        (SOUND, struct.pack("<IIHI", 6, 14, 0, 14)),
        (SOUND, enhanced(1)[:-4] + b"\0\0\0\0"),
        (PCAP, bytes(64)),
        (PCAP, struct.pack("<4I", 1, 10**9, 4, 4)),
        (PCAP, struct.pack("<4I", 1, 0, 2**31, 2**31)),
    ],
)
def test_a_malformed_record_is_refused_and_records_before_it_are_read(
    tmp_path: Path, sound: bytes, fault: bytes
) -> None:
    reader = Reader()
    if sound:
        assert len(reader.feed(sound + fault)) == 1
    for _ in range(2):
        with pytest.raises(NotACaptureError):
            reader.feed(fault if not sound else b"")
    path = tmp_path / "capture"
    path.write_bytes(sound + fault)
    with path.open("rb") as file:
        extent = examine(file)
    assert (extent and extent.end) == (len(sound) or None)


@pytest.mark.parametrize(
    "fault",
    [
        enhanced(1, number=1),
        block(6, bytes(16)),
        block(6, struct.pack("<5I", 0, 0, 0, 99, 99) + bytes(8)),
        block(6, struct.pack("<5I", 0, 0, 0, 0, 0) + b"\1\0\x09\0" + bytes(8)),
        block(1, b""),
        block(1, struct.pack("<HHI", 101, 0, 0) + b"\x09\0\0\0"),
    ],
)
def test_a_block_whose_body_is_wrong_is_refused(fault: bytes) -> None:
    with pytest.raises(NotACaptureError):
        Reader().feed(section() + interface() + fault)


@given(st.binary(max_size=200), st.sampled_from([b"", section(), SOUND, PCAP]), st.booleans())
def test_no_bytes_raise_an_unexpected_exception(data: bytes, ahead: bytes, packed: bool) -> None:  # noqa: FBT001 - drawn
    reader = Reader()
    data = block(6, data + bytes(-len(data) & 3)) if packed else data
    try:
        for piece in pieces(ahead + data, [7, 50, 99]):
            reader.feed(piece)
    except NotACaptureError:
        pass


@pytest.mark.parametrize("kind", [PcapngWriter, PcapWriter])
def test_the_last_whole_record_of_a_file_is_found_wherever_the_cut_is(
    tmp_path: Path, kind: type[PcapngWriter | PcapWriter]
) -> None:
    writer = kind(99)
    data = writer.begin()
    ends = [0, len(data)]
    for route in ("web", "ssh", "web"):
        record = writer.record(PACKET._replace(route=route))
        description, size = struct.unpack_from("<II", record)
        if description == 1:  # the description of an interface, which is a block of its own
            ends.append(len(data) + size)
        data += record
        ends.append(len(data))
    header = None if kind is PcapngWriter else PcapHeader("little", 10**9, 99, 101)
    path = tmp_path / "capture"
    for size in range(len(data) + 1):
        path.write_bytes(data[:size])
        with path.open("rb") as file:
            extent = examine(file)
        end = max(end for end in ends if end <= size)
        assert extent == (Extent(end, header) if end else None)


def test_a_repaired_file_can_be_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "capture.pcapng"
    for count in range(3):
        with path.open("a+b") as file:
            extent = examine(file)
            assert (extent is None) == (count == 0)
            file.truncate(extent.end if extent else 0)
            writer = PcapngWriter(262_144)
            file.write(writer.begin() + writer.record(PACKET._replace(route=f"route {count}")))
            file.write(writer.record(PACKET._replace(route="cut off"))[:-1])
    with path.open("r+b") as file:
        extent = examine(file)
        assert extent is not None
        file.truncate(extent.end)
    assert [one.interface for one in Reader().feed(path.read_bytes())] == ["route 0", "route 1", "route 2"]
    run = subprocess.run(
        [require_program("tshark"), "-n", "-r", path, "-T", "fields", "-e", "frame.len"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
    )
    assert run.stdout == "33\n" * 3
