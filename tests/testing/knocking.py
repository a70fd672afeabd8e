"""A protocol for the tests of `refractium.testing`."""

from __future__ import annotations

from refractium.contract import NEED_MORE, NO, Identification, ProtocolMatch, Transport, define_protocol

MAGIC = b"KNOCK\n"


@define_protocol("knock", max_bytes=64, prefixes=(MAGIC,), metadata_keys=frozenset({"host"}))
def knock(data: bytes) -> Identification:
    """Return a match after the line ``KNOCK``; the second line names a host."""
    if not data.startswith(MAGIC):
        return NEED_MORE if MAGIC.startswith(data) else NO
    host, end, _ = data[len(MAGIC) :].partition(b"\n")
    return ProtocolMatch({"host": host.decode()}) if end else ProtocolMatch(pending=frozenset({"host"}))


@define_protocol("knock", transport=Transport.UDP, max_bytes=64, prefixes=(MAGIC,))
def knock_udp(data: bytes) -> Identification:
    """Return a match if the datagram begins with ``KNOCK``."""
    return ProtocolMatch() if data.startswith(MAGIC) else NO
