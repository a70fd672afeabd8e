"""The beginnings of flows in captures of every format, link type and order of segments."""

from __future__ import annotations

import io
import itertools
import struct
import subprocess
from socket import AF_INET, AF_INET6, inet_pton
from typing import TYPE_CHECKING, Any

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refractium_hooks_pcap.flows import Flow, read_flows
from refractium_hooks_pcap.reader import NotACaptureError
from support.programs import require_program

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

CLIENT, SERVER = ("10.0.0.1", 40_000), ("10.0.0.2", 443)
CLIENT6, SERVER6 = ("2001:db8::1", 40_000), ("2001:db8::2", 443)
DATA = b"SSH-2.0-client_1\r\nand more bytes of the client"
SYN, ACK, FIN = dpkt.tcp.TH_SYN, dpkt.tcp.TH_ACK, dpkt.tcp.TH_FIN
ISN = 0xFFFF_FFF0  # the sequence numbers of DATA wrap around
End = tuple[str, int]


def tcp(source: End, to: End, seq: int, flags: int, data: bytes = b"", ack: int = 0) -> dpkt.tcp.TCP:
    del source, to
    return dpkt.tcp.TCP(seq=seq % 2**32, ack=ack % 2**32, flags=flags, data=data)


def packet(source: End, to: End, payload: Any, extension: bytes = b"") -> bytes:
    """Return an IP packet with a TCP segment or a UDP datagram."""
    payload.sport, payload.dport = source[1], to[1]
    protocol = 6 if isinstance(payload, dpkt.tcp.TCP) else 17
    if protocol == 17:
        payload.ulen = 8 + len(payload.data)
    body = bytes(payload)
    if ":" not in source[0]:
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, protocol, 0)
        return header + inet_pton(AF_INET, source[0]) + inet_pton(AF_INET, to[0]) + body
    first = extension[:1] or bytes([protocol])
    rest = bytes([protocol]) + extension[1:] if extension else b""
    header = struct.pack("!IHBB", 6 << 28, len(rest) + len(body), first[0], 64)
    return header + inet_pton(AF_INET6, source[0]) + inet_pton(AF_INET6, to[0]) + rest + body


def stream(
    *parts: tuple[int, bytes], client: End = CLIENT, server: End = SERVER, ends_at: int | None = None
) -> list[bytes]:
    """Return a handshake, and segments of the client by their offsets."""
    found = [
        packet(client, server, tcp(client, server, ISN, SYN)),
        packet(server, client, tcp(server, client, 7, SYN | ACK, ack=ISN + 1)),
    ]
    found += [packet(client, server, tcp(client, server, ISN + 1 + at, ACK, data)) for at, data in parts]
    if ends_at is not None:
        found.append(packet(client, server, tcp(client, server, ISN + 1 + ends_at, ACK | FIN)))
    return found


def pcap(
    packets: Iterable[bytes], linktype: int = 101, order: str = "<", *, nano: bool = False, seconds: int = 0
) -> bytes:
    magic = 0xA1B2_3C4D if nano else 0xA1B2_C3D4
    out = struct.pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, 262_144, linktype)
    for at, data in enumerate(packets):
        out += struct.pack(f"{order}IIII", 1_000 + at * seconds, 500 + at, len(data), len(data)) + data
    return out


def flows(packets: Sequence[bytes], linktype: int = 101) -> list[Flow]:
    return read_flows(io.BytesIO(pcap(packets, linktype))).flows


def only(packets: Sequence[bytes], linktype: int = 101) -> Flow:
    (flow,) = flows(packets, linktype)
    return flow


LINKS = {
    "raw": (101, b""),
    "raw of BSD": (12, b""),
    "Ethernet": (1, bytes(12) + b"\x08\x00"),
    "VLAN": (1, bytes(12) + b"\x81\x00\x00\x05\x08\x00"),
    "two VLANs": (1, bytes(12) + b"\x88\xa8\x00\x05\x81\x00\x00\x06\x08\x00"),
    "cooked": (113, b"\x00\x00\x03\x04\x00\x06" + bytes(8) + b"\x08\x00"),
    "cooked version 2": (276, b"\x08\x00" + bytes(18)),
    "loopback": (0, b"\x02\x00\x00\x00"),
    "loopback of another byte order": (0, b"\x00\x00\x00\x02"),
    "loopback of OpenBSD": (108, b"\x00\x00\x00\x02"),
}


