"""What plugins import: the whole of it, and nothing that moves a byte.

A protocol plugin is a module with one function::

    from refractium.contract import NEED_MORE, NO, Identification, Protocol, ProtocolMatch, hookimpl

    @hookimpl
    def refractium_protocols() -> list[Protocol]:
        return [MyProtocol()]

named by an entry point of the group ``refractium``; the entry point's name is the plugin's id. This package
does no I/O and imports neither the engine nor the plugin manager, so that plugins depend on something small
and stable. `API_VERSION` counts its incompatible changes.
"""

from refractium.contract.hookspecs import API_VERSION, ENTRY_POINT_GROUP, hookimpl
from refractium.contract.protocol import (
    MAX_BYTES_LIMIT,
    NEED_MORE,
    NO,
    DeferredMatch,
    Identification,
    MetadataValue,
    Protocol,
    ProtocolMatch,
    Strength,
    Transport,
    Verdict,
    define_protocol,
    problems_of,
)

__all__ = [
    "API_VERSION",
    "ENTRY_POINT_GROUP",
    "MAX_BYTES_LIMIT",
    "NEED_MORE",
    "NO",
    "DeferredMatch",
    "Identification",
    "MetadataValue",
    "Protocol",
    "ProtocolMatch",
    "Strength",
    "Transport",
    "Verdict",
    "define_protocol",
    "hookimpl",
    "problems_of",
]
