"""Recognises HTTP without TLS, by a request line (RFC 9112 section 3) or by the HTTP/2 preface (RFC 9113).

Only the form of the request line decides: requests with WebDAV methods and with unknown methods also match.
RTSP and SIP share some methods with HTTP, but do not match, because an RTSP or SIP request line does
not end with a version of HTTP.
"""

from __future__ import annotations

from refractium.contract import (
    NEED_MORE,
    NO,
    DeferredMatch,
    Identification,
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

_UNUSUAL_STARTS = b"\r\nP"
"""The first bytes of an empty line and of the preface."""
_VERSIONS = (b"HTTP/1.1\r\n", b"HTTP/1.0\r\n")
_SPACED_ENDS = (b" HTTP/1.1", b" HTTP/1.0")
_URL_STARTS = (b"/", b"http://", b"https://")
_SPACED_STARTS = frozenset({b"/", b"h", b"H", b" "})
_LONGEST_URL_START = max(map(len, _URL_STARTS))
_match_line = IS_REQUEST_LINE.match
_CONTROL = bytes(range(0x20)) + b"\x7f"
_NOT_IN_TARGET = _CONTROL + b" "


class Http(Protocol):
    """HTTP over TCP. Matches carry ``method``, ``path``, ``version`` and ``host``.

    ``path`` is the request target without query and user information, because these parts may contain
    passwords or tokens. ``path`` is absent if the rest of the target is empty.

    ``host`` comes from the request target if the target names a host, else from the first Host header.
    ``host`` is in lower case, without a port and a final dot. ``host`` is absent if the client sent no
    valid name or address. A match of HTTP/2 carries ``version`` and, from the first request,
    ``host``: ``:authority``, else the header ``host`` (RFC 9113 section 8.3.1).
    """

    name = "http"
    aliases = ("www", "h2c", "websocket")
    max_bytes = MAX_BYTES
    prefixes = (b"\r\n", b"\n", *(bytes([byte]) for byte in range(128) if is_method(bytes([byte]))))
    metadata_keys = frozenset({"method", "path", "version", "host"})
    summary = "HTTP/1.x by its request line, HTTP/2 by its preface"

    def identify(self, data: bytes) -> Identification:
        if _match_line(data, 0, MAX_BYTES):
            return DeferredMatch(describe, data)
        if LF in data:
            # Other first lines cannot become a request line.
            return _identify_unusual(data) if data[0] in _UNUSUAL_STARTS else NO
        if (data[:1] == b"P" and PREFACE.startswith(data)) or data == b"\r":
            return NEED_MORE
        return NEED_MORE if len(data) < MAX_BYTES and _may_become_request_line(data) else NO


def _identify_unusual(data: bytes) -> Identification:
    """Identify the preface of HTTP/2 and requests after empty lines."""
    if data.startswith(PREFACE):
        return DeferredMatch(describe_http2, data)
    if PREFACE.startswith(data):
        return NEED_MORE
    start = first_line(data)
    if not start:
        return NO
    if _match_line(data, start, MAX_BYTES):
        return DeferredMatch(describe, data)
    line = data[start:]
    if LF in line or len(data) >= MAX_BYTES:
        return NO
    return NEED_MORE if line in {b"", b"\r"} or _may_become_request_line(line) else NO


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