@pytest.mark.parametrize(("linktype", "header"), LINKS.values(), ids=LINKS)
def test_every_link_type_is_read(linktype: int, header: bytes) -> None:
    found = only([header + one for one in stream((0, DATA))], linktype)
    assert (found.client, found.server, found.data) == (CLIENT, SERVER, DATA)


def test_the_padding_of_ethernet_is_no_data() -> None:
    header = bytes(12) + b"\x08\x00"
    found = only([(header + one).ljust(60, b"\xee") for one in stream((0, b"ab"))], 1)
    assert found.data == b"ab"


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("nano", [False, True])
def test_every_form_of_pcap_is_read(order: str, *, nano: bool) -> None:
    found = read_flows(io.BytesIO(pcap(stream((0, DATA)), order=order, nano=nano)))
    assert [one.data for one in found.flows] == [DATA]
    assert found.flows[0].started == 1_000_000_000_000 + 500 * (1 if nano else 1000)


EXTENSIONS = {
    "none": b"",
    "hop by hop": b"\x00\x00\x01\x04" + bytes(4),
    "destination": b"\x3c\x00\x01\x04" + bytes(4),
}


@pytest.mark.parametrize("extension", EXTENSIONS.values(), ids=EXTENSIONS)
def test_ipv6_with_extension_headers_is_read(extension: bytes) -> None:
    packets = [
        packet(CLIENT6, SERVER6, tcp(CLIENT6, SERVER6, ISN, SYN), extension),
        packet(CLIENT6, SERVER6, tcp(CLIENT6, SERVER6, ISN + 1, ACK, DATA), extension),
    ]
    found = only(packets)
    assert (found.client, found.server, found.data) == (CLIENT6, SERVER6, DATA)


@given(st.data())
def test_segments_in_any_order_with_repetitions_and_overlaps_give_the_stream(data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(DATA) - 1), max_size=6)))
    edges = [0, *cuts, len(DATA)]
    parts = [(start, DATA[start:end]) for start, end in itertools.pairwise(edges)]
    starts = st.integers(0, len(DATA) - 1)
    for _ in range(data.draw(st.integers(0, 3))):
        start = data.draw(starts)
        parts.append((start, DATA[start : start + data.draw(st.integers(1, 20))]))
    found = only(stream(*data.draw(st.permutations(parts)), ends_at=len(DATA)))
    assert (found.data, found.has_gap, found.has_ended) == (DATA, False, True)


def test_bytes_that_are_missing_are_told_and_not_guessed() -> None:
    found = only(stream((0, DATA[:10]), (20, DATA[20:])))
    assert (found.data, found.has_gap) == (DATA[:10], True)
    found = only(stream((0, DATA[:10]), ends_at=30))
    assert (found.data, found.has_gap, found.has_ended) == (DATA[:10], True, False)
    packets = stream((0, DATA))
    packets[-1] = packets[-1][:50]
    found = only(packets)
    assert (found.data, found.has_gap) == (DATA[:10], True)


def test_a_flow_without_its_beginning_has_no_bytes() -> None:
    found = only(stream((10, DATA[10:]))[2:])
    assert (found.has_beginning, found.data, found.client) == (False, b"", CLIENT)
    assert not flows([packet(CLIENT, SERVER, tcp(CLIENT, SERVER, 1, ACK))]), "an empty segment shows nothing"


def test_the_answer_to_a_syn_shows_the_beginning_as_well() -> None:
    found = only(stream((0, DATA))[1:])
    assert (found.client, found.data) == (CLIENT, DATA)


def test_a_repeated_syn_continues_the_flow_and_another_syn_begins_one() -> None:
    packets = stream((0, DATA))
    assert only([packets[0], *packets]).data == DATA
    again = [
        packet(CLIENT, SERVER, tcp(CLIENT, SERVER, 5, SYN)),
        packet(CLIENT, SERVER, tcp(CLIENT, SERVER, 6, ACK, b"second")),
    ]
    assert [one.data for one in flows([*packets, *again])] == [DATA, b"second"]


