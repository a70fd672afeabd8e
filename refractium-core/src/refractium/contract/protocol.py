"""What a protocol is: a name, some declared bounds and one pure function from bytes to an answer."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from enum import Enum, IntEnum, StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

MetadataValue: TypeAlias = str | bool | tuple[str, ...]
"""A value learnt from the first bytes: one name, one flag or several names in the order of the wire."""

MAX_BYTES_LIMIT: Final = 65536
"""The most bytes any protocol may ask for: what one connection may make the proxy hold."""


class Transport(StrEnum):
    """How the bytes arrive: as a stream, or as one datagram that is all there is."""

    TCP = "tcp"
    UDP = "udp"


class Strength(IntEnum):
    """How much a yes proves. Stronger protocols are asked first, whatever the order of the routes."""

    EXACT = 0
    """Magic bytes that nothing else starts with."""
    STRUCTURED = 1
    """Several fields checked against each other and against a specification."""
    WEAK = 2
    """Something that other traffic could contain as well."""


class Verdict(Enum):
    """The answers that carry no data."""

    NO = "no"
    NEED_MORE = "need more"


NO: Final = Verdict.NO
"""These bytes are not mine, and no further byte can change that."""
NEED_MORE: Final = Verdict.NEED_MORE
"""All bytes so far fit, and they are too few to tell. In a datagram this means no."""

_NOTHING: Final[Mapping[str, MetadataValue]] = MappingProxyType({})


class ProtocolMatch:
    """Yes, these bytes are mine.

    Attributes:
        metadata: what the bytes tell, by key: ``sni``, ``alpn`` and ``host`` are what routes can ask for.
            A key that is not known is absent. Further bytes may add keys, never change one.
        pending: the keys that further bytes may still add. A route that asks for such a key waits for it;
            every other route is taken at once.
    """

    __slots__ = ("metadata", "pending")

    metadata: Mapping[str, MetadataValue]
    pending: frozenset[str]

    def __init__(
        self, metadata: Mapping[str, MetadataValue] = _NOTHING, pending: frozenset[str] = frozenset()
    ) -> None:
        self.metadata = metadata
        self.pending = pending

    def __repr__(self) -> str:
        pending = f", pending={sorted(self.pending)}" if self.pending else ""
        return f"ProtocolMatch({dict(self.metadata)!r}{pending})"


class DeferredMatch(ProtocolMatch):
    """A match that reads its metadata from the bytes only when somebody asks, and then once.

    Most routes ask for none, so a protocol whose metadata costs more than its yes should answer with this.

    Args:
        read: the metadata and the pending keys of `data`; as pure as `Protocol.identify` and, for bytes that
            were recognised, as total.
        data: the bytes that were recognised.
    """

    __slots__ = ("_data", "_found", "_read")

    def __init__(
        self, read: Callable[[bytes], tuple[Mapping[str, MetadataValue], frozenset[str]]], data: bytes
    ) -> None:
        self._read = read
        self._data = data
        self._found: tuple[Mapping[str, MetadataValue], frozenset[str]] | None = None

    def _known(self) -> tuple[Mapping[str, MetadataValue], frozenset[str]]:
        if self._found is None:
            self._found = self._read(self._data)
        return self._found

    @property
    def metadata(self) -> Mapping[str, MetadataValue]:  # type: ignore[override]
        return self._known()[0]

    @property
    def pending(self) -> frozenset[str]:  # type: ignore[override]
        return self._known()[1]


Identification: TypeAlias = ProtocolMatch | Literal[Verdict.NO, Verdict.NEED_MORE]
"""One of three: a match, `NO` or `NEED_MORE`."""


class Protocol(ABC):
    """One protocol on one transport. Subclass it, fill in the attributes, write `identify`.

    A protocol that exists on both transports is two objects of the same name.
    """

    name: str
    """What routes call it: lower-case letters, digits, ``_`` and ``-``, starting with a letter."""
    transport: Transport = Transport.TCP
    strength: Strength = Strength.STRUCTURED
    max_bytes: int
    """How many bytes it may ask for: with this many it must not answer `NEED_MORE` any more.

    What is inspected to tell protocols apart is bounded by ``peek_buffer_size``; a protocol that has still
    not said no by then has recognised its own beginning and may read on to this bound.
    """
    prefixes: tuple[bytes, ...] = ()
    """Where every message starts with one of a few fixed strings: those strings, so that other traffic does
    not cost a call. Empty where there are none."""
    metadata_keys: frozenset[str] = frozenset()
    """The keys its matches can carry. A route that asks for any other is refused when it is configured."""
    server_first: bool = False
    """Whether its ordinary client waits for the server to speak, so that it is known by its silence."""
    summary: str = ""

    @abstractmethod
    def identify(self, data: bytes) -> Identification:
        """Tell whether a connection that starts with `data` (or a datagram that is `data`) is this protocol.

        It must be total (an answer for any bytes, never an exception), stateless, bounded by `max_bytes` and
        monotone (a match or a `NO` stays what it is, whatever follows). `refractium.testing` checks it.

        Args:
            data: all bytes received so far, at least one; not only the latest ones. A datagram may be empty.
        """

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}/{self.transport}>"


class _FunctionProtocol(Protocol):
    """What `define_protocol` makes of a plain function."""

    def __init__(self, function: Callable[[bytes], Identification]) -> None:
        self._function = function

    def identify(self, data: bytes) -> Identification:
        return self._function(data)


def define_protocol(
    name: str,
    *,
    max_bytes: int,
    transport: Transport | Literal["tcp", "udp"] = Transport.TCP,
    strength: Strength = Strength.STRUCTURED,
    prefixes: tuple[bytes, ...] = (),
    metadata_keys: frozenset[str] = frozenset(),
    server_first: bool = False,
    summary: str = "",
) -> Callable[[Callable[[bytes], Identification]], Protocol]:
    r"""Make a protocol of a plain function.

    ::

        @define_protocol("knock", max_bytes=6, prefixes=(b"KNOCK\n",))
        def knock(data: bytes) -> Identification:
            if data.startswith(b"KNOCK\n"):
                return ProtocolMatch()
            return NEED_MORE if b"KNOCK\n".startswith(data) else NO

    The arguments are the attributes of `Protocol`, the function is its `identify`.

    Raises:
        ValueError: an argument is not valid; the message names each.
    """

    def decorate(identify: Callable[[bytes], Identification]) -> Protocol:
        protocol = _FunctionProtocol(identify)
        protocol.name = name
        protocol.transport = Transport(transport)
        protocol.strength = strength
        protocol.max_bytes = max_bytes
        protocol.prefixes = prefixes
        protocol.metadata_keys = metadata_keys
        protocol.server_first = server_first
        protocol.summary = summary or (identify.__doc__ or "").strip().partition("\n")[0]
        if problems := list(problems_of(protocol)):
            raise ValueError("; ".join(problems))
        return protocol

    return decorate


_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,63}")


def problems_of_name(name: object) -> Iterator[str]:
    """What is wrong with the name of something that a configuration refers to."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        yield f"name {name!r}: must be lower-case letters, digits, _ and -, starting with a letter"


