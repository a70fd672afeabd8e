"""KNOCK: a client says ``KNOCK``, then the house it wants, each on a line of its own."""

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
"""Where the second line must have ended."""


@define_protocol(
    "knock",
    max_bytes=MAX_BYTES,
    strength=Strength.EXACT,
    prefixes=(MAGIC,),
    metadata_keys=frozenset({"host"}),
    summary="KNOCK, routed by the house it names",
)
def knock(data: bytes) -> Identification:
    """A match from the first line on; its metadata follows with the second."""
    if not data.startswith(MAGIC):
        return NEED_MORE if MAGIC.startswith(data) else NO
    house, end, _ = data[len(MAGIC) : MAX_BYTES].partition(b"\n")
    if not end:
        return ProtocolMatch(pending=frozenset({"host"} if len(data) < MAX_BYTES else ()))
    return ProtocolMatch({"host": house.decode("ascii", "replace").lower()} if house else {})


@hookimpl
def refractium_protocols() -> list[Protocol]:
    """KNOCK over TCP."""
    return [knock]
