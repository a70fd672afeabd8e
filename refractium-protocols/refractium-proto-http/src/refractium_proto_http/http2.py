"""Reads the host of the first request of HTTP/2 with prior knowledge (RFC 9113 section 3.3).

The first request is in the HEADERS frame after the preface, and in the CONTINUATION frames after that frame.
The library hpack decodes these frames (RFC 7541).
"""

from __future__ import annotations

import re
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from refractium.contract import MAX_BYTES_LIMIT, NO, NeedMore, Verdict
from refractium_proto_http.request import HOST_PENDING, NOTHING_PENDING, host_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from refractium.contract import MetadataValue

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""The first bytes of every HTTP/2 client (RFC 9113 section 3.4)."""

MAX_FRAMES: Final = 64
"""The largest number of frames that are read. Common clients send at most ten frames with a first request."""
_MAX_FRAME_SIZE: Final = 1 << 14  # until the server allows more (RFC 9113 section 4.2)
_DATA, _HEADERS, _RST_STREAM, _PUSH_PROMISE, _CONTINUATION = 0, 1, 3, 5, 9
_NEVER_FIRST: Final = frozenset({_DATA, _RST_STREAM, _PUSH_PROMISE, _CONTINUATION})
"""Types of frames that no client sends before its first request (RFC 9113 section 5.1)."""
_END_HEADERS, _PADDED, _PRIORITY = 0x4, 0x8, 0x20
_PRIORITY_SIZE: Final = 5
_STREAM_BITS: Final = (1 << 31) - 1  # a receiver ignores the other bit (RFC 9113 section 4.1)

_frame_header: Final = Struct(">I B I").unpack_from
_FRAME_HEADER_SIZE: Final = 9

_has_many_table_sizes: Final = re.compile(
    rb"(?:[\x20-\x3e]|\x3f[\x80-\xff]*+[\x00-\x7f]){3}", re.DOTALL
).match
"""A block starts with at most two table sizes (RFC 7541 section 4.2). Thousands of table sizes would take
three times as long as any other block."""

_LIST_SIZE: Final = 2
"""The largest size of the decoded headers, as a multiple of the bytes that are read.

A character takes at least five bits (RFC 7541 appendix B). So a block of literal headers fits, except for
thousands of tiny headers.
"""

_INCOMPLETE: Final = NeedMore()
_TOO_LARGE: Final = NeedMore(MAX_BYTES_LIMIT + 1)
_VERSION: Final = {"version": "2"}


def describe(max_bytes: int, data: bytes) -> tuple[Mapping[str, MetadataValue], frozenset[str], int]:
    """Return the metadata of HTTP/2, the keys that are pending, and where they arrive (`ProtocolMatch`).

    Args:
        max_bytes: number of bytes to read.
        data: the bytes of the client so far, which start with `PREFACE`.
    """
    block = find_block(data[:max_bytes])
    host = _host_in(block, _LIST_SIZE * max_bytes) if isinstance(block, bytes) else block
    if isinstance(host, NeedMore):
        return _VERSION, HOST_PENDING, host.at
    if isinstance(host, str):
        return {**_VERSION, "host": host}, NOTHING_PENDING, 0
    return _VERSION, NOTHING_PENDING, 0


class _Frame(NamedTuple):
    kind: int
    size: int
    flags: int
    stream: int
    payload: bytes
    """The bytes of the payload that have arrived."""


def find_block(data: bytes) -> bytes | NeedMore | Verdict:
    """Return the header block of the first request.

    Returns:
        The block; `NeedMore` while the block is incomplete, and always after `MAX_FRAMES` frames; `NO` as
        soon as a frame is invalid.
    """
    fragments: list[bytes] = []
    request = 0  # the stream of the request
    for count, frame in enumerate(_frames_of(data), 1):
        if not _may_follow(frame, request):
            return NO
        if frame.kind in {_HEADERS, _CONTINUATION}:
            if len(frame.payload) < frame.size:
                return _INCOMPLETE
            fragment = frame.payload if request else _without_padding(frame.payload, frame.flags)
            if fragment is None:
                return NO
            request = frame.stream
            fragments.append(fragment)
            if frame.flags & _END_HEADERS:
                return b"".join(fragments)
        if count == MAX_FRAMES:
            return _TOO_LARGE
    return _INCOMPLETE


def _frames_of(data: bytes) -> Iterator[_Frame]:
    """Yield each frame whose header has arrived."""
    at = len(PREFACE)
    while at + _FRAME_HEADER_SIZE <= len(data):
        head, flags, stream = _frame_header(data, at)
        size = head >> 8
        at += _FRAME_HEADER_SIZE + size
        yield _Frame(head & 0xFF, size, flags, stream & _STREAM_BITS, data[at - size : at])


def _may_follow(frame: _Frame, request: int) -> bool:
    """Return whether a client may send this frame before the block of its first request is complete.

    Args:
        frame: the frame.
        request: the stream of the request, or 0 before the request.
    """
    if frame.size > _MAX_FRAME_SIZE:
        return False
    if request:  # no other frame may interrupt a block (RFC 9113 section 6.10)
        return frame.kind == _CONTINUATION and frame.stream == request
    if frame.kind == _HEADERS:  # a client opens odd streams (RFC 9113 section 5.1.1)
        return frame.stream & 1 == 1
    return frame.kind not in _NEVER_FIRST


def _without_padding(payload: bytes, flags: int) -> bytes | None:
    """Return the fragment of the block in a HEADERS frame, or None if the frame is invalid.

    The padding and the priority may surround the fragment (RFC 9113 section 6.2).
    """
    start, end = 0, len(payload)
    if flags & _PADDED:
        if not payload:
            return None
        start, end = 1, end - payload[0]
    if flags & _PRIORITY:
        start += _PRIORITY_SIZE
    return payload[start:end] if start <= end else None


def _host_in(block: bytes, max_list_size: int) -> str | NeedMore | Verdict:
    """Return the host of a request.

    ``:authority`` takes precedence over ``host``, and neither may be repeated (RFC 9113 section 8.3.1).

    Args:
        block: the header block of the request.
        max_list_size: the largest size of all headers (RFC 9113 section 6.5.2), so that a small block cannot
            take much memory.

    Returns:
        The host; `NO` if the request has no valid host, or if the block is invalid; `_TOO_LARGE` if the
        headers are too large, because a header that was not decoded may be the host.
    """
    # Import here, because the import takes 40 ms, and few clients speak HTTP/2 without TLS.
    from hpack import Decoder, HPACKError, OversizedHeaderListError  # noqa: PLC0415

    if _has_many_table_sizes(block):
        return NO
    try:
        headers = Decoder(max_header_list_size=max_list_size).decode(block, raw=True)
    except OversizedHeaderListError:
        return _TOO_LARGE
    except HPACKError:
        return NO
    named = {key: [value for name, value in headers if name == key] for key in (b":authority", b"host")}
    hosts = named[b":authority"] or named[b"host"]
    return (host_of(hosts[0]) or NO) if len(hosts) == 1 else NO
