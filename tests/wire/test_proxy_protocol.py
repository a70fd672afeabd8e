from __future__ import annotations

import socket
import subprocess
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import product
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from refractium.contract import NEED_MORE, NO, Transport, Verdict
from refractium.wire.proxy_protocol import (
    MAX_BYTES,
    PP2_TYPE_ALPN,
    PP2_TYPE_AUTHORITY,
    PP2_TYPE_CRC32C,
    Header,
    HostPort,
    _crc32c,
    build_v1,
    build_v2,
    parse,
)
from support.programs import require_program

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TIMEOUT: Final = 10
"""Seconds after which a program or connection has hung."""
NOOP: Final = 0x04
UNIQUE_ID: Final = 0x05
V4: Final = ("192.0.2.1", 56324), ("198.51.100.2", 443)
V6: Final = ("2001:db8::1", 56324), ("2001:db8::2", 443)
SIGNATURE: Final = bytes.fromhex("0d 0a 0d 0a 00 0d 0a 51 55 49 54 0a")
IPV4_BLOCK: Final = bytes.fromhex("c0 00 02 01 c6 33 64 02 dc 04 01 bb")
IPV6_BLOCK: Final = bytes.fromhex(
    "20 01 0d b8 00 00 00 00 00 00 00 00 00 00 00 01"
    "20 01 0d b8 00 00 00 00 00 00 00 00 00 00 00 02"
    "dc 04 01 bb"
)
LONGEST_IPV6: Final = ":".join(["ffff"] * 8)


def v2(block: bytes = b"", *, command: int = 0x21, kind: int = 0x11, declared: int | None = None) -> bytes:
    """Return a header of version 2, built by struct proxy_hdr_v2 of the specification."""
    length = len(block) if declared is None else declared
    return SIGNATURE + bytes([command, kind]) + length.to_bytes(2, "big") + block


def tlv(kind: int, value: bytes) -> bytes:
    return bytes([kind]) + len(value).to_bytes(2, "big") + value


def with_checksum(header: bytes, trailer: bytes = b"") -> bytes:
    """Return the header with a PP2_TYPE_CRC32C behind its block, and `trailer` behind the checksum."""
    block = header[16:] + tlv(PP2_TYPE_CRC32C, bytes(4)) + trailer
    whole = header[:14] + len(block).to_bytes(2, "big") + block
    at = len(whole) - len(trailer) - 4
    return whole[:at] + _crc32c(whole).to_bytes(4, "big") + whole[at + 4 :]


def header_of(data: bytes) -> Header:
    """Parse data that must be one whole header, in whatever pieces it arrives."""
    for end in range(len(data)):
        assert parse(data[:end]) is NEED_MORE, data[:end]
    for rest in (b"", b"\0", b"\r\nPROXY and more"):
        answer = parse(data + rest)
        assert not isinstance(answer, Verdict), data
        assert answer[1] == len(data)
    answer = parse(data)
    assert not isinstance(answer, Verdict)
    return answer[0]


def plain(endpoint: HostPort | None) -> tuple[IPv4Address | IPv6Address, int] | None:
    """Return an endpoint whose address compares by value; an IPv4-mapped address becomes the IPv4 address."""
    if endpoint is None:
        return None
    ip = ip_address(endpoint[0])
    return (ip.ipv4_mapped if isinstance(ip, IPv6Address) and ip.ipv4_mapped else ip), endpoint[1]


PORTS: Final = st.integers(0, 65_535)
HOSTS: Final = st.ip_addresses().map(str)
ENDPOINTS: Final = st.tuples(HOSTS, PORTS)
NAMES: Final = st.none() | st.text("abcxyz0189.-", min_size=1, max_size=255)
BUILT: Final = st.one_of(
    st.builds(build_v1, ENDPOINTS | st.none(), ENDPOINTS),
    st.builds(build_v2, st.sampled_from(Transport), ENDPOINTS | st.none(), ENDPOINTS, sni=NAMES, alpn=NAMES),
    st.builds(
        v2, st.binary(max_size=300), command=st.integers(0x20, 0x22), kind=st.sampled_from(range(0x33))
    ),
)


