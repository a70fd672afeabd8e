"""Recognises TLS by a whole ClientHello (RFC 8446 section 4.1.2), for routes by server name and by ALPN."""

from __future__ import annotations

from functools import partial

from refractium.contract import NO, DeferredMatch, Identification, Protocol, Verdict, hookimpl
from refractium_proto_https.hello import describe, find_extensions
from refractium_proto_https.record import MAX_HELLO, MAX_RECORDS, RECORD_HEADER, locate_hello


class Https(Protocol):
    """TLS over TCP. Its matches carry ``sni``, ``alpn``, ``versions`` and ``ech`` from the hello.

    ``sni`` is the server name, in lower case and without final dot; it is absent if it is not a valid host
    name. ``alpn`` and ``versions`` (``1.3``, ``1.2``) are in the order of the client. ``ech`` marks a hello
    that includes an encrypted hello, whose true server name Refractium cannot see.
    """

    name = "https"
    max_bytes = MAX_HELLO + MAX_RECORDS * RECORD_HEADER
    prefixes = (b"\x16\x03",)
    metadata_keys = frozenset({"sni", "alpn", "versions", "ech"})
    summary = "TLS, by a whole ClientHello"

    def identify(self, data: bytes) -> Identification:
        located = locate_hello(data)
        if isinstance(located, Verdict):
            return located
        hello, start, end = located
        extensions = find_extensions(hello, start, end)
        return NO if extensions is None else DeferredMatch(partial(describe, start, extensions), hello)


@hookimpl
def refractium_protocols() -> list[Protocol]:
    """Return the protocol for HTTPS, and for any other protocol in TLS, over TCP."""
    return [Https()]
