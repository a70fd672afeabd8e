"""The contract of protocols: a name, a limit on the bytes, and one pure function from bytes to an answer."""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from enum import Enum, IntEnum, StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

from msgspec import Struct
from msgspec.structs import fields

from refractium.contract.metadata import (
    MetadataKind,
    MetadataValue,
    is_metadata_value,
    kinds_of,
    problem_of_keys,
    type_name,
    types_of,
)
from refractium.contract.words import kind_of, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from refractium.contract.metadata import MetadataKeys

MAX_BYTES_LIMIT: Final = 262_144
"""Largest value of `Protocol.max_bytes`; for each connection, the proxy stores up to `max_bytes` bytes and
the bytes of one read."""


_OF_SESSIONS: Final = (("udp_responses", 0, 1_000_000), ("udp_session_timeout_ms", 1, 7 * 24 * 3600 * 1000))
"""The attributes of `Protocol` for UDP sessions, each with its least and its largest value."""


class Transport(StrEnum):
    """The transport of the bytes: a stream (TCP), or a single datagram that is complete (UDP)."""

    TCP = "tcp"
    """Streams."""
    UDP = "udp"
    """Datagrams."""


class Strength(IntEnum):
    """The strength of a match as evidence.

    The proxy asks stronger protocols first, whatever the order of the routes.
    """

    EXACT = 0
    """The bytes start with magic bytes that no other protocol starts with."""
    STRUCTURED = 1
    """Several fields of the bytes agree with each other and with a specification."""
    WEAK = 2
    """The bytes could also be traffic of other protocols."""


class Verdict(Enum):
    """The answers of a protocol that are not a match: `NO` and `NEED_MORE`."""

    NO = "no"
    """The answer `NO`."""
    NEED_MORE = "need more"
    """The answer `NEED_MORE`."""


NO: Final = Verdict.NO
"""These bytes are of another protocol, and no further byte can change this answer."""
NEED_MORE: Final = Verdict.NEED_MORE
"""All bytes so far fit this protocol, but are too few to decide. In a datagram this answer means `NO`."""


class NeedMore(NamedTuple):
    """The answer `NEED_MORE` with two details: when to ask again, and whether the protocol is proven.

    Attributes:
        at: number of bytes from the start of the stream. For fewer bytes, the answer is `NEED_MORE` or
            `NeedMore` as well, so the proxy need not ask before `at` bytes have arrived. With 0, the proxy
            asks whenever bytes arrive.
        recognised: whether the bytes so far prove the protocol. The proxy then refuses a client whose bytes
            end, pause until the peek timeout, or exceed `Protocol.max_bytes`. The proxy never sends this
            client to the route of another protocol or to the fallback. A protocol with `Strength.WEAK` proves
            nothing: the proxy ignores its `recognised`.
    """

    at: int = 0
    recognised: bool = False


_NOTHING: Final[Mapping[str, MetadataValue]] = MappingProxyType({})


class ProtocolMatch:
    """The answer of a protocol that recognises the bytes.

    Attributes:
        metadata: facts that the protocol read from the bytes, by key. Routes can ask for every key in
            `Protocol.metadata_keys`. An unknown fact has no key. Further bytes may add keys, but never change
            a value.
        pending: keys that further bytes may still add, or whose list in `metadata` contains only the first
            values. If the route depends on a pending key, the proxy waits for this key. The proxy selects any
            other route at once. If the key is still pending after `Protocol.max_bytes` bytes, at the peek
            timeout or at the end of the bytes, the proxy refuses the client.
        pending_at: number of bytes from the start of the stream. With fewer bytes, all pending keys stay
            pending. A number above `Protocol.max_bytes` means that no bytes can add these keys. Then the
            proxy at once refuses a client whose route depends on these keys: the first bytes are too large.
    """

    __slots__ = ("metadata", "pending", "pending_at")

    metadata: Mapping[str, MetadataValue]
    pending: frozenset[str]
    pending_at: int

    def __init__(
        self,
        metadata: Mapping[str, MetadataValue] = _NOTHING,
        pending: frozenset[str] = frozenset(),
        pending_at: int = 0,
    ) -> None:
        self.metadata = metadata
        self.pending = pending
        self.pending_at = pending_at

    def __repr__(self) -> str:
        pending = f", pending={sorted(self.pending)}" if self.pending else ""
        return f"ProtocolMatch({dict(self.metadata)!r}{pending})"


_Description: TypeAlias = (
    tuple[Mapping[str, MetadataValue], frozenset[str]]
    | tuple[Mapping[str, MetadataValue], frozenset[str], int]
)
"""The attributes of a match, in the order of the arguments of `ProtocolMatch`."""