# Writing


def test_version_1_is_written_as_the_specification_shows_it() -> None:
    assert build_v1(*V4) == b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n"
    assert build_v1(*V6) == b"PROXY TCP6 2001:db8::1 2001:db8::2 56324 443\r\n"
    assert (
        build_v1(("0.0.0.0", 0), ("255.255.255.255", 65535))
        == b"PROXY TCP4 0.0.0.0 255.255.255.255 0 65535\r\n"
    )


def test_version_2_is_written_as_the_specification_shows_it() -> None:
    assert build_v2(Transport.TCP, *V4) == v2(IPV4_BLOCK, kind=0x11)
    assert build_v2(Transport.UDP, *V4) == v2(IPV4_BLOCK, kind=0x12)
    assert build_v2(Transport.TCP, *V6) == v2(IPV6_BLOCK, kind=0x21)
    assert build_v2(Transport.UDP, *V6) == v2(IPV6_BLOCK, kind=0x22)


def test_server_name_and_alpn_are_written_behind_the_addresses() -> None:
    names = tlv(PP2_TYPE_ALPN, b"h2") + tlv(PP2_TYPE_AUTHORITY, b"www.example.com")
    assert build_v2(Transport.TCP, *V4, sni="www.example.com", alpn="h2") == v2(IPV4_BLOCK + names)


def test_alpn_is_bytes_and_a_server_name_is_utf_8() -> None:
    header = header_of(build_v2(Transport.TCP, *V4, sni="é", alpn="\xe9"))
    assert header.tlvs == {PP2_TYPE_ALPN: b"\xe9", PP2_TYPE_AUTHORITY: b"\xc3\xa9"}


@pytest.mark.parametrize("ends", [(None, V4[1]), (V4[0], None), (None, None)])
def test_an_unknown_address_gives_a_header_without_addresses(
    ends: tuple[HostPort | None, HostPort | None],
) -> None:
    assert build_v1(*ends) == b"PROXY UNKNOWN\r\n"
    assert build_v2(Transport.TCP, *ends, sni="example.com") == v2(command=0x20, kind=0)


def test_ends_of_different_families_are_sent_as_ipv6() -> None:
    line = build_v1(V6[0], V4[1])
    assert line == b"PROXY TCP6 2001:db8::1 0000:0000:0000:0000:0000:ffff:c633:6402 56324 443\r\n"
    mapped = IPV6_BLOCK[:16] + bytes(10) + b"\xff\xff" + IPV4_BLOCK[4:8] + IPV6_BLOCK[32:]
    assert build_v2(Transport.TCP, V6[0], V4[1]) == v2(mapped, kind=0x21)


def test_ipv4_clients_of_an_ipv6_listener_are_sent_as_ipv4() -> None:
    mapped = [("::ffff:" + host, port) for host, port in V4]
    assert build_v1(*mapped) == build_v1(*V4)
    assert build_v2(Transport.TCP, *mapped) == build_v2(Transport.TCP, *V4)


def test_the_zone_of_a_link_local_address_is_not_sent() -> None:
    assert build_v1(("fe80::1%eth0", 1), V6[1]) == b"PROXY TCP6 fe80::1 2001:db8::2 1 443\r\n"


@pytest.mark.parametrize(
    "host", ["", "localhost", "192.0.2.01", "192.0.2", "::g", "/run/x.sock", "1.2.3.4\0", "é"]
)
def test_a_host_that_is_not_an_ip_address_is_refused(host: str) -> None:
    for ends in (((host, 1), V4[1]), (V4[0], (host, 1))):
        with pytest.raises(ValueError, match="not an IP address"):
            build_v1(*ends)
        with pytest.raises(ValueError, match="not an IP address"):
            build_v2(Transport.TCP, *ends)


