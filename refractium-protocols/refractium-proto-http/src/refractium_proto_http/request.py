"""Reads the start of an HTTP/1.x request: the request line and the host."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from refractium.contract import MetadataValue

MAX_BYTES = 65_536
"""Size (bytes) of the part of a request that is read by default, from the request line to the host.

RFC 9112 section 3 recommends a limit of at least 8000 bytes for the request line alone. A ticket of Kerberos,
which some clients send before the host, has up to 64 KiB.
"""
_METHOD = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,20}+"  # RFC 9110 section 5.6.2
_TARGET = rb"[^\x00-\x20\x7f]++"
_HTTP_URL = rb"[Hh][Tt][Tt][Pp][Ss]?://"
_SPACED = rb"[^\x00-\x1f\x7f]*"
_END = rb" HTTP/1\.[01]\r?\n"  # a bare LF may end the line (RFC 9112 section 2.2)
IS_REQUEST_LINE = re.compile(
    rb"%(method)b (?:%(target)b%(end)b|/%(spaced)b%(end)b|%(url)b%(spaced)b%(end)b"
    rb"| ++(?:/|%(url)b)%(spaced)b%(end)b)"
    % {b"method": _METHOD, b"target": _TARGET, b"url": _HTTP_URL, b"spaced": _SPACED, b"end": _END}
)
"""The request line of any request. The pattern has no groups, because groups make a match a tenth slower.

A path or an http URL with spaces is not a valid target, but some clients send such a target, and the server
answers 400 (RFC 9112 section 3). Other targets have no spaces, so that the first wrong byte of RTSP, SIP and
similar protocols is decisive.
"""
is_method: Callable[[bytes], object] = re.compile(_METHOD).fullmatch
"""Function that returns a true value if the bytes are a method of at most 20 characters."""

_EMPTY_LINES = re.compile(rb"(?:\r?\n)*+")

_HOST_OR_END = re.compile(rb"\n(?:host:(?:[ \t]*\r?\n[ \t])*+([^\n]*)\n|\r?\n)", re.IGNORECASE)
"""The first Host header or the end of the header.

A server may read a folded line, which begins with a blank, as the value of the line before (RFC 9112
section 5.2).
"""
_MAY_FOLD = frozenset({b"", b" ", b"\t"})
"""The next byte after an empty value, if the value may follow in a folded line."""
_ABSOLUTE_FORM = re.compile(rb"[a-z][a-z0-9+.-]*://([^/?#]*)", re.IGNORECASE)
_USER = re.compile(rb"([a-z][a-z0-9+.-]*://)?[^/?#]*@", re.IGNORECASE)
"""The part before the host in an absolute URL or a CONNECT target. A path starts with / and cannot match."""
_AUTHORITY = re.compile(
    rb"(\[[0-9a-f:.]{2,45}\]|(?=[^:]{1,254}(?::|\Z))[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*)\.?(?::[0-9]*)?"
)
LF, _QUESTION_MARK, _AT = b"\n?@"
"""Bytes as numbers: to search for a number is five times quicker than to search for a string of one byte."""
HOST_PENDING = frozenset({"host"})
NOTHING_PENDING: frozenset[str] = frozenset()


def first_line(data: bytes) -> int:
    """Return the offset of the first line that is not empty.

    A server ignores at least one empty line before the request line (RFC 9112 section 2.2), and usually all
    empty lines.
    """
    lines = _EMPTY_LINES.match(data)
    return lines.end() if lines else 0


def describe(max_bytes: int, data: bytes) -> tuple[Mapping[str, MetadataValue], frozenset[str]]:
    """Return the metadata of a request that `Http` recognised, and the keys that later bytes may add.

    Args:
        max_bytes: number of bytes to read.
        data: the request, as far as it has arrived.
    """
    data = data[:max_bytes]
    start = first_line(data)
    line_end = data.index(LF, start)
    method, _, rest = data[start:line_end].partition(b" ")
    target, _, version = rest.rstrip(b"\r").rpartition(b" HTTP/")
    target = target.lstrip(b" ")
    path = _path(target) if _QUESTION_MARK in target or _AT in target else target
    metadata: dict[str, MetadataValue] = {
        "method": method.decode("ascii"),
        "path": path.decode("latin-1"),
        "version": version.decode("ascii"),
    }
    if not path:
        del metadata["path"]
    authority, pending = _authority(data, line_end, method, target)
    if authority is not None and (host := host_of(authority)) is not None:
        metadata["host"] = host
    return metadata, pending


def _path(target: bytes) -> bytes:
    """Return the request target without query and user information.

    Both parts may contain passwords or tokens (RFC 9110 section 17.9, RFC 3986 section 7.5), and Refractium
    passes metadata to logs, captures and hooks.
    """
    path = target.partition(b"?")[0]
    if user := _USER.match(path):
        return (user[1] or b"") + path[user.end() :]
    return path


def _authority(
    data: bytes, line_end: int, method: bytes, target: bytes
) -> tuple[bytes | None, frozenset[str]]:
    """Return the host and port as the client sent them, or None, and the metadata keys that are pending.

    The request target takes precedence over the Host header (RFC 9112 section 3.2.2). Only the first Host
    header counts, so that the result never depends on later bytes. A server must reject a request with
    several Host headers (RFC 9112 section 3.2).
    """
    if method == b"CONNECT":
        return target, NOTHING_PENDING
    if absolute := _ABSOLUTE_FORM.match(target):
        return absolute[1], NOTHING_PENDING
    header = _HOST_OR_END.search(data, line_end)
    if header is None:
        return None, HOST_PENDING
    host = header[1] and header[1].strip(b" \t\r")
    if host == b"" and data[header.end() : header.end() + 1] in _MAY_FOLD:
        return None, HOST_PENDING
    return host, NOTHING_PENDING


def host_of(authority: bytes) -> str | None:
    """Return the host of ``host[:port]`` in lower case (IPv6 in brackets), or None if the host is invalid."""
    match = _AUTHORITY.fullmatch(authority.lower())
    return match[1].decode("ascii") if match else None