class DeferredMatch(ProtocolMatch):
    """A match that reads its metadata once, at the first access to an attribute.

    Most routes ask for no metadata. So a protocol should answer with this class if it takes longer to read
    the metadata than to find the match.

    Args:
        read: function that returns the metadata and the pending keys of `data`, and may return `pending_at`
            as a third item. It must be pure, like `Protocol.identify`, and must raise no exception for bytes
            that the protocol recognised.
        data: bytes that the protocol recognised.
    """

    __slots__ = ("_data", "_found", "_read")

    def __init__(
        self,
        read: Callable[
            [bytes],
            tuple[Mapping[str, MetadataValue], frozenset[str]]
            | tuple[Mapping[str, MetadataValue], frozenset[str], int],
        ],
        data: bytes,
    ) -> None:
        self._read = read
        self._data = data
        self._found: _Description | None = None

    def _known(self) -> _Description:
        if self._found is None:
            self._found = self._read(self._data)
            self._data = b""  # a connection keeps its match until its end
        return self._found

    @property
    def metadata(self) -> Mapping[str, MetadataValue]:  # type: ignore[override]
        return self._known()[0]

    @property
    def pending(self) -> frozenset[str]:  # type: ignore[override]
        return self._known()[1]

    @property
    def pending_at(self) -> int:  # type: ignore[override]
        found = self._known()
        return found[2] if len(found) > 2 else 0  # noqa: PLR2004


Identification: TypeAlias = ProtocolMatch | NeedMore | Literal[Verdict.NO, Verdict.NEED_MORE]
"""The answer of a protocol: a match, `NO` or `NEED_MORE`, which may be a `NeedMore` with details."""


class NoSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """The empty settings of a protocol, hook or health check without settings."""


class Protocol(ABC):
    """The base class of protocols: one protocol on one transport.

    A subclass sets the attributes and implements `identify`. A protocol that exists on both transports needs
    two objects with the same name.
    """

    name: str
    """Name in routes: lower-case letters, digits, ``_`` and ``-``, starting with a letter."""
    aliases: tuple[str, ...] = ()
    """Other common names of the protocol. If a route has one of these names, and no protocol has this name,
    the error suggests `name`."""
    transport: Transport = Transport.TCP
    """The transport of the clients."""
    strength: Strength = Strength.STRUCTURED
    """The strength of a match as evidence."""
    max_bytes: int
    """Bytes after which the protocol must decide: given this many bytes, `identify` must not return
    `NEED_MORE`.

    A weak protocol (`Strength.WEAK`) can wait for at most ``peek_buffer_size`` bytes. A stronger protocol may
    wait for `max_bytes` bytes. A stronger protocol that recognises its own traffic, but would need more than
    `max_bytes` bytes, returns `NeedMore` with `NeedMore.recognised`, or keeps a key in
    `ProtocolMatch.pending`. The proxy then refuses the client, because the first bytes are too large.
    """
    prefixes: tuple[bytes, ...] = ()
    """Byte strings: every first message starts with one of these strings, so the proxy does not call
    `identify` for other traffic. Empty if messages can start in other ways."""
    metadata_keys: MetadataKeys = frozenset()
    """Keys that the metadata of matches can have, each with its `MetadataKind`, or a frozenset of keys.

    Refractium refuses a route that asks for another key. Routes compare the keys in the order of this
    mapping. A key in a frozenset has the kind `MetadataKind.ANY`. In every protocol, ``sni`` is a
    `MetadataKind.HOST_NAME`, ``host`` a `MetadataKind.HOST`, and ``alpn`` has `MetadataKind.TEXTS`.
    """
    server_first: bool = False
    """Whether ordinary clients wait for the server to speak, so that silence identifies these clients."""
    udp_responses: int | None = None
    """Only for UDP: the number of answers that a server sends to each datagram of a client, at most
    1,000,000. None if the number varies or is unknown.

    The proxy ends a session once the server has sent this many answers for each datagram of the client, as
    nginx does with ``proxy_responses``. With 0, the proxy expects no answer. A session that waits for an
    answer ends only at its timeout.
    """
    udp_session_timeout_ms: int | None = None
    """Only for UDP: the time (ms) without a datagram in either direction after which the proxy ends a session
    of this protocol, at most one week. None for the time in the configuration."""
    settings_type: type[Struct] = NoSettings
    """Struct of the table ``[plugins.ID]``. This Struct must be frozen and forbid unknown fields, and each
    field must have a default."""
    summary: str = ""
    """One-line description, for listings of protocols."""

    def with_settings(self, settings: Any) -> Protocol:  # noqa: ARG002 - for protocols with settings
        """Return a protocol of the same name and transport that follows `settings`, a `settings_type`.

        Refractium calls this method when it reads a configuration that has the table ``[plugins.ID]``.
        """
        return self

    @abstractmethod
    def identify(self, data: bytes) -> Identification:
        """Decide whether a connection that starts with `data`, or the datagram `data`, is of this protocol.

        The function must be total (an answer for any bytes, never an exception), stateless, and bounded by
        `max_bytes`. It must also be monotone: further bytes never change a match or a `NO`.
        `refractium.testing` checks these laws.

        Args:
            data: all bytes received so far, not only the latest bytes. A connection has at least one byte; a
                datagram may be empty.
        """

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}/{self.transport}>"


