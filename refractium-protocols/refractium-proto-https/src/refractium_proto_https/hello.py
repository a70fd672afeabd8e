"""Reads a ClientHello (RFC 8446 section 4.1.2, RFC 5246 section 7.4.1.2).

`find_extensions` checks every length in the hello once, and decides whether the hello is well formed.
`describe` reads the metadata from the extensions, only when Refractium needs the metadata. Both functions
expect a whole hello.
"""

from __future__ import annotations

import re
from functools import lru_cache
from struct import Struct, iter_unpack
from typing import TYPE_CHECKING, Final, TypeAlias

from refractium.contract import MAX_BYTES_LIMIT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from refractium.contract import MetadataValue

Extensions: TypeAlias = dict[int, tuple[int, int]]
"""The offsets of the start and the end of the data of each extension, by the type of the extension."""

_VERSION: Final = 4  # offset after the type and the length of the message
_SESSION_ID: Final = _VERSION + 2 + 32  # offset after the version and the random value
_MAX_SESSION_ID: Final = 32
_MIN_MAJOR: Final = 3  # SSL 3.0; a server answers a higher version with its own (RFC 5246 appendix E.1)

_SERVER_NAME: Final = 0  # RFC 6066 section 3
_ALPN: Final = 16  # RFC 7301 section 3.1
_SUPPORTED_VERSIONS: Final = 43  # RFC 8446 section 4.2.1
_ENCRYPTED_HELLO: Final = 0xFE0D  # RFC 9849

MAX_ALPN_NAMES: Final = 128
"""The largest number of application protocols that are read from one hello.

Clients offer a few names, in the order of preference (RFC 7301 section 3.1). IANA has registered about forty
names, and RFC 8701 reserves sixteen more (GREASE). A hello of 16 KiB has room for 8,000 names, which would
take two hundred times as long as a usual hello.
"""

_NOTHING_PENDING: Final[frozenset[str]] = frozenset()
_ALPN_PENDING: Final = frozenset({"alpn"})

_VERSIONS: Final = {0x0300: "ssl3", 0x0301: "1.0", 0x0302: "1.1", 0x0303: "1.2", 0x0304: "1.3"}
_TLS_1_2: Final = b"\x03\x03"
_HOST_NAME: Final = 0
_NAME_START: Final = 5  # offset after the length of the list, the type of the name and the length of the name
_MAX_NAME: Final = 253
_is_name: Final = re.compile(rb"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*").fullmatch

_two: Final = Struct(">HH").unpack_from
_name_list_start: Final = Struct(">HBH").unpack_from
_one: Final = Struct(">H").unpack_from


def find_extensions(  # noqa: PLR0911 - a return for each rule
    hello: bytes, start: int, end: int
) -> Extensions | None:
    """Return the offsets of the extensions that `describe` reads; None if the hello is not well formed.

    Args:
        hello: bytes that contain the hello.
        start: the offset of the message header of the hello.
        end: the offset of the end of the hello.
    """
    session_id = hello[start + _SESSION_ID]
    at = start + _SESSION_ID + 1 + session_id
    if hello[start + _VERSION] < _MIN_MAJOR or session_id > _MAX_SESSION_ID or at + 2 > end:
        return None
    (ciphers,) = _one(hello, at)
    at += 2 + ciphers
    if ciphers < 2 or ciphers & 1 or at >= end:  # noqa: PLR2004
        return None
    compressions = hello[at]
    at += 1 + compressions
    if not compressions or at > end:
        return None
    found: Extensions = {}
    if at == end:  # a hello of TLS 1.2 may have no extensions
        return found
    if at + 2 > end or at + 2 + _one(hello, at)[0] != end:
        return None
    at += 2
    last = end - 4
    unpack, checks = _two, _CHECKS
    while at <= last:
        kind, size = unpack(hello, at)
        at += 4 + size
        if kind in checks:
            if at > end or kind in found or not checks[kind](hello, at - size, at):
                return None
            found[kind] = at - size, at
    return found if at == end else None