@pytest.mark.parametrize("port", [-1, 65_536])
def test_a_port_out_of_range_is_refused(port: int) -> None:
    with pytest.raises(ValueError, match="from 0 to 65535"):
        build_v1(V4[0], ("192.0.2.1", port))
    with pytest.raises(ValueError, match="from 0 to 65535"):
        build_v2(Transport.UDP, V4[0], ("192.0.2.1", port))


@pytest.mark.parametrize("name", ["", "a" * 256])
def test_a_name_that_no_receiver_takes_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="1 to 255"):
        build_v2(Transport.TCP, *V4, sni=name)
    with pytest.raises(ValueError, match="1 to 255"):
        build_v2(Transport.TCP, *V4, alpn=name)


# Reading version 1


@pytest.mark.parametrize(
    ("line", "source", "destination"),
    [
        ("TCP4 192.0.2.1 198.51.100.2 56324 443", *V4),
        ("TCP4 255.255.255.255 255.255.255.255 65535 65535", *[("255.255.255.255", 65535)] * 2),
        (f"TCP6 {LONGEST_IPV6} {LONGEST_IPV6} 65535 65535", *[(LONGEST_IPV6, 65535)] * 2),
        ("TCP6 2001:DB8:0:0:0:0:0:1 2001:0db8::0002 56324 443", *V6),
        ("TCP6 ::ffff:192.0.2.1 ::ffff:c633:6402 56324 443", *V4),
        ("TCP4 0.0.0.0 0.0.0.0 0 0", *[("0.0.0.0", 0)] * 2),
    ],
)
def test_a_line_names_both_ends(line: str, source: HostPort, destination: HostPort) -> None:
    assert header_of(f"PROXY {line}\r\n".encode()) == Header(Transport.TCP, source, destination)


@pytest.mark.parametrize(
    "line",
    [
        "UNKNOWN",
        "UNKNOWN ",
        f"UNKNOWN {LONGEST_IPV6} {LONGEST_IPV6} 65535 65535",
        "UNKNOWN \0\xff or anything",
    ],
)
def test_for_an_unknown_client_the_real_peer_counts(line: str) -> None:
    header = header_of(f"PROXY {line}\r\n".encode("latin-1"))
    assert header == Header()
    assert header.is_local


@pytest.mark.parametrize(
    "line",
    [
        "PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 56324 443 \r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 56324\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 56324 443 1\r\n",
        "PROXY TCP4  192.0.2.1 198.51.100.2 56324 443\r\n",
        "PROXY TCP4 192.0.2.1\t198.51.100.2 56324 443\r\n",
        "PROXY  TCP4 192.0.2.1 198.51.100.2 56324 443\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 056324 443\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 56324 00\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 65536 443\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 1 99999\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 -1 443\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 +1 443\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 1_0 443\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 \u0661 443\r\n",
        "PROXY TCP4 192.0.2.01 198.51.100.2 56324 443\r\n",
        "PROXY TCP4 192.0.2.256 198.51.100.2 56324 443\r\n",
        "PROXY TCP4 192.0.2 198.51.100.2 56324 443\r\n",
        "PROXY TCP4 0x7f.0.0.1 198.51.100.2 56324 443\r\n",
        "PROXY TCP4 2001:db8::1 2001:db8::2 56324 443\r\n",
        "PROXY TCP4 192.0.2.1 2001:db8::2 56324 443\r\n",
        "PROXY TCP6 192.0.2.1 198.51.100.2 56324 443\r\n",
        "PROXY TCP6 fe80::1%1 2001:db8::2 56324 443\r\n",
        "PROXY TCP6 1::2::3 2001:db8::2 56324 443\r\n",
        "PROXY TCP6 12345::1 2001:db8::2 56324 443\r\n",
        "PROXY TCP6 1:2:3:4:5:6:7 2001:db8::2 56324 443\r\n",
        "PROXY TCP6 [2001:db8::1] 2001:db8::2 56324 443\r\n",
        "PROXY TCP5 192.0.2.1 198.51.100.2 56324 443\r\n",
        "PROXY UDP4 192.0.2.1 198.51.100.2 56324 443\r\n",
        "PROXY tcp4 192.0.2.1 198.51.100.2 56324 443\r\n",
        "proxy TCP4 192.0.2.1 198.51.100.2 56324 443\r\n",
        " PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n",
        "PROXY UNKNOWNS\r\n",
        "PROXY UNKNOWN\n",
        "PROXY UNKNOWN \n",
        "PROXY UNKNOWN GET / HTTP/1.1\nHost: a\r\n",
        "PROXY UNKNOWN \rhello\r\n",
        "PROXY TCP4\r\n",
        "PROXY\r\n",
        "PROXY http://example.com/ HTTP/1.1\r\n",
        "GET / HTTP/1.1\r\n",
    ],
)
def test_a_line_that_differs_from_the_specification_is_refused(line: str) -> None:
    assert parse(line.encode()) is NO