def test_the_side_with_the_lower_port_may_be_the_client() -> None:
    found = only(stream((0, DATA), client=("10.0.0.1", 80), server=("10.0.0.2", 50_000)))
    assert (found.client[1], found.data) == (80, DATA)


def test_a_syn_may_carry_the_first_bytes() -> None:
    found = only([packet(CLIENT, SERVER, tcp(CLIENT, SERVER, ISN, SYN, DATA))])
    assert found.data == DATA


def test_a_server_that_speaks_first_is_told() -> None:
    greeting = packet(SERVER, CLIENT, tcp(SERVER, CLIENT, 8, ACK, b"220 ready\r\n"))
    packets = stream((0, b"USER joe\r\n"))
    assert only([*packets[:2], greeting, *packets[2:]]).server_first
    assert not only([*packets, greeting]).server_first
    silent = only([*packets[:2], greeting])
    assert (silent.data, silent.first_at, silent.server_first) == (b"", None, True)


def test_the_first_datagram_of_each_pair_is_read() -> None:
    def datagram(source: End, to: End, data: bytes) -> bytes:
        return packet(source, to, dpkt.udp.UDP(data=data))

    found = flows(
        [
            datagram(CLIENT, SERVER, b"first"),
            datagram(SERVER, CLIENT, b"answer"),
            datagram(CLIENT, SERVER, b"second"),
            datagram(("10.0.0.1", 40_001), SERVER, b""),
        ]
    )
    assert [(one.client[1], one.data, one.transport) for one in found] == [
        (40_000, b"first", "udp"),
        (40_001, b"", "udp"),
    ]


def test_other_packets_are_counted_and_break_nothing() -> None:
    icmp = bytearray(packet(CLIENT, SERVER, dpkt.udp.UDP(data=b"x")))
    icmp[9] = 1
    fragment = bytearray(packet(CLIENT, SERVER, dpkt.udp.UDP(data=b"x")))
    fragment[6:8] = b"\x00\x05"
    found = read_flows(io.BytesIO(pcap([bytes(icmp), bytes(fragment), b"", b"\x45", *stream((0, DATA))])))
    assert (found.skipped, [one.data for one in found.flows]) == (4, [DATA])
    assert read_flows(io.BytesIO(pcap([b"\x00" * 40], 147))).skipped == 1


@given(st.binary(max_size=120), st.sampled_from([0, 1, 12, 101, 113, 276, 999]))
def test_any_bytes_can_stand_in_a_packet(data: bytes, linktype: int) -> None:
    read_flows(io.BytesIO(pcap([data], linktype)))


@pytest.mark.parametrize("data", [b"no capture", b"\x0a\x0d\x0d\x0a" + bytes(40)])
def test_a_file_that_is_no_capture_is_an_error(data: bytes) -> None:
    with pytest.raises(NotACaptureError):
        read_flows(io.BytesIO(data))


def test_captures_of_several_link_types_that_mergecap_joins(tmp_path: Path) -> None:
    mergecap = require_program("mergecap")
    one, two, both = tmp_path / "one.pcap", tmp_path / "two.pcap", tmp_path / "both.pcapng"
    one.write_bytes(pcap([bytes(12) + b"\x08\x00" + part for part in stream((0, DATA))], 1))
    other = ("10.0.0.9", 41_000)
    two.write_bytes(pcap(stream((0, b"raw"), client=other), 101, ">", nano=True))
    subprocess.run([mergecap, "-w", both, one, two], check=True)
    with both.open("rb") as file:
        found = {flow.client: flow.data for flow in read_flows(file).flows}
    assert found == {CLIENT: DATA, other: b"raw"}


def test_a_capture_that_text2pcap_wrote(tmp_path: Path) -> None:
    text2pcap = require_program("text2pcap")
    text, path = tmp_path / "hex.txt", tmp_path / "out.pcapng"
    text.write_text("000000 " + " ".join(f"{byte:02x}" for byte in b"?hello") + "\n")
    subprocess.run([text2pcap, "-q", "-u", "4000,53", text, path], check=True, capture_output=True)
    with path.open("rb") as file:
        (flow,) = read_flows(file).flows
    assert (flow.transport, flow.client[1], flow.server[1], flow.data) == ("udp", 4000, 53, b"?hello")
