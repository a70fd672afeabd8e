"""Checks each field of a DNS query's header and question against the DNS specifications.

All these checks are needed: a loose check of the header alone also accepts TLS records, QUIC packets and
other messages.
"""

from __future__ import annotations

import re
from struct import Struct
from typing import TYPE_CHECKING, Final

from refractium.contract import NEED_MORE, NO, DeferredMatch, Identification, MetadataKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from refractium.contract import MetadataValue

METADATA_KEYS: Final = {"qname": MetadataKind.HOST_NAME, "qtype": MetadataKind.TEXT}

_HEADER_SIZE: Final = 12
_MAX_LABEL: Final = 63
_MAX_NAME: Final = 255
_QUESTION_TAIL: Final = 4  # QTYPE and QCLASS
_MIN_RECORD: Final = 11  # bytes of the root name, TYPE, CLASS, TTL and RDLENGTH

MIN_QUERY: Final = _HEADER_SIZE + 1 + _QUESTION_TAIL
"""Size (bytes) of the smallest query: a query for the root name."""
MAX_QUERY_START: Final = _HEADER_SIZE + _MAX_NAME + _QUESTION_TAIL
"""Size (bytes) of the header and the longest question together."""

_header: Final = Struct(">2xBBHHHH").unpack_from  # RFC 1035 section 4.1.1
_question_tail: Final = Struct(">HH").unpack_from
_PLAIN_HEADER: Final = bytes(5) + b"\1" + bytes(6)

QR_OR_TC: Final = 0x82
Z_OR_RCODE: Final = 0x4F  # without the bits AD and CD, which a query may set (RFC 6840 sections 5.7 and 5.9)
_QUERY: Final = 0
_NOTIFY: Final = 4
_UPDATE: Final = 5
_MAX_RECORDS: Final = {
    _QUERY: (0, 1, 2),  # authority: SOA of an IXFR (RFC 1995 section 3); additional: OPT, TSIG or SIG(0)
    _NOTIFY: (1, 0, 2),  # a NOTIFY may carry the new SOA (RFC 1996 section 3.7)
    _UPDATE: (0xFFFF, 0xFFFF, 2),  # any number of prerequisites and updates (RFC 2136 section 2)
}
"""The largest number of records in each of the sections answer, authority and additional, by opcode."""
_CLASSES: Final = frozenset({1, 3, 4, 254, 255})
"""The classes IN, CH, HS, NONE (RFC 2136 section 1.3) and ANY."""
_UNICAST_RESPONSE: Final = 0x8000  # a bit of the class, from multicast DNS (RFC 6762 section 5.4)
_NETBIOS_TYPES: Final = frozenset({0x20, 0x21})  # NB and NBSTAT (RFC 1002 section 4.2.1.2)
_is_netbios_name: Final = re.compile(rb"\x20[A-P]{32}").match
"""A NetBIOS name is one label of 32 letters, two for each byte of the name (RFC 1001 section 14.1)."""
_SOA: Final = 6
_IXFR: Final = 251

_TYPES: Final = {
    1: "A",
    2: "NS",
    5: "CNAME",
    6: "SOA",
    12: "PTR",
    13: "HINFO",
    15: "MX",
    16: "TXT",
    28: "AAAA",
    29: "LOC",
    33: "SRV",
    35: "NAPTR",
    37: "CERT",
    39: "DNAME",
    43: "DS",
    44: "SSHFP",
    46: "RRSIG",
    47: "NSEC",
    48: "DNSKEY",
    50: "NSEC3",
    51: "NSEC3PARAM",
    52: "TLSA",
    53: "SMIMEA",
    59: "CDS",
    60: "CDNSKEY",
    61: "OPENPGPKEY",
    62: "CSYNC",
    63: "ZONEMD",
    64: "SVCB",
    65: "HTTPS",
    99: "SPF",
    249: "TKEY",
    250: "TSIG",
    251: "IXFR",
    252: "AXFR",
    255: "ANY",
    256: "URI",
    257: "CAA",
}
"""The names of the types in use (IANA, DNS parameters); others appear as ``TYPE123`` (RFC 3597 section 5)."""
_TEXT: Final = [
    f"\\{char}" if char in ".\\" else char.lower() if "!" <= char <= "~" else f"\\{ord(char):03}"
    for char in map(chr, range(256))
]
"""Each byte of a label as text (RFC 1035 section 5.1), in lower case (RFC 4343)."""


def identify_query(message: bytes, size: int) -> Identification:
    """Identify a message as a query, NOTIFY or UPDATE; never answer `NEED_MORE` for a whole message.

    Args:
        message: the first bytes of the message, or the whole message.
        size: size of the whole message (bytes).
    """
    if len(message) >= _HEADER_SIZE:
        high, low, questions, answers, authorities, additional = _header(message)
    else:  # missing header bytes count as valid
        header = message + _PLAIN_HEADER[len(message) :]
        high, low, questions, answers, authorities, additional = _header(header)
    opcode = high >> 3 & 15
    most = _MAX_RECORDS.get(opcode)
    records = answers + authorities + additional
    if (
        high & QR_OR_TC
        or low & Z_OR_RCODE
        or questions != 1
        or most is None
        or answers > most[0]
        or authorities > most[1]
        or additional > most[2]
        or size < MIN_QUERY + _MIN_RECORD * records
    ):
        return NO
    return _identify_question(message, size, opcode, authorities, records)


def _identify_question(  # noqa: PLR0911 - a return for each rule
    message: bytes, size: int, opcode: int, authorities: int, records: int
) -> Identification:
    there = len(message)
    at = _HEADER_SIZE
    while True:
        if at >= size:
            return NO
        if at >= there:
            return NEED_MORE
        label = message[at]
        at += 1 + label
        if not label:
            break
        if label > _MAX_LABEL or at >= _HEADER_SIZE + _MAX_NAME:
            return NO
    left = size - at - _QUESTION_TAIL
    if left < _MIN_RECORD * records or (left and not records):
        return NO
    if at + _QUESTION_TAIL > there:
        return NEED_MORE
    qtype, qclass = _question_tail(message, at)
    if (
        not qtype
        or qclass & ~_UNICAST_RESPONSE not in _CLASSES
        or (opcode == _UPDATE and qtype != _SOA)
        or (opcode == _QUERY and authorities and qtype != _IXFR)
        or (qtype in _NETBIOS_TYPES and _is_netbios_name(message, _HEADER_SIZE))
    ):
        return NO
    return DeferredMatch(_describe, message)


def _describe(message: bytes) -> tuple[Mapping[str, MetadataValue], frozenset[str]]:
    labels = []
    at = _HEADER_SIZE
    while label := message[at]:
        labels.append("".join([_TEXT[byte] for byte in message[at + 1 : at + 1 + label]]))
        at += 1 + label
    qtype, _ = _question_tail(message, at + 1)
    return {"qname": ".".join(labels) or ".", "qtype": _TYPES.get(qtype, f"TYPE{qtype}")}, frozenset()