@pytest.mark.parametrize(("start", "longest"), [("TCP4 ", 56), ("TCP6 ", 104), ("UNKNOWN ", 107)])
def test_a_line_without_end_is_refused_at_the_maximum_length(start: str, longest: int) -> None:
    line = f"PROXY {start}".encode().ljust(200, b"1")
    assert parse(line[: longest - 2]) is NEED_MORE
    assert parse(line[: longest - 2] + b"\r") is NEED_MORE
    assert parse(line[: longest - 1]) is NO
    assert parse(line[: longest - 1] + b"\r\n") is NO


def test_an_unknown_line_may_have_107_bytes() -> None:
    line = b"PROXY UNKNOWN ".ljust(105, b"f") + b"\r\n"
    assert parse(line) == (Header(), 107)
    assert parse(line.replace(b"\r\n", b"f\r\n")) is NO


@given(HOSTS, st.integers(0, 44), st.text("0123456789abcdefABCDEF:.", max_size=2), st.integers(0, 2))
def test_a_line_accepts_exactly_the_addresses_that_the_standard_library_accepts(
    host: str, at: int, put: str, drop: int
) -> None:
    damaged = host[:at] + put + host[at + drop :]
    for family, of_family in ((4, IPv4Address), (6, IPv6Address)):
        answer = parse(f"PROXY TCP{family} {damaged} {damaged} 1 2\r\n".encode())
        try:
            of_family(damaged)
        except ValueError:
            assert answer is NO
        else:
            assert not isinstance(answer, Verdict)
            assert plain(answer[0].source) == plain((damaged, 1))


# Reading version 2


@pytest.mark.parametrize(
    ("kind", "block", "header"),
    [
        (0x11, IPV4_BLOCK, Header(Transport.TCP, *V4)),
        (0x12, IPV4_BLOCK, Header(Transport.UDP, *V4)),
        (0x21, IPV6_BLOCK, Header(Transport.TCP, *V6)),
        (0x22, IPV6_BLOCK, Header(Transport.UDP, *V6)),
        (0x00, b"", Header()),
        (0x00, b"anything", Header()),
        (0x31, b"/run/client.sock".ljust(216, b"\0"), Header()),
        (0x32, bytes(216), Header()),
    ],
)
def test_a_binary_header_names_both_ends_if_they_have_ip_addresses(
    kind: int, block: bytes, header: Header
) -> None:
    assert header_of(v2(block, kind=kind)) == header


@pytest.mark.parametrize("kind", [0x00, 0x11, 0x21, 0x31, 0x99])
@pytest.mark.parametrize("block", [b"", b"\x04", IPV6_BLOCK, bytes(MAX_BYTES - 16)])
def test_local_keeps_the_real_peer_whatever_follows(kind: int, block: bytes) -> None:
    assert header_of(v2(block, command=0x20, kind=kind)) == Header()


