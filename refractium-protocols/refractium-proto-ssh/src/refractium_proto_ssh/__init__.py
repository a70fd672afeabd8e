"""Recognises SSH 2 by the identification string that the client sends first (RFC 4253 section 4.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refractium.contract import (
    NEED_MORE,
    NO,
    DeferredMatch,
    Identification,
    MetadataKind,
    MetadataValue,
    Protocol,
    Strength,
    hookimpl,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIXES = (b"SSH-2.0-", b"SSH-1.99-")
"""The prefix for version 2, and the prefix for version 2 with support of version 1 (RFC 4253 section 5.1)."""
MAX_LINE = 255
"""Size (bytes) of the longest identification string, including CR LF (RFC 4253 section 4.2)."""


class Ssh(Protocol):
    """SSH over TCP. Matches carry ``software``, the software version, if the first line is complete."""

    name = "ssh"
    aliases = ("sftp", "scp")
    strength = Strength.EXACT
    max_bytes = MAX_LINE
    prefixes = PREFIXES
    metadata_keys: Mapping[str, MetadataKind] = {"software": MetadataKind.TEXT}
    summary = "SSH 2, by its identification string"

    def identify(self, data: bytes) -> Identification:
        if data.startswith(PREFIXES):
            return DeferredMatch(_software, data)
        return NEED_MORE if any(prefix.startswith(data) for prefix in PREFIXES) else NO


def _software(data: bytes) -> tuple[Mapping[str, MetadataValue], frozenset[str]]:
    """Read the software version of ``SSH-protoversion-softwareversion SP comments CR LF``.

    Some clients end the line with LF alone.
    """
    line, end, _ = data[:MAX_LINE].partition(b"\n")
    if not end:
        return {}, frozenset({"software"})
    software = line.split(b"-", 2)[2].split(maxsplit=1)[0:1]
    return ({"software": software[0].decode("ascii", "replace")} if software else {}), frozenset()


@hookimpl
def refractium_protocols() -> list[Protocol]:
    """Return the protocol for SSH over TCP."""
    return [Ssh()]
