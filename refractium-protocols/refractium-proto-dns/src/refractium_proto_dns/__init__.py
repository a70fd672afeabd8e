"""Recognises DNS queries over UDP (RFC 1035 section 4.2.1) and over TCP (section 4.2.2, RFC 7766)."""

from __future__ import annotations

from refractium.contract import NEED_MORE, NO, Identification, Protocol, Transport, hookimpl
from refractium_proto_dns.query import (
    MAX_QUERY_START,
    METADATA_KEYS,
    MIN_QUERY,
    QR_OR_TC,
    Z_OR_RCODE,
    identify_query,
)

_LENGTH = 2
_FLAGS_END = _LENGTH + 4


class DnsUdp(Protocol):
    """DNS over UDP.

    Matches carry ``qname`` (text; ``.`` for the root) and ``qtype`` (such as ``AAAA`` or ``TYPE65280``).

    A server answers a query with one message (RFC 1034 section 3.7). Resolvers give up a query after 10 s:
    glibc after two attempts of 5 s (resolv.conf(5)), BIND after its ``resolver-query-timeout``.
    """

    name = "dns"
    transport = Transport.UDP
    max_bytes = 65535
    metadata_keys = METADATA_KEYS
    udp_responses = 1
    udp_session_timeout_ms = 10_000
    summary = "DNS queries, by header and question"

    def identify(self, data: bytes) -> Identification:
        return identify_query(data, len(data))


class DnsTcp(Protocol):
    """DNS over TCP, where a length field of two bytes precedes each message.

    Matches carry ``qname`` and ``qtype`` of the first message; `identify` ignores the bytes after this
    message.
    """

    name = "dns"
    max_bytes = _LENGTH + MAX_QUERY_START
    metadata_keys = METADATA_KEYS
    summary = "DNS queries over TCP, by header and question"

    def identify(self, data: bytes) -> Identification:
        if len(data) < _LENGTH:
            return NEED_MORE
        if len(data) >= _FLAGS_END and (data[4] & QR_OR_TC or data[5] & Z_OR_RCODE):
            return NO  # `identify_query` also checks these flags; here, the check rejects most traffic early
        size = data[0] << 8 | data[1]
        return identify_query(data[_LENGTH : self.max_bytes], size) if size >= MIN_QUERY else NO


@hookimpl
def refractium_protocols() -> list[Protocol]:
    """Return the protocols for DNS over UDP and over TCP."""
    return [DnsUdp(), DnsTcp()]