def test_commands_and_families_are_those_of_the_specification() -> None:
    known = {0x00, 0x11, 0x12, 0x21, 0x22, 0x31, 0x32}
    for command, kind in product(range(256), range(256)):
        header = v2(bytes(216), command=command, kind=kind)
        is_header = command == 0x20 or (command == 0x21 and kind in known)
        assert (parse(header) is not NO) == is_header, (command, kind)
        assert parse(header[:14]) is (NEED_MORE if is_header else NO)


@pytest.mark.parametrize(
    ("kind", "size"), [(0x11, 12), (0x12, 12), (0x21, 36), (0x22, 36), (0x31, 216), (0x32, 216)]
)
def test_a_length_below_that_of_the_addresses_is_refused_at_once(kind: int, size: int) -> None:
    assert parse(v2(kind=kind, declared=size)) is NEED_MORE
    assert parse(v2(kind=kind, declared=size - 1)) is NO
    assert parse(v2(kind=kind, declared=0)) is NO


@pytest.mark.parametrize(("command", "kind"), [(0x21, 0x11), (0x21, 0x31), (0x21, 0), (0x20, 0)])
def test_a_length_above_the_bound_is_refused_at_once(command: int, kind: int) -> None:
    for declared, answer in ((MAX_BYTES - 16, NEED_MORE), (MAX_BYTES - 15, NO), (65_535, NO)):
        assert parse(v2(command=command, kind=kind, declared=declared)) is answer


def test_server_name_and_alpn_are_kept_and_other_tlvs_skipped() -> None:
    others = (
        tlv(NOOP, bytes(5)),
        tlv(NOOP, b""),
        tlv(UNIQUE_ID, b"id"),
        tlv(0xE0, b"own"),
        tlv(0xE0, b"twice"),
    )
    names = tlv(PP2_TYPE_AUTHORITY, b"example.com"), tlv(PP2_TYPE_ALPN, b"h2")
    header = header_of(v2(IPV4_BLOCK + b"".join((*others, *names, *others))))
    assert header.tlvs == {PP2_TYPE_AUTHORITY: b"example.com", PP2_TYPE_ALPN: b"h2"}
    assert (header.source, header.destination) == V4


def test_a_client_on_a_unix_socket_may_have_server_name_and_alpn() -> None:
    header = header_of(v2(bytes(216) + tlv(PP2_TYPE_AUTHORITY, b"example.com"), kind=0x31))
    assert header.is_local
    assert header.tlvs == {PP2_TYPE_AUTHORITY: b"example.com"}


@pytest.mark.parametrize(
    "tail",
    [
        b"\x04",
        b"\x04\x00",
        b"\x04\x00\x01",
        tlv(NOOP, b"x")[:-1],
        tlv(NOOP, b"") + b"\x00",
        tlv(PP2_TYPE_AUTHORITY, b"example.com")[:-1],
        tlv(PP2_TYPE_AUTHORITY, b"example.com") * 2,
        tlv(PP2_TYPE_ALPN, b"h2") + tlv(PP2_TYPE_ALPN, b"h3"),
        tlv(PP2_TYPE_CRC32C, b""),
        tlv(PP2_TYPE_CRC32C, bytes(3)),
        tlv(PP2_TYPE_CRC32C, bytes(5)),
    ],
)
def test_tlvs_that_do_not_add_up_are_refused(tail: bytes) -> None:
    assert parse(v2(IPV4_BLOCK + tail)) is NO


@pytest.mark.parametrize(
    ("data", "checksum"),
    [(b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (b"", 0)],
)
def test_the_checksum_is_castagnolis(data: bytes, checksum: int) -> None:
    """The values come from RFC 3720 appendix B.4 and from the usual check value."""
    assert _crc32c(data) == checksum


@pytest.mark.parametrize("trailer", [b"", tlv(PP2_TYPE_ALPN, b"h2")])
def test_a_checksum_covers_every_byte_of_the_header(trailer: bytes) -> None:
    whole = with_checksum(v2(IPV4_BLOCK + tlv(PP2_TYPE_AUTHORITY, b"example.com")), trailer)
    header = header_of(whole)
    assert (header.source, header.destination) == V4
    assert PP2_TYPE_CRC32C not in header.tlvs
    checksum_type_at = len(whole) - len(trailer) - 7
    for at in range(len(whole)):
        # A damaged command is LOCAL, a damaged length makes another header, and a TLV of another type is
        # not a checksum.
        if at not in (12, 14, 15, checksum_type_at):
            assert parse(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]) is NO, at


