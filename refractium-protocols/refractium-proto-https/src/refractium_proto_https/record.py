"""Finds the ClientHello in a stream of TLS records (RFC 8446 section 5.1).

A client may split a hello into records at any byte. Until the hello is whole, `locate_hello` reads only
headers. So the cost of `locate_hello` depends on the number of records, not on the number of bytes.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, TypeAlias

from refractium.contract import NEED_MORE, NO, NeedMore, Verdict

RECORD_HEADER: Final = 5
MAX_RECORDS: Final = 512
"""The largest number of records for one hello; OpenSSL and other libraries send one or two records."""
MESSAGE_HEADER: Final = 4
MAX_HELLO: Final = 65_536
"""Size (bytes) of the largest hello that can match by default, including the message header.

The largest hello that OpenSSL accepts has 131,396 bytes (CLIENT_HELLO_MAX_LENGTH).
"""
MIN_HELLO: Final = MESSAGE_HEADER + 2 + 32 + 1 + (2 + 2) + (1 + 1)
"""Size (bytes) of the smallest hello.

The smallest hello has a message header, a version, a random value, an empty session id, one cipher suite and
one compression method.
"""

Located: TypeAlias = tuple[bytes, int, int]
"""Bytes that contain the hello, and the offsets of the start and the end of the hello."""

HANDSHAKE: Final = b"\x16"
_MIN_VERSION: Final = b"\x03"  # SSL 3.0; earlier versions had no such records
_MIN_START: Final = int.from_bytes(HANDSHAKE + _MIN_VERSION)
_MAX_START: Final = int.from_bytes(HANDSHAKE + b"\xff")
"""Bounds of the content type and the major version. A server ignores the version (RFC 8446 section 5.1)."""
_MAX_FRAGMENT: Final = 1 << 14
_CLIENT_HELLO: Final = b"\1"
_CLIENT_HELLO_TYPE: Final = 1 << 24  # `_CLIENT_HELLO` as the first byte of a message header of 4 bytes

_record_header: Final = Struct(">H x H").unpack_from
_first_record: Final = Struct(">H x H I").unpack_from
_FIRST_RECORD_SIZE: Final = RECORD_HEADER + MESSAGE_HEADER


def locate_hello(data: bytes, max_hello: int = MAX_HELLO) -> Located | NeedMore | Verdict:
    """Find the hello; return `NEED_MORE` until the hello is whole, `NO` as soon as a header is invalid.

    Args:
        data: the bytes of the client so far.
        max_hello: size (bytes) of the largest hello, at least the largest size of a record.
    """
    if len(data) >= _FIRST_RECORD_SIZE:
        start, fragment, message = _first_record(data)
        size = (
            message - _CLIENT_HELLO_TYPE + MESSAGE_HEADER
        )  # outside the bounds below if the message is not a ClientHello
        if (  # true for nearly every hello: one record contains the whole hello
            _MIN_START <= start <= _MAX_START and MIN_HELLO <= size <= fragment <= _MAX_FRAGMENT
        ):
            end = RECORD_HEADER + size
            return (data, RECORD_HEADER, end) if end <= len(data) else NeedMore(end, recognised=True)
    return _join_records(data, max_hello)


def _join_records(  # noqa: C901, PLR0911 - a return for each rule
    data: bytes, max_hello: int
) -> Located | NeedMore | Verdict:
    there = len(data)
    size = max_hello  # the true size is known after the message header
    too_large = NeedMore(max_hello + MAX_RECORDS * RECORD_HEADER + 1, recognised=True)
    head = b""
    fragments = []
    joined = 0
    at = 0
    for _ in range(MAX_RECORDS):
        if at + RECORD_HEADER > there:
            if not _may_start_record(data[at:]):
                return NO
            return NeedMore(recognised=True) if len(head) == MESSAGE_HEADER else NEED_MORE
        start, fragment = _record_header(data, at)
        if not _MIN_START <= start <= _MAX_START or not 1 <= fragment <= _MAX_FRAGMENT:
            return NO
        at += RECORD_HEADER
        if len(head) < MESSAGE_HEADER:
            head += data[at : at + min(fragment, MESSAGE_HEADER - len(head))]
            if not _may_start_hello(head):
                return NO
            if len(head) == MESSAGE_HEADER:
                size = MESSAGE_HEADER + int.from_bytes(head[1:])
                if size > max_hello:
                    return too_large
        fragment = min(fragment, size - joined)
        fragments.append((at, at + fragment))
        joined += fragment
        at += fragment
        if at > there:
            if len(head) < MESSAGE_HEADER:
                return NEED_MORE
            # After this record, the next byte starts a record, and could be wrong.
            return NeedMore(at if joined == size else at + 1, recognised=True)
        if joined == size:
            return b"".join([data[first:last] for first, last in fragments]), 0, size
    return too_large


def _may_start_record(header: bytes) -> bool:
    return header[:1] in {b"", HANDSHAKE} and (len(header) < 2 or header[1:2] >= _MIN_VERSION)  # noqa: PLR2004


def _may_start_hello(head: bytes) -> bool:
    if len(head) < MESSAGE_HEADER:
        return head[:1] in (b"", _CLIENT_HELLO)
    return head[:1] == _CLIENT_HELLO and MESSAGE_HEADER + int.from_bytes(head[1:]) >= MIN_HELLO