class _FunctionProtocol(Protocol):
    """The protocol that `define_protocol` makes from a function."""

    def __init__(self, function: Callable[[bytes], Identification]) -> None:
        self._function = function

    def identify(self, data: bytes) -> Identification:
        return self._function(data)


def define_protocol(
    name: str,
    *,
    max_bytes: int,
    aliases: tuple[str, ...] = (),
    transport: Transport | Literal["tcp", "udp"] = Transport.TCP,
    strength: Strength = Strength.STRUCTURED,
    prefixes: tuple[bytes, ...] = (),
    metadata_keys: MetadataKeys = frozenset(),
    server_first: bool = False,
    udp_responses: int | None = None,
    udp_session_timeout_ms: int | None = None,
    summary: str = "",
) -> Callable[[Callable[[bytes], Identification]], Protocol]:
    r"""Return a decorator that makes a protocol from a function.

    ::

        @define_protocol("knock", max_bytes=6, prefixes=(b"KNOCK\n",))
        def knock(data: bytes) -> Identification:
            if data.startswith(b"KNOCK\n"):
                return ProtocolMatch()
            return NEED_MORE if b"KNOCK\n".startswith(data) else NO

    The arguments are the attributes of `Protocol`. The function becomes `Protocol.identify`.

    Raises:
        ValueError: arguments are not valid; the message names each mistake.
    """

    def decorate(identify: Callable[[bytes], Identification]) -> Protocol:
        protocol = _FunctionProtocol(identify)
        protocol.name = name
        protocol.aliases = aliases
        protocol.transport = Transport(transport)
        protocol.strength = strength
        protocol.max_bytes = max_bytes
        protocol.prefixes = prefixes
        protocol.metadata_keys = metadata_keys
        protocol.server_first = server_first
        protocol.udp_responses = udp_responses
        protocol.udp_session_timeout_ms = udp_session_timeout_ms
        protocol.summary = summary or (identify.__doc__ or "").strip().partition("\n")[0]
        if problems := list(problems_of(protocol)):
            raise ValueError("; ".join(problems))
        return protocol

    return decorate


_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,63}")