def test_a_second_checksum_is_refused() -> None:
    assert parse(with_checksum(with_checksum(v2(IPV4_BLOCK)))) is NO


# Laws


@given(ENDPOINTS, ENDPOINTS)
@example(("::ffff:192.0.2.1", 1), ("::1", 2))
@example(("::192.0.2.1", 1), ("::", 2))
def test_a_header_of_version_1_is_read_back(source: HostPort, destination: HostPort) -> None:
    header = header_of(build_v1(source, destination))
    assert (header.transport, header.is_local, header.tlvs) == (Transport.TCP, False, {})
    assert (plain(header.source), plain(header.destination)) == (plain(source), plain(destination))


@given(st.sampled_from(Transport), ENDPOINTS, ENDPOINTS, NAMES, NAMES)
def test_a_header_of_version_2_is_read_back(
    transport: Transport, source: HostPort, destination: HostPort, sni: str | None, alpn: str | None
) -> None:
    header = header_of(build_v2(transport, source, destination, sni=sni, alpn=alpn))
    assert (header.transport, header.is_local) == (transport, False)
    assert (plain(header.source), plain(header.destination)) == (plain(source), plain(destination))
    names = {PP2_TYPE_AUTHORITY: sni, PP2_TYPE_ALPN: alpn}
    assert header.tlvs == {kind: name.encode() for kind, name in names.items() if name is not None}


@given(ENDPOINTS, ENDPOINTS)
def test_a_header_that_was_read_is_written_unchanged(source: HostPort, destination: HostPort) -> None:
    for data in (build_v1(source, destination), build_v2(Transport.TCP, source, destination)):
        header = header_of(data)
        again = header_of(build_v2(Transport.TCP, header.source, header.destination))
        assert again == header


@given(
    BUILT | st.binary(max_size=40),
    st.integers(0, 120),
    st.binary(max_size=3),
    st.integers(0, 3),
    st.binary(max_size=40),
)
@example(b"", 0, b"", 0, b"")
def test_an_answer_other_than_need_more_never_changes(
    data: bytes, at: int, put: bytes, drop: int, more: bytes
) -> None:
    damaged = data[:at] + put + data[at + drop :] + more
    answers = [parse(damaged[:end]) for end in range(len(damaged) + 1)]
    known = [answer for answer in answers if answer is not NEED_MORE]
    assert answers[: len(answers) - len(known)] == [NEED_MORE] * (len(answers) - len(known))
    assert all(answer == known[0] for answer in known)
    for answer in known[:1]:
        assert answer is NO or answer[1] == len(answers) - len(known)


@pytest.mark.parametrize(
    "start",
    [b"", b"PROXY TCP6 ", b"PROXY UNKNOWN ", SIGNATURE, v2(declared=MAX_BYTES - 16), v2(declared=MAX_BYTES)],
)
def test_no_header_needs_more_than_the_bound(start: bytes) -> None:
    for fill in (b"0", b"\x08", b" "):
        assert parse(start.ljust(MAX_BYTES, fill)) is not NEED_MORE


# HAProxy itself