def _is_name_list(hello: bytes, start: int, end: int) -> bool:
    """Return whether the list fills the extension and a host name fills the list.

    RFC 6066 section 3 defines the list. If the first name has a type other than host name, the function does
    not check the bytes after the type.
    """
    name = start + _NAME_START
    if name >= end:
        return False
    names_size, kind, name_size = _name_list_start(hello, start)
    return bool(start + 2 + names_size == end and (kind != _HOST_NAME or name + name_size == end))


def _is_alpn(hello: bytes, start: int, end: int) -> bool:
    """Return whether the list fills the extension with names of 1 to 255 bytes, and has at least one name.

    The function does not check the names after the first `MAX_ALPN_NAMES` names.
    """
    at = start + 2
    if at >= end or at + _one(hello, start)[0] != end:
        return False
    names = 0
    while at < end:
        size = hello[at]
        if not size:
            return False
        at += 1 + size
        names += 1
        if names == MAX_ALPN_NAMES:
            return at <= end
    return at == end


def _is_version_list(hello: bytes, start: int, end: int) -> bool:
    size = end - start - 1
    return size >= 2 and not size & 1 and hello[start] == size  # noqa: PLR2004


def _is_whatever(_hello: bytes, _start: int, _end: int) -> bool:
    return True


_CHECKS: Final = {
    _SERVER_NAME: _is_name_list,
    _ALPN: _is_alpn,
    _SUPPORTED_VERSIONS: _is_version_list,
    _ENCRYPTED_HELLO: _is_whatever,  # only the presence of this extension matters
}
"""For each extension that `describe` reads, the function that checks whether the data is well formed."""


def describe(
    start: int, extensions: Extensions, hello: bytes
) -> tuple[Mapping[str, MetadataValue], frozenset[str], int]:
    """Return the metadata of a hello, the keys that are pending, and where they arrive (`ProtocolMatch`).

    `alpn` stays pending if the hello offers more than `MAX_ALPN_NAMES` names, because a route could ask for a
    later name.

    Args:
        start: the offset of the message header of the hello.
        extensions: the result of `find_extensions`.
        hello: bytes that contain the hello.
    """
    metadata: dict[str, MetadataValue] = {}
    pending, pending_at = _NOTHING_PENDING, 0
    if (span := extensions.get(_SERVER_NAME)) and (name := _name(hello, *span)) is not None:
        metadata["sni"] = name
    if span := extensions.get(_ALPN):
        metadata["alpn"], is_complete = _alpn(hello[slice(*span)])
        if not is_complete:
            pending, pending_at = _ALPN_PENDING, MAX_BYTES_LIMIT + 1
    if span := extensions.get(_SUPPORTED_VERSIONS):
        metadata["versions"] = _versions(hello[span[0] + 1 : span[1]])
    else:  # a legacy version above 1.2 means 1.2 (RFC 8446 section 4.2.1)
        metadata["versions"] = _versions(min(hello[start + _VERSION : start + _VERSION + 2], _TLS_1_2))
    if _ENCRYPTED_HELLO in extensions:
        metadata["ech"] = True
    return metadata, pending, pending_at


def _name(hello: bytes, start: int, end: int) -> str | None:
    """Return the server name, or None if the name is not a valid host name.

    Routes compare the name, and logs show the name.
    """
    if hello[start + 2] != _HOST_NAME:
        return None
    name = hello[start + _NAME_START : end].lower().removesuffix(b".")
    return name.decode("ascii") if len(name) <= _MAX_NAME and _is_name(name) else None


# Clients send only a few different lists, so the cache of parsed lists halves the cost of reading a hello.


@lru_cache(maxsize=64)
def _alpn(extension: bytes) -> tuple[tuple[str, ...], bool]:
    """Return the first `MAX_ALPN_NAMES` names of the list, and whether the list has no further names."""
    names: list[str] = []
    at = 2
    while at < len(extension) and len(names) < MAX_ALPN_NAMES:
        after = at + 1 + extension[at]
        names.append(extension[at + 1 : after].decode("latin-1"))
        at = after
    return tuple(names), at == len(extension)


@lru_cache(maxsize=64)
def _versions(offered: bytes) -> tuple[str, ...]:
    """Return the known versions in the order of the hello, without unknown values like GREASE (RFC 8701)."""
    known = (_VERSIONS.get(version) for (version,) in iter_unpack(">H", offered))
    return tuple(version for version in known if version is not None)
