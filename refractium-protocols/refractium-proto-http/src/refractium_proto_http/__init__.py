"""HTTP in clear text: HTTP/1.x by its request line (RFC 9112 section 3), HTTP/2 by its preface (RFC 9113).

The request line decides, not the method: WebDAV and unknown methods are HTTP, while RTSP and SIP, which
share some of the methods, end their line with a version of their own and are not.
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
"""What every HTTP/2 client sends first (RFC 9113 section 3.4)."""

_LF = 10
"""A number, because that is five times quicker to look for than a byte string of one."""
_LINE_ENDS = (b"HTTP/1.1\r\n", b"HTTP/1.0\r\n")
_match_line = IS_REQUEST_LINE.match
_is_method: Callable[[bytes], object] = re.compile(rb"[%b]{1,20}" % TCHAR).fullmatch
_NOT_IN_TARGET = bytes(range(0x21)) + b"\x7f"


class Http(Protocol):
    """Its matches carry ``method``, ``path``, ``version`` and ``host``.

    ``path`` is the request target without its query and user information, which may hold passwords or tokens.
    It is absent where nothing is left.

    ``host`` comes from the target, where that names one, else from the first Host header. It is lower-case,
    without port and final dot, and absent where it is not a valid name. HTTP/2 hides all but ``version``.
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
        # A line that is over and is no request line will not become one.
        if _LF in data or len(data) >= MAX_BYTES or not _may_become_request_line(data):
            return NO
        return NEED_MORE


def _may_become_request_line(data: bytes) -> bool:
    method, after_method, rest = data.partition(b" ")
    if not _is_method(method):
        return False
    target, after_target, version = rest.partition(b" ")
    if len(target.translate(None, _NOT_IN_TARGET)) < len(target):  # cheap, should the line come in drips
        return False
    if not after_method or not after_target:
        return True
    return bool(target) and any(end.startswith(version) for end in _LINE_ENDS)


@hookimpl
def refractium_protocols() -> list[Protocol]:
    """HTTP over TCP."""
    return [Http()]
