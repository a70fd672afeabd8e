"""Recognises TLS by a whole ClientHello (RFC 8446 section 4.1.2); routes can select server names and ALPN."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final

from msgspec import Meta, Struct

from refractium.contract import (
    NO,
    DeferredMatch,
    Identification,
    MetadataKind,
    NeedMore,
    Protocol,
    Verdict,
    hookimpl,
)
from refractium_proto_https.hello import describe, find_extensions
from refractium_proto_https.record import HANDSHAKE, MAX_HELLO, MAX_RECORDS, RECORD_HEADER, locate_hello

if TYPE_CHECKING:
    from collections.abc import Mapping

_NOT_LOCATED: Final = (Verdict, NeedMore)  # a union type would be built at each call, which takes 100 ns


class HttpsSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """The table ``[plugins.https]``."""

    max_hello_bytes: Annotated[
        int,
        Meta(ge=16_384, le=131_072, description="Bytes of the largest ClientHello that Refractium reads."),
    ] = MAX_HELLO


class Https(Protocol):
    """TLS over TCP. Matches carry ``sni``, ``alpn``, ``versions`` and ``ech`` from the hello.

    ``sni`` is the server name, in lower case and without final dot; ``sni`` is absent if the server name is
    not a valid host name. ``alpn`` and ``versions`` (such as ``1.3``) list the client's offers in the order
    of the hello; ``alpn`` lists at most the first 128 offers, and stays pending if there are more. ``ech`` is
    true if the hello includes an encrypted hello; then Refractium cannot see the true server name.
    """

    name = "https"
    aliases = ("tls", "ssl")
    settings_type = HttpsSettings
    prefixes = (HANDSHAKE,)
    metadata_keys: Mapping[str, MetadataKind] = {
        "sni": MetadataKind.HOST_NAME,
        "alpn": MetadataKind.TEXTS,
        "versions": MetadataKind.TEXTS,
        "ech": MetadataKind.FLAG,
    }
    summary = "TLS, by a whole ClientHello"

    def __init__(self, max_hello_bytes: int = MAX_HELLO) -> None:
        self._max_hello = max_hello_bytes
        self.max_bytes = max_hello_bytes + MAX_RECORDS * RECORD_HEADER

    def with_settings(self, settings: Any) -> Https:
        return Https(settings.max_hello_bytes)

    def identify(self, data: bytes) -> Identification:
        located = locate_hello(data, self._max_hello)
        if isinstance(located, _NOT_LOCATED):
            return located
        hello, start, end = located
        extensions = find_extensions(hello, start, end)
        return NO if extensions is None else DeferredMatch(partial(describe, start, extensions), hello)


@hookimpl
def refractium_protocols() -> list[Protocol]:
    """Return the protocol for TLS over TCP: HTTPS and all other protocols inside TLS."""
    return [Https()]