def valid_name(name: object) -> str:
    """Return `name` if it is valid as a name in a configuration, such as a protocol's name or a route's id.

    Raises:
        ValueError: the name is not valid.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        hint = f": write '{name.lower()}'" if isinstance(name, str) and _NAME.fullmatch(name.lower()) else ""
        raise ValueError(
            f"a name is up to 64 lower-case letters, digits, _ and -, starting with a letter{hint}"
        )
    return name


def problems_of_name(name: object) -> Iterator[str]:
    """Yield a message if the name of an object, as used in configurations, violates the contract."""
    try:
        valid_name(name)
    except ValueError as error:
        yield f"name {shown(name)}: {error}"


def problems_of_settings(what: str, settings: Any, *, needs_defaults: bool = False) -> Iterator[str]:
    """Yield the violation of the contract in a type of settings, if there is one."""
    config = getattr(settings, "__struct_config__", None)
    if config is None or not (config.frozen and config.forbid_unknown_fields):
        yield f"{what} is {shown(settings)}, not a Struct that is frozen and forbids unknown fields"
    elif needs_defaults and any(field.required for field in fields(settings)):
        yield f"{what} is {shown(settings)}, which has a field without a default"


def problems_of(protocol: object) -> Iterator[str]:
    """Yield each violation of the contract in an object that a plugin returns as a protocol."""
    if not isinstance(protocol, Protocol):
        yield f"{shown(protocol)} is not a Protocol"
        return
    name = getattr(protocol, "name", None)
    if invalid := list(problems_of_name(name)):
        yield from invalid
        return
    if not _is_all(protocol.aliases, tuple, str):
        yield f"{name}: aliases is {kind_of(protocol.aliases)}, not a tuple of str"
    else:
        yield from (
            f"{name}: alias: {problem}" for one in protocol.aliases for problem in problems_of_name(one)
        )
    if not isinstance(protocol.transport, Transport):
        yield f"{name}: transport is {shown(protocol.transport)}, not a Transport"
    if not isinstance(protocol.strength, Strength):
        yield f"{name}: strength is {shown(protocol.strength)}, not a Strength"
    yield from problems_of_settings(f"{name}: settings_type", protocol.settings_type, needs_defaults=True)
    max_bytes = getattr(protocol, "max_bytes", None)
    if type(max_bytes) is not int or not 1 <= max_bytes <= MAX_BYTES_LIMIT:
        yield f"{name}: max_bytes is {shown(max_bytes)}, not an int between 1 and {MAX_BYTES_LIMIT}"
    if not _is_all(protocol.prefixes, tuple, bytes) or not all(protocol.prefixes):
        yield f"{name}: prefixes is {kind_of(protocol.prefixes)}, not a tuple of non-empty bytes"
    if (problem := problem_of_keys(protocol.metadata_keys)) is not None:
        yield f"{name}: {problem}"
    yield from _problems_of_sessions(protocol)
    yield from _problems_of_identify(protocol)


def _problems_of_identify(protocol: Protocol) -> Iterator[str]:
    identify = getattr(protocol, "_function", protocol.identify)
    if not callable(identify):
        yield f"{protocol.name}: identify is not callable"
    elif is_asynchronous(identify):
        message = "identify is async, but must return its answer at once: write def, not async def"
        yield f"{protocol.name}: {message}"


def is_asynchronous(function: object) -> bool:
    """Return whether a call of a function returns a coroutine or an asynchronous generator."""
    return any(
        inspect.iscoroutinefunction(one) or inspect.isasyncgenfunction(one)
        for one in (function, getattr(function, "__call__", None))  # noqa: B004 - an object may be callable
    )


def problems_of_answer(answer: object) -> Iterator[str]:
    """Yield each violation of the contract in an answer, but not in the metadata of a match."""
    if isinstance(answer, NeedMore):
        if type(answer.at) is not int or answer.at < 0 or type(answer.recognised) is not bool:
            yield "NeedMore needs an int of at least 0 as at, and a bool as recognised"
    elif not isinstance(answer, ProtocolMatch | Verdict):
        yield f"{shown(answer)} is not an answer"


def problems_of_metadata(protocol: Protocol, match: ProtocolMatch) -> Iterator[str]:
    """Yield each violation of the contract in the metadata and the pending keys of a match.

    Raises:
        BaseException: the function that reads the metadata of a `DeferredMatch` raised this exception.
    """
    metadata, pending = match.metadata, match.pending
    if not isinstance(metadata, Mapping):
        yield f"metadata is a {type(metadata).__name__}, not a mapping"
        return
    if not isinstance(pending, frozenset):
        yield f"pending is a {type(pending).__name__}, not a frozenset"
        return
    if type(match.pending_at) is not int or match.pending_at < 0:
        yield f"pending_at is {shown(match.pending_at)}, not an int of at least 0"
    kinds = kinds_of(protocol.metadata_keys)
    unknown = sorted(str(key) for key in {*metadata, *pending} - kinds.keys())
    if unknown:
        yield f"{protocol.name} does not declare the metadata keys {', '.join(unknown)}"
    for key, value in metadata.items():
        kind = kinds.get(key, MetadataKind.ANY)
        if not isinstance(value, types_of(kind)) or not is_metadata_value(value):
            yield f"metadata {key} is {type(value).__name__}, not {type_name(kind)}"


def plain(value: MetadataValue) -> MetadataValue:
    """Return a value without the methods of a plugin's subclass, which could raise exceptions later."""
    if isinstance(value, str):
        return str.__str__(value)
    return tuple(map(str.__str__, value)) if isinstance(value, tuple) else value


def _problems_of_sessions(protocol: Protocol) -> Iterator[str]:
    for key, least, most in _OF_SESSIONS:
        value = getattr(protocol, key)
        if value is None:
            continue
        if type(value) is not int or not least <= value <= most:
            yield f"{protocol.name}: {key} is {shown(value)}, not None or an int between {least} and {most}"
        elif protocol.transport is not Transport.UDP:
            yield f"{protocol.name}: {key} is for UDP only: leave it out of a protocol for TCP"


def _is_all(value: object, collection: type, item: type) -> bool:
    return isinstance(value, collection) and all(isinstance(one, item) for one in value)  # type: ignore[attr-defined]
