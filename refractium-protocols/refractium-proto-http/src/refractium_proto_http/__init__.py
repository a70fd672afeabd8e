"""Recognises HTTP without TLS, by a request line (RFC 9112 section 3) or by the HTTP/2 preface (RFC 9113).

Only the form of the request line decides: requests with WebDAV methods and with unknown methods also match.
RTSP and SIP share some methods with HTTP, but do not match, because an RTSP or SIP request line does
not end with a version of HTTP.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta, Struct

from refractium.contract import (
    NEED_MORE,
    NO,
    DeferredMatch,
    Identification,
    MetadataKind,
    NeedMore,
    Protocol,
    hookimpl,
)
from refractium_proto_http.http2 import PREFACE
from refractium_proto_http.http2 import describe as describe_http2
from refractium_proto_http.request import (
    IS_REQUEST_LINE,
    LF,
    MAX_BYTES,
    describe,
    first_line,
    is_method,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

_UNUSUAL_STARTS = b"\r\nP"
"""The bytes with which an empty line (CR or LF) or the preface of HTTP/2 (P) begins."""
_VERSIONS = (b"HTTP/1.1\r\n", b"HTTP/1.0\r\n")
_SPACED_ENDS = (b" HTTP/1.1", b" HTTP/1.0")
_URL_STARTS = (b"/", b"http://", b"https://")
_SPACED_STARTS = frozenset({b"/", b"h", b"H", b" "})
_LONGEST_URL_START = max(map(len, _URL_STARTS))
_match_line = IS_REQUEST_LINE.match
_CONTROL = bytes(range(0x20)) + b"\x7f"
_NOT_IN_TARGET = _CONTROL + b" "
_begins_request = re.compile(
    rb"(?:GET|HEAD|POST|PUT|DELETE|CONNECT|OPTIONS|TRACE|PATCH) (?:/|https?://)"
).match
"""Function that finds a method of RFC 9110 or RFC 5789 and a target: no other protocol begins like this."""


class HttpSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """The table ``[plugins.http]``."""

    max_header_bytes: Annotated[
        int,
        Meta(
            ge=1024,
            le=131_072,
            description="Bytes of a request in which Refractium looks for the request line and the host.",
        ),
    ] = MAX_BYTES


class Http(Protocol):
    """HTTP over TCP. Matches carry ``method``, ``path``, ``version`` and ``host``.

    ``path`` is the request target without query and user information, because these parts may contain
    passwords or tokens. ``path`` is absent if the rest of the target is empty.

    ``host`` comes from the request target if the target names a host, else from the first Host header.
    ``host`` is in lower case, without a port and a final dot. ``host`` is absent if the client sent no
    valid name or address. A match of HTTP/2 carries ``version`` and, from the first request,
    ``host``: ``:authority``, else the header ``host`` (RFC 9113 section 8.3.1).

    The host of a request is pending if the first `max_header_bytes` bytes contain neither a host nor the end
    of the header. Then Refractium refuses the request if its route depends on the host.
    """

    name = "http"
    aliases = ("www", "h2c", "websocket")
    settings_type = HttpSettings
    prefixes = (b"\r\n", b"\n", *(bytes([byte]) for byte in range(128) if is_method(bytes([byte]))))
    metadata_keys: Mapping[str, MetadataKind] = {
        "host": MetadataKind.HOST,
        "path": MetadataKind.TEXT,
        "method": MetadataKind.TEXT,
        "version": MetadataKind.TEXT,
    }
    summary = "HTTP/1.x by its request line, HTTP/2 by its preface"

    def __init__(self, max_header_bytes: int = MAX_BYTES) -> None:
        self.max_bytes = max_header_bytes
        self._describe = partial(describe, max_header_bytes)
        self._describe_http2 = partial(describe_http2, max_header_bytes)

    def with_settings(self, settings: Any) -> Http:
        return Http(settings.max_header_bytes)

    def identify(self, data: bytes) -> Identification:
        if _match_line(data, 0, self.max_bytes):
            return DeferredMatch(self._describe, data)
        data = data[: self.max_bytes]
        if LF in data:
            # Other first lines cannot become a request line.
            return self._identify_unusual(data) if data[0] in _UNUSUAL_STARTS else NO
        if (data[:1] == b"P" and PREFACE.startswith(data)) or data == b"\r":
            return NEED_MORE
        return self._identify_part(data, len(data))

    def _identify_unusual(self, data: bytes) -> Identification:
        """Identify the preface of HTTP/2 and requests after empty lines."""
        if data.startswith(PREFACE):
            return DeferredMatch(self._describe_http2, data)
        if PREFACE.startswith(data):
            return NEED_MORE
        start = first_line(data)
        if not start:
            return NO
        if _match_line(data, start):
            return DeferredMatch(self._describe, data)
        line = data[start:]
        if line in {b"", b"\r"}:
            return NEED_MORE if len(data) < self.max_bytes else NO
        return NO if LF in line else self._identify_part(line, len(data))

    def _identify_part(self, line: bytes, size: int) -> Identification:
        """Identify an incomplete line, which is the last line of `size` bytes."""
        if not _may_become_request_line(line):
            return NO
        return NeedMore(recognised=size == self.max_bytes or _begins_request(line) is not None)


def _may_become_request_line(line: bytes) -> bool:
    method, _, rest = line.partition(b" ")
    if not is_method(method):
        return False
    target, after_target, version = rest.partition(b" ")
    if len(target.translate(None, _NOT_IN_TARGET)) < len(target):  # cheap, even if bytes arrive one by one
        return False
    if not after_target or (target and any(end.startswith(version) for end in _VERSIONS)):
        return True
    return _may_become_spaced_target(rest)


def _may_become_spaced_target(rest: bytes) -> bool:
    """Return whether `rest` can become a target with spaces, and a version, up to the LF."""
    if rest[:1] not in _SPACED_STARTS:
        return False
    text = rest.lstrip(b" ")
    start = text[:_LONGEST_URL_START].lower()
    if not any(start.startswith(url) or url.startswith(start) for url in _URL_STARTS):
        return False
    line = text.removesuffix(b"\r")
    return len(line.translate(None, _CONTROL)) == len(line) and (line == text or line.endswith(_SPACED_ENDS))


@hookimpl
def refractium_protocols() -> list[Protocol]:
    """Return the protocol for HTTP over TCP."""
    return [Http()]