def problems_of(protocol: object) -> Iterator[str]:
    """What is wrong with an object that a plugin hands out as a protocol; nothing if it is one."""
    if not isinstance(protocol, Protocol):
        yield f"{protocol!r} is not a Protocol"
        return
    name = getattr(protocol, "name", None)
    yield from problems_of_name(name)
    if not isinstance(protocol.transport, Transport):
        yield f"{name}: transport {protocol.transport!r} is not a Transport"
    if not isinstance(protocol.strength, Strength):
        yield f"{name}: strength {protocol.strength!r} is not a Strength"
    max_bytes = getattr(protocol, "max_bytes", None)
    if type(max_bytes) is not int or not 1 <= max_bytes <= MAX_BYTES_LIMIT:
        yield f"{name}: max_bytes {max_bytes!r} is not between 1 and {MAX_BYTES_LIMIT}"
    if not _is_all(protocol.prefixes, tuple, bytes) or not all(protocol.prefixes):
        yield f"{name}: prefixes {protocol.prefixes!r} is not a tuple of non-empty bytes"
    if not _is_all(protocol.metadata_keys, frozenset, str):
        yield f"{name}: metadata_keys {protocol.metadata_keys!r} is not a frozenset of str"
    if not callable(protocol.identify):
        yield f"{name}: identify is not callable"


def _is_all(value: object, collection: type, item: type) -> bool:
    return isinstance(value, collection) and all(isinstance(one, item) for one in value)  # type: ignore[attr-defined]