class Relay(NamedTuple):
    """A HAProxy between two listening sockets."""

    front: socket.socket
    back: socket.socket

    def pass_on(self, header: bytes = b"") -> tuple[Header, bytes, HostPort, HostPort]:
        """Send a header and five bytes; return the header and bytes that arrive, and the two ends of the
        client."""
        with self.client() as client:
            client.sendall(header + b"hello")
            ends = client.getsockname()[:2], client.getpeername()[:2]
            return *self.arrived(len(b"hello")), *ends

    def client(self) -> socket.socket:
        host, port = self.front.getsockname()[:2]
        # A listener on :: accepts IPv4 clients too, and shows their addresses as IPv4-mapped.
        return socket.create_connection(("127.0.0.1" if host == "::" else host, port), TIMEOUT)

    def arrived(self, size: int) -> tuple[Header, bytes]:
        """Return the first bytes of the next connection to the backend: a header and `size` bytes."""
        connection, _ = self.back.accept()
        data = b""
        with connection:
            connection.settimeout(TIMEOUT)
            while (answer := parse(data)) is NEED_MORE or (answer is not NO and len(data) < answer[1] + size):
                piece = connection.recv(4096)
                assert piece, data
                data += piece
        assert answer is not NO, data
        assert header_of(data[: answer[1]]) == answer[0]
        return answer[0], data[answer[1] :]


@contextmanager
def relay(folder: Path, host: str, server: str, bind: str = "") -> Iterator[Relay]:
    """Run HAProxy on a socket that already listens, so that no test needs to wait for HAProxy."""
    program = require_program("haproxy")
    with ExitStack() as stack:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        front = stack.enter_context(
            socket.create_server((host, 0), family=family, dualstack_ipv6=host == "::")
        )
        back = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        back.settimeout(TIMEOUT)
        config = folder / "haproxy.cfg"
        config.write_text(
            "defaults\n"
            "  mode tcp\n"
            f"  timeout connect {TIMEOUT}s\n"
            f"  timeout client {TIMEOUT}s\n"
            f"  timeout server {TIMEOUT}s\n"
            "listen relay\n"
            f"  bind fd@{front.fileno()} {bind}\n"
            f"  server backend 127.0.0.1:{back.getsockname()[1]} {server}\n"
        )
        command = [program, "-db", "-f", str(config)]
        process = subprocess.Popen(command, pass_fds=[front.fileno()])
        try:
            yield Relay(front, back)
        finally:
            process.kill()
            process.wait(TIMEOUT)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::"])
@pytest.mark.parametrize(
    "server", ["send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options crc32c,unique-id"]
)
def test_headers_sent_by_haproxy_are_read(tmp_path: Path, host: str, server: str) -> None:
    with relay(tmp_path, host, server) as haproxy:
        header, rest, source, destination = haproxy.pass_on()
    assert header == Header(Transport.TCP, source, destination)
    assert rest == b"hello"


def test_the_health_checks_of_haproxy_come_from_itself(tmp_path: Path) -> None:
    with relay(tmp_path, "127.0.0.1", "send-proxy-v2 proxy-v2-options crc32c check") as haproxy:
        header, rest = haproxy.arrived(0)
    assert header.is_local
    assert rest == b""


@pytest.mark.parametrize("ends", [V4, V6, (V6[0], V4[1])], ids=["IPv4", "IPv6", "both"])
@pytest.mark.parametrize("version", [1, 2])
def test_haproxy_reads_our_headers(tmp_path: Path, ends: tuple[HostPort, HostPort], version: int) -> None:
    sent = (
        build_v1(*ends) if version == 1 else build_v2(Transport.TCP, *ends, sni="www.example.com", alpn="h2")
    )
    with relay(
        tmp_path, "127.0.0.1", "send-proxy-v2 proxy-v2-options authority,crc32c", "accept-proxy"
    ) as haproxy:
        header, rest, _, _ = haproxy.pass_on(sent)
    assert (header.source, header.destination) == ends
    assert header.tlvs == ({} if version == 1 else {PP2_TYPE_AUTHORITY: b"www.example.com"})
    assert rest == b"hello"


def test_haproxy_takes_the_real_peer_if_a_header_names_no_client(tmp_path: Path) -> None:
    with relay(tmp_path, "127.0.0.1", "send-proxy-v2", "accept-proxy") as haproxy:
        for sent in (build_v1(None, None), build_v2(Transport.TCP, None, None)):
            header, rest, source, destination = haproxy.pass_on(sent)
            assert (header.source, header.destination, rest) == (source, destination, b"hello")
