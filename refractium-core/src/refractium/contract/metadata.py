"""The kinds of metadata: what a protocol declares about each key, and how conditions read the key."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final, TypeAlias

from refractium.contract.words import kind_of, shown

MetadataValue: TypeAlias = str | bool | tuple[str, ...]
"""A value from the first bytes: one name, one flag, or several names in the order of their arrival."""


class MetadataKind(Enum):
    """The kind of a metadata key: the type of its values, and how conditions compare these values."""

    HOST_NAME = "host name"
    """A host name in lower case without a final dot (RFC 1123 section 2.1). Conditions have wildcards:
    ``*.example.org`` for one label, ``**.example.org`` for any depth. Case does not matter."""
    HOST = "host"
    """A `HOST_NAME` or an IP address, without a port; an IPv6 address stands in brackets (RFC 3986 section
    3.2.2)."""
    TEXT = "text"
    """A string. In conditions, ``*`` stands for any characters. Case matters."""
    TEXTS = "list of texts"
    """A tuple of strings, of which one must meet a condition. Conditions have the form of `TEXT`."""
    FLAG = "flag"
    """A bool. A flag that a match lacks is false."""
    ANY = "any"
    """A `TEXT`, `TEXTS` or `FLAG`: the kind of the keys that a protocol declares without a kind."""


_TYPES: Final[Mapping[MetadataKind, tuple[type, ...]]] = {
    MetadataKind.TEXTS: (tuple,),
    MetadataKind.FLAG: (bool,),
    MetadataKind.ANY: (str, bool, tuple),
}
_TYPE_NAMES: Final[Mapping[MetadataKind, str]] = {
    MetadataKind.TEXTS: "tuple of str",
    MetadataKind.FLAG: "bool",
    MetadataKind.ANY: "str, bool or tuple of str",
}


def types_of(kind: MetadataKind) -> tuple[type, ...]:
    """Return the types of the values of a kind."""
    return _TYPES.get(kind, (str,))


def type_name(kind: MetadataKind) -> str:
    """Return the types of the values of a kind, in words."""
    return _TYPE_NAMES.get(kind, "str")


MetadataKeys: TypeAlias = "Mapping[str, MetadataKind] | frozenset[str]"
"""The metadata keys of a protocol with their kinds, or without kinds."""

WELL_KNOWN_KEYS: Final[Mapping[str, MetadataKind]] = MappingProxyType(
    {"sni": MetadataKind.HOST_NAME, "host": MetadataKind.HOST, "alpn": MetadataKind.TEXTS}
)
"""The keys with one meaning in all protocols: the server name of TLS (RFC 6066 section 3), the host of a
request, and the application protocols that a client offers (RFC 7301)."""


def kinds_of(keys: MetadataKeys) -> Mapping[str, MetadataKind]:
    """Return metadata keys with their kinds, in the order in which routes compare the keys.

    The order is the order of the declaration. For keys without kinds, the well-known keys come first, and
    the other keys follow in alphabetical order.
    """
    if isinstance(keys, Mapping):
        return keys
    others = dict.fromkeys(sorted(set(keys) - WELL_KNOWN_KEYS.keys()), MetadataKind.ANY)
    return {key: kind for key, kind in WELL_KNOWN_KEYS.items() if key in keys} | others


def is_metadata_value(value: object) -> bool:
    """Return whether a value is a `MetadataValue`."""
    if isinstance(value, tuple):
        return all([isinstance(one, str) for one in value])  # noqa: C419 - a generator is slower
    return isinstance(value, _SCALARS)


_SCALARS: Final = (str, bool)  # a union type would be built at each call, which takes longer than the check


def problem_of_keys(keys: object) -> str | None:
    """Return the violation of the contract in the metadata keys of a protocol, or None."""
    if isinstance(keys, frozenset) and all(isinstance(key, str) for key in keys):
        return None
    if not isinstance(keys, Mapping):
        return f"metadata_keys is {kind_of(keys)}, not a frozenset of str or a mapping of str to MetadataKind"
    for key, kind in keys.items():
        if not isinstance(key, str) or not isinstance(kind, MetadataKind):
            return f"metadata_keys maps {shown(key)} to {shown(kind)}, not a str to a MetadataKind"
        if kind is not WELL_KNOWN_KEYS.get(key, kind):
            return f"the kind of metadata key {key} is {kind.name}, but must be {WELL_KNOWN_KEYS[key].name}"
    return None
