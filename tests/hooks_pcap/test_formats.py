from __future__ import annotations

import struct
import subprocess
from typing import TYPE_CHECKING, Final

import pytest

from refractium_hooks_pcap.formats import LINKTYPE_RAW, PcapngWriter, PcapWriter
from refractium_hooks_pcap.packets import Packet
from support.programs import require_program

if TYPE_CHECKING:
    from pathlib import Path

TIME: Final = 1_764_000_000_123_456_789
HEADER: Final = bytes.fromhex("45000021 00010000 40110000 7f000001 7f000001 0001 0002 000d 0000")
PACKET: Final = Packet(TIME, HEADER, b"hello", "web")
SNAPLEN: Final = 262_144
TIMEOUT: Final = 60


def blocks(data: bytes) -> list[tuple[int, bytes]]:
    """Yield type and body of each block, and check every rule about lengths."""
    found = []
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from("<II", data, at)
        assert size % 4 == 0
        assert struct.unpack_from("<I", data, at + size - 4) == (size,)
        found.append((kind, data[at + 8 : at + size - 4]))
        at += size
    assert at == len(data)
    return found


def tshark(path: Path, *names: str) -> list[list[str]]:
    options = [one for name in names for one in ("-e", name)]
    run = subprocess.run(
        [require_program("tshark"), "-n", "-r", path, "-T", "fields", *options],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
    )
    return [line.split("\t") for line in run.stdout.splitlines()]


def test_pcapng_begins_with_a_section_of_unknown_length() -> None:
    ((kind, body),) = blocks(PcapngWriter(SNAPLEN).begin())
    assert kind == 0x0A0D0D0A
    assert struct.unpack_from("<IHHq", body) == (0x1A2B3C4D, 1, 0, -1)


def test_a_route_is_described_once_before_its_first_packet() -> None:
    writer = PcapngWriter(1_000)
    records = [blocks(writer.record(PACKET._replace(route=route))) for route in ("web", "ssh", "web", "ssh")]
    assert [[kind for kind, _ in record] for record in records] == [[1, 6], [1, 6], [6], [6]]
    assert [struct.unpack_from("<I", record[-1][1])[0] for record in records] == [0, 1, 0, 1]
    description = records[1][0][1]
    assert struct.unpack_from("<HHI", description) == (LINKTYPE_RAW, 0, 1_000)
    assert description[8:] == b"\2\0\3\0ssh\0" + b"\x09\0\1\0\x09\0\0\0" + bytes(4)


def test_every_writer_describes_the_routes_anew() -> None:
    for _ in range(2):
        assert [kind for kind, _ in blocks(PcapngWriter(SNAPLEN).record(PACKET))] == [1, 6]


@pytest.mark.parametrize("size", range(9))
@pytest.mark.parametrize("comment", [None, "", "c", "four", "protocol=https"])
def test_a_packet_in_pcapng(size: int, comment: str | None) -> None:
    writer = PcapngWriter(SNAPLEN)
    writer.record(PACKET)
    ((_, body),) = blocks(
        writer.record(Packet(TIME, b"header", memoryview(b"payloads!")[:size], "web", comment))
    )
    number, high, low, stored, length = struct.unpack_from("<5I", body)
    assert (number, high << 32 | low, stored, length) == (0, TIME, 6 + size, 6 + size)
    data = b"header" + b"payloads!"[:size]
    text = (comment or "").encode()
    options = struct.pack("<HH", 1, len(text)) + text + bytes(-len(text) & 3) + bytes(4)
    assert body[20:] == data + bytes(-len(data) & 3) + (b"" if comment is None else options)


@pytest.mark.parametrize(("snaplen", "kept"), [(1, 1), (5, 5), (6, 6), (7, 7), (14, 14), (15, 15), (16, 15)])
def test_no_more_than_snaplen_is_kept(snaplen: int, kept: int) -> None:
    packet = Packet(TIME, b"header", b"payloads!", "web", "who")
    data = b"headerpayloads!"[:kept]
    body = blocks(PcapngWriter(snaplen).record(packet))[1][1]
    assert struct.unpack_from("<II", body, 12) == (kept, 15)
    assert body[20:].startswith(data + bytes(-kept & 3) + b"\1\0\3\0who\0")
    record = PcapWriter(snaplen).record(packet)
    assert record[8:] == struct.pack("<II", kept, 15) + data


def test_pcap() -> None:
    writer = PcapWriter(1_000)
    assert writer.begin() == bytes.fromhex("4d3cb2a1 0200 0400 00000000 00000000 e8030000 65000000")
    record = writer.record(PACKET._replace(comment="left out"))
    assert record == struct.pack("<4I", TIME // 10**9, TIME % 10**9, 33, 33) + PACKET.data


@pytest.mark.parametrize("name", ["route", "a route ", "ü\n", "x" * 70_000])
def test_names_of_routes(tmp_path: Path, name: str) -> None:
    writer = PcapngWriter(SNAPLEN)
    path = tmp_path / "names.pcapng"
    path.write_bytes(writer.begin() + writer.record(PACKET._replace(route=name)))
    ((shown,),) = tshark(path, "frame.interface_name")
    assert shown[:5] == {"ü\n": "ü\\n"}.get(name, name)[:5]


@pytest.mark.parametrize("kind", [PcapngWriter, PcapWriter])
def test_programs_read_both_formats(tmp_path: Path, kind: type[PcapngWriter | PcapWriter]) -> None:
    writer = kind(40)
    path = tmp_path / "capture"
    packets = [
        PACKET._replace(payload=bytes(size), time=TIME + size, comment="first" if size == 0 else None)
        for size in range(30)
    ]
    path.write_bytes(writer.begin() + b"".join(writer.record(packet) for packet in packets))
    rows = tshark(path, "frame.time_epoch", "frame.len", "frame.cap_len", "ip.src", "frame.comment")
    assert rows == [
        [
            f"1764000000.{123_456_789 + size}",
            str(28 + size),
            str(min(40, 28 + size)),
            "127.0.0.1",
            "first" if kind is PcapngWriter and size == 0 else "",
        ]
        for size in range(30)
    ]
    info = subprocess.run(
        [require_program("capinfos"), "-M", path], capture_output=True, text=True, timeout=TIMEOUT, check=True
    ).stdout
    assert "cut short" not in info
    lines = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    assert lines["File encapsulation"].strip() == "rawip"
    assert lines["Number of packets"].strip() == "30"
    assert lines["Strict time order"].strip() == "True"
