"""The PROXY protocol, versions 1 and 2: before the client's first byte, a header names the client.

This module only makes and parses bytes. The caller decides which senders to trust, because a sender that is
not a trusted proxy can write any address. The rules and the section numbers are from HAProxy's
``proxy-protocol.txt`` of 2020/03/05.

This module treats IPv4 addresses mapped into IPv6 as IPv4 addresses, because a listener on ``::`` shows IPv4
clients in the mapped form.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from refractium.contract import NEED_MORE, NO, Transport, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from refractium.contract import MetadataValue
    from refractium.settings import ProxyVersion

HostPort: TypeAlias = tuple[str, int]
"""An IP address as text and a port."""

PP2_TYPE_ALPN: Final = 0x01
PP2_TYPE_AUTHORITY: Final = 0x02
PP2_TYPE_CRC32C: Final = 0x03

MAX_BYTES: Final = 16 + 2_048
"""Length of the longest accepted header (bytes). `parse` refuses a header that declares a greater length
before the rest of that header arrives. Headers should fit into 536 bytes, the size of a TCP
segment that every host accepts (section 2), but headers with certificates need more."""

_V1_LONGEST: Final = {
    b"PROXY TCP4 ": 56,
    b"PROXY TCP6 ": 104,
    b"PROXY UNKNOWN ": 107,
    b"PROXY UNKNOWN\r\n": 15,
}
"""Beginnings of lines of version 1, each with the greatest length of the line in bytes (section 2.1)."""
_V1_TCP: Final = re.compile(
    rb"PROXY TCP([46]) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})\r\n"
)
_V1_UNKNOWN: Final = re.compile(rb"PROXY UNKNOWN(?: [^\r\n]*)?\r\n")

_V2_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
_V2_LOCAL: Final = _V2_SIGNATURE + b"\x20"
_V2_PROXY: Final = _V2_SIGNATURE + b"\x21"
"""Beginnings of headers of version 2. The last byte contains the version in its upper four bits and the
command in its lower four bits (section 2.2)."""
_UNTOLD: Final = struct.Struct("")
_IPV4: Final = struct.Struct("!4s4sHH")
_IPV6: Final = struct.Struct("!16s16sHH")
_UNIX: Final = struct.Struct("216x")
_V2_ADDRESSES: Final = {
    _V2_LOCAL: _UNTOLD,
    _V2_PROXY + b"\x00": _UNTOLD,
    _V2_PROXY + b"\x11": _IPV4,
    _V2_PROXY + b"\x12": _IPV4,
    _V2_PROXY + b"\x21": _IPV6,
    _V2_PROXY + b"\x22": _IPV6,
    _V2_PROXY + b"\x31": _UNIX,
    _V2_PROXY + b"\x32": _UNIX,
}
"""Beginnings of headers of version 2, each with the format of the addresses after the length. The last byte
of a beginning with the command PROXY contains the family in its upper four bits and the transport in its
lower four bits. The parser ignores the value of that byte after LOCAL."""
_V2_TRANSPORT: Final = {Transport.TCP: 1, Transport.UDP: 2}
_V2_START: Final = 16
"""Offset of the addresses (bytes). The two bytes before it are the length of the rest of the header."""
_TLV: Final = struct.Struct("!BH")

_MAPPED: Final = bytes(10) + b"\xff\xff"
"""Bytes before an IPv4 address in its IPv6 form (RFC 4291 section 2.5.5.2)."""
_IPV4_SIZE: Final = 4
_MAX_PORT: Final = 65_535
_MAX_NAME: Final = 255
"""Bytes of the longest ALPN name (RFC 7301 section 3.1), and of the longest server name for HAProxy."""


@dataclass(frozen=True, slots=True)
class Header:
    """The contents of a header.

    Attributes:
        transport: transport between client and sender; None if unknown.
        source: address of the client; None if unknown.
        destination: address to which the client connected; None exactly if `source` is None.
        tlvs: values of `PP2_TYPE_ALPN` and `PP2_TYPE_AUTHORITY` in the header, as on the wire.
    """

    transport: Transport | None = None
    source: HostPort | None = None
    destination: HostPort | None = None
    tlvs: Mapping[int, bytes] = field(default_factory=dict, hash=False)

    @property
    def is_local(self) -> bool:
        """Whether the peer of the socket counts as the client.

        The peer is the client if the sender connected for itself (``LOCAL``: a health check), knows no
        address (``UNKNOWN``, ``UNSPEC``), or knows only a unix socket.
        """
        return self.source is None


Parsed: TypeAlias = tuple[Header, int] | Literal[Verdict.NO, Verdict.NEED_MORE]
"""A header and its length in bytes, `NO` without a valid header, or `NEED_MORE` for an incomplete header."""


def build(
    version: ProxyVersion,
    transport: Transport,
    source: HostPort | None,
    destination: HostPort | None,
    metadata: Mapping[str, MetadataValue],
) -> bytes:
    """Build a header of version 1 or 2.

    A header of version 2 contains the ``sni`` of `metadata` and the first name in the ``alpn`` of `metadata`,
    which is the preferred name. The function leaves out names that a TLV cannot contain.

    Args:
        version: version of the header. Version 1 is for TCP only.
        transport: transport of the client.
        source: address of the client.
        destination: address to which the client connected.
        metadata: metadata from the first bytes of the client.

    Raises:
        ValueError: an address is not an IP address, or a port is not from 0 to 65535.
    """
    if version == "v1":
        return build_v1(source, destination)
    offered = metadata.get("alpn")
    return build_v2(
        transport,
        source,
        destination,
        sni=_name(metadata.get("sni"), "utf-8"),
        alpn=_name(offered[0] if isinstance(offered, tuple) and offered else None, "latin-1"),
    )


def build_v1(source: HostPort | None, destination: HostPort | None) -> bytes:
    """Build a header of version 1, for TCP.

    If only one address is IPv4, the line contains this address mapped into IPv6. If an address is None, such
    as the address of a client on a unix socket, the line is ``PROXY UNKNOWN``.

    Raises:
        ValueError: an address is not an IP address, or a port is not from 0 to 65535.
    """
    if source is None or destination is None:
        return b"PROXY UNKNOWN\r\n"
    family, hosts, ports = _pair(source, destination)
    texts = [inet_ntop(family, host) for host in hosts]
    if family == AF_INET6:
        # inet_ntop ends some IPv6 addresses with an IPv4 address. Version 1 does not have this form.
        texts = [host.hex(":", 2) if "." in text else text for host, text in zip(hosts, texts, strict=True)]
    version = 4 if family == AF_INET else 6
    return f"PROXY TCP{version} {' '.join(texts)} {ports[0]} {ports[1]}\r\n".encode("ascii")


def build_v2(
    transport: Transport,
    source: HostPort | None,
    destination: HostPort | None,
    *,
    sni: str | None = None,
    alpn: str | None = None,
) -> bytes:
    """Build a header of version 2.

    If only one address is IPv4, the header contains this address mapped into IPv6. If an address is None,
    such as the address of a client on a unix socket, the command is ``LOCAL``, which every receiver must
    accept. A header with ``LOCAL`` has no further contents, because receivers would discard these contents.

    Args:
        transport: transport of the client.
        source: address of the client.
        destination: address to which the client connected.
        sni: server name that the client asked for.
        alpn: ALPN name of the protocol; each character stands for one byte (Latin-1).

    Raises:
        ValueError: an address is not an IP address, a port is not from 0 to 65535, or a name is not from 1 to
            255 bytes long.
    """
    if source is None or destination is None:
        return _V2_LOCAL + bytes(3)
    family, hosts, ports = _pair(source, destination)
    kind, addresses = (0x10, _IPV4) if family == AF_INET else (0x20, _IPV6)
    block = addresses.pack(*hosts, *ports)
    if alpn is not None:
        block += _tlv(PP2_TYPE_ALPN, alpn.encode("latin-1"))
    if sni is not None:
        block += _tlv(PP2_TYPE_AUTHORITY, sni.encode())
    return _V2_PROXY + _TLV.pack(kind | _V2_TRANSPORT[transport], len(block)) + block


def parse(data: bytes) -> Parsed:
    """Parse the header at the start of `data`. Further bytes can only change the answer `NEED_MORE`.

    Args:
        data: all bytes received so far. With `MAX_BYTES` bytes the answer is never `NEED_MORE`.

    Returns:
        The header and its length in bytes; `NO` if the data does not start with a valid header;
        `NEED_MORE` if the data is the beginning of a header.
    """
    for start, longest in _V1_LONGEST.items():
        if data.startswith(start):
            return _parse_v1(data, longest)
    for start, addresses in _V2_ADDRESSES.items():
        if data.startswith(start):
            return _parse_v2(data, addresses)
    return NEED_MORE if any(start.startswith(data) for start in (*_V1_LONGEST, *_V2_ADDRESSES)) else NO


def _parse_v1(data: bytes, longest: int) -> Parsed:
    end = data.find(b"\n", 0, longest) + 1
    if not end:
        text = data.removesuffix(b"\r")
        return NEED_MORE if b"\r" not in text and len(text) <= longest - len(b"\r\n") else NO
    header = _read_v1(data[:end])
    return NO if header is None else (header, end)


def _read_v1(line: bytes) -> Header | None:
    if _V1_UNKNOWN.fullmatch(line):
        return Header()
    if (match := _V1_TCP.fullmatch(line)) is None:
        return None
    version, *hosts, source_port, destination_port = (part.decode("ascii") for part in match.groups())
    ports = int(source_port), int(destination_port)
    try:
        # inet_pton accepts exact forms only: four numbers without leading zeros, no zone. An IPv6 address may
        # end in an IPv4 address, because HAProxy writes mapped addresses in this form.
        family = AF_INET if version == "4" else AF_INET6
        source, destination = (_text(inet_pton(family, host)) for host in hosts)
    except OSError:
        return None
    if max(ports) > _MAX_PORT:
        return None
    return Header(Transport.TCP, (source, ports[0]), (destination, ports[1]))


def _parse_v2(data: bytes, addresses: struct.Struct) -> Parsed:
    if len(data) < _V2_START:
        return NEED_MORE
    end = _V2_START + int.from_bytes(data[_V2_START - 2 : _V2_START], "big")
    if not _V2_START + addresses.size <= end <= MAX_BYTES:
        return NO
    if len(data) < end:
        return NEED_MORE
    header = _read_v2(data[:end], addresses)
    return NO if header is None else (header, end)


def _read_v2(header: bytes, addresses: struct.Struct) -> Header | None:
    if addresses is _UNTOLD:
        # Section 2.2: skip the rest, including a checksum, because no field says where TLVs would begin.
        return Header()
    if (tlvs := _read_tlvs(header, _V2_START + addresses.size)) is None:
        return None
    if addresses is _UNIX:
        return Header(tlvs=tlvs)
    source, destination, source_port, destination_port = addresses.unpack_from(header, _V2_START)
    is_stream = header[len(_V2_PROXY)] & 0x0F == _V2_TRANSPORT[Transport.TCP]
    return Header(
        Transport.TCP if is_stream else Transport.UDP,
        (_text(source), source_port),
        (_text(destination), destination_port),
        tlvs,
    )


def _read_tlvs(header: bytes, at: int) -> dict[int, bytes] | None:
    """Return the known values from `at` to the end, or None if a TLV or the checksum is not valid.

    A known TLV must not occur twice, because receivers could disagree about which value is valid.
    """
    found: dict[int, bytes] = {}
    while at < len(header):
        if at + _TLV.size > len(header):
            return None
        kind, size = _TLV.unpack_from(header, at)
        at += _TLV.size
        value = header[at : at + size]
        if len(value) < size or kind in found:
            return None
        if kind == PP2_TYPE_CRC32C and value != _checksum(header, at):
            return None
        if kind in (PP2_TYPE_ALPN, PP2_TYPE_AUTHORITY, PP2_TYPE_CRC32C):
            found[kind] = value
        at += size
    found.pop(PP2_TYPE_CRC32C, None)
    return found


def _checksum(header: bytes, at: int) -> bytes:
    """Return the checksum of the header, with zeros in place of the checksum at `at` (section 2.2.3)."""
    return _crc32c(header[:at] + bytes(4) + header[at + 4 :]).to_bytes(4, "big")


def _name(value: MetadataValue | None, encoding: str) -> str | None:
    """Return the value if it is a text that a TLV can contain as a name, else None."""
    try:
        fits = isinstance(value, str) and 1 <= len(value.encode(encoding)) <= _MAX_NAME
    except UnicodeEncodeError:
        return None
    return value if isinstance(value, str) and fits else None


def _tlv(kind: int, value: bytes) -> bytes:
    if not 1 <= len(value) <= _MAX_NAME:
        raise ValueError(f"a name of {len(value)} bytes: it must have 1 to {_MAX_NAME}")
    return _TLV.pack(kind, len(value)) + value


def _pair(source: HostPort, destination: HostPort) -> tuple[int, list[bytes], list[int]]:
    """Return the family that fits both addresses, the addresses in that family, and the ports."""
    hosts = [_packed(source[0]), _packed(destination[0])]
    ports = [source[1], destination[1]]
    if not all(0 <= port <= _MAX_PORT for port in ports):
        raise ValueError(f"ports {' and '.join(map(str, ports))}: they must be from 0 to {_MAX_PORT}")
    if {len(host) for host in hosts} == {_IPV4_SIZE}:
        return AF_INET, hosts, ports
    return AF_INET6, [_MAPPED + host if len(host) == _IPV4_SIZE else host for host in hosts], ports


def _packed(host: str) -> bytes:
    """Return the 4 or 16 bytes of an address, without the zone of a link-local address (``fe80::1%eth0``)."""
    try:
        packed = inet_pton(AF_INET6 if ":" in host else AF_INET, host.partition("%")[0])
    except (OSError, ValueError):
        raise ValueError(f'"{host}" is not an IP address') from None
    return packed.removeprefix(_MAPPED)


def _text(packed: bytes) -> str:
    """Return the text of an address, as sockets show it."""
    packed = packed.removeprefix(_MAPPED)
    return inet_ntop(AF_INET if len(packed) == _IPV4_SIZE else AF_INET6, packed)


def _crc32c_row(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_CRC32C_TABLE: Final = tuple(map(_crc32c_row, range(256)))


def _crc32c(data: bytes) -> int:
    """Return Castagnoli's checksum (RFC 4960 appendix B)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC32C_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF
