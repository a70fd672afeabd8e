"""Recognises HTTP without TLS, by a request line (RFC 9112 section 3) or by the HTTP/2 preface (RFC 9113).

Only the form of the request line decides: requests with WebDAV methods and with unknown methods also match.
RTSP and SIP share some methods with HTTP, but do not match, because an RTSP or SIP request line does
not end with a version of HTTP.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from refractium.contract import (
    NEED_MORE,
    NO,
    DeferredMatch,
    Identification,
    Protocol,
    ProtocolMatch,
    hookimpl,
)
from refractium_proto_http.request import IS_REQUEST_LINE, MAX_BYTES, TCHAR, describe

if TYPE_CHECKING:
    from collections.abc import Callable

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""The first bytes of every HTTP/2 client (RFC 9113 section 3.4)."""

_LF = 10
"""The byte LF as a number: to search for a number is five times quicker than to search for ``b"\\n"``."""
_LINE_ENDS = (b"HTTP/1.1\r\n", b"HTTP/1.0\r\n")
_match_line = IS_REQUEST_LINE.match
_is_method: Callable[[bytes], object] = re.compile(rb"[%b]{1,20}" % TCHAR).fullmatch
_NOT_IN_TARGET = bytes(range(0x21)) + b"\x7f"


class Http(Protocol):
    """HTTP over TCP. Matches carry ``method``, ``path``, ``version`` and ``host``.

    ``path`` is the request target without query and user information, because these parts may contain
    passwords or tokens. ``path`` is absent if the rest of the target is empty.

    ``host`` comes from the request target if the target names a host, else from the first Host header.
    ``host`` is in lower case, without a port and a final dot. ``host`` is absent if the client sent no
    valid name or address. A match of HTTP/2 carries ``version`` only.
    """

    name = "http"
    max_bytes = MAX_BYTES
    prefixes = tuple(bytes([byte]) for byte in range(128) if _is_method(bytes([byte])))
    metadata_keys = frozenset({"method", "path", "version", "host"})
    summary = "HTTP/1.x by its request line, HTTP/2 by its preface"

    def identify(self, data: bytes) -> Identification:
        if _match_line(data, 0, MAX_BYTES):
            return DeferredMatch(describe, data)
        if data[:1] == b"P":
            if data.startswith(PREFACE):
                return ProtocolMatch({"version": "2"})
            if PREFACE.startswith(data):
                return NEED_MORE
        # A complete first line that does not match cannot become a request line.
        if _LF in data or len(data) >= MAX_BYTES or not _may_become_request_line(data):
            return NO
        return NEED_MORE


def _may_become_request_line(data: bytes) -> bool:
    method, after_method, rest = data.partition(b" ")
    if not _is_method(method):
        return False
    target, after_target, version = rest.partition(b" ")
    if len(target.translate(None, _NOT_IN_TARGET)) < len(target):  # cheap, even if bytes arrive one by one
        return False
    if not after_method or not after_target:
        return True
    return bool(target) and any(end.startswith(version) for end in _LINE_ENDS)


@hookimpl
def refractium_protocols() -> list[Protocol]:
    """Return the protocol for HTTP over TCP."""
    return [Http()]
