"""Recognises HTTP without TLS, by a request line (RFC 9112 section 3) or by the HTTP/2 preface (RFC 9113).

The form of the request line decides, not the method: WebDAV and unknown methods are HTTP. RTSP and SIP share
some of the methods, but their request lines end with other versions, so they are not HTTP.
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
"""The byte LF as a number: a search for it is five times quicker than for a byte string of length one."""
_LINE_ENDS = (b"HTTP/1.1\r\n", b"HTTP/1.0\r\n")
_match_line = IS_REQUEST_LINE.match
_is_method: Callable[[bytes], object] = re.compile(rb"[%b]{1,20}" % TCHAR).fullmatch
_NOT_IN_TARGET = bytes(range(0x21)) + b"\x7f"


class Http(Protocol):
    """HTTP over TCP. Its matches carry ``method``, ``path``, ``version`` and ``host``.

    ``path`` is the request target without its query and user information, which may hold passwords or tokens.
    It is absent if nothing is left.

    ``host`` comes from the target if the target names a host, else from the first Host header. ``host``
    is in lower case and has no port and no final dot. It is absent if it is not a valid name. A match of
    HTTP/2 carries ``version`` only.
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
        # A complete line that is not a request line cannot become one.
        if _LF in data or len(data) >= MAX_BYTES or not _may_become_request_line(data):
            return NO
        return NEED_MORE


def _may_become_request_line(data: bytes) -> bool:
    method, after_method, rest = data.partition(b" ")
    if not _is_method(method):
        return False
    target, after_target, version = rest.partition(b" ")
    if len(target.translate(None, _NOT_IN_TARGET)) < len(target):  # cheap, even if each byte comes alone
        return False
    if not after_method or not after_target:
        return True
    return bool(target) and any(end.startswith(version) for end in _LINE_ENDS)


@hookimpl
def refractium_protocols() -> list[Protocol]:
    """Return the protocol for HTTP over TCP."""
    return [Http()]
