"""KNOCK: a client sends the line ``KNOCK``, then a line with the house that it wants."""

from __future__ import annotations

from refractium.contract import (
    NEED_MORE,
    NO,
    Identification,
    Protocol,
    ProtocolMatch,
    Strength,
    define_protocol,
    hookimpl,
)

MAGIC = b"KNOCK\n"
MAX_BYTES = 128
"""Bytes within which the second line must end."""


@define_protocol(
    "knock",
    max_bytes=MAX_BYTES,
    strength=Strength.EXACT,
    prefixes=(MAGIC,),
    metadata_keys=frozenset({"host"}),
    summary="KNOCK, routed by the name of the house",
)
def knock(data: bytes) -> Identification:
    """Return a match after the first line; the second line adds the metadata."""
    if not data.startswith(MAGIC):
        return NEED_MORE if MAGIC.startswith(data) else NO
    house, end, _ = data[len(MAGIC) : MAX_BYTES].partition(b"\n")
    if not end:
        return ProtocolMatch(pending=frozenset({"host"}))
    return ProtocolMatch({"host": house.decode("ascii", "replace").lower()} if house else {})


@hookimpl
def refractium_protocols() -> list[Protocol]:
    """Return the protocol for KNOCK over TCP."""
    return [knock]
