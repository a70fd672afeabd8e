"""Routes as an operator or a program defines them: each has a protocol, conditions and backends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias, get_args

import msgspec
from msgspec import Meta, Struct

from refractium.addresses.address import Address
from refractium.addresses.networks import AccessRules, access_of, network_problems
from refractium.backends.health_settings import PASSIVE, Health
from refractium.contract import Balancer, Protocol, Transport
from refractium.contract.metadata import kinds_of
from refractium.errors import ConfigError
from refractium.hooks import HookUse, UsedHook, used
from refractium.identify.everything import ANY, FALLBACK, AnyProtocol
from refractium.problems import Problem, in_toml_words, key_path, suggestion, unknown_name
from refractium.routing.balancers import BALANCERS, DEFAULT
from refractium.routing.conditions import condition_pattern, written
from refractium.settings import Action, Milliseconds, ProxyVersion, Responses

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from refractium.contract import MetadataKind
    from refractium.routing.conditions import ConditionPattern, Conditions
    from refractium.routing.names import NameRegex

Names: TypeAlias = "str | Sequence[str]"
NamePatterns: TypeAlias = "str | NameRegex | Sequence[str | NameRegex]"
ConditionPatterns: TypeAlias = "str | bool | NameRegex | Sequence[str | bool | NameRegex]"
SHORT_FORMS: Final = ("sni", "host", "alpn")
"""The metadata keys that are also arguments of `Route`, and keys of a route in the file."""
_LIMITS: Final = {
    "idle_timeout_ms": Milliseconds,
    "half_close_timeout_ms": Milliseconds,
    "udp_session_timeout_ms": Milliseconds,
    "udp_responses": Responses,
}
"""The arguments of `Route` that are numbers, each with its type."""
_OF_CONNECTIONS: Final = ("idle_timeout_ms", "half_close_timeout_ms")
"""The timeouts that only connections have."""


class Member(Struct, frozen=True, forbid_unknown_fields=True):
    """A backend of a route: its address, its weight, and whether the backend is a backup."""

    address: Annotated[str, Meta(description="HOST:PORT, [IPV6]:PORT or unix:PATH")]
    weight: Annotated[
        int, Meta(ge=1, le=1000, description="The backend's share compared with the other backends' shares.")
    ] = 1
    backup: Annotated[
        bool,
        Meta(description="Whether the backend is a backup, for clients that cannot reach any other backend."),
    ] = False


@dataclass(frozen=True, eq=False)
class Route:
    """A protocol, the conditions that a client must meet, and the backends for these clients.

    Args:
        protocol: the protocol, or several `Protocol` objects with one name and one transport that recognise
            the protocol by different evidence.
        forward_to: the backend or backends, each ``HOST:PORT``, ``[IPV6]:PORT``, ``unix:PATH`` or a `Member`.
            The route spreads its clients over several backends.
        sni: TLS server names; the client must ask for one of these names. ``*.example.org`` stands for names
            with exactly one label before ``example.org``, ``**.example.org`` for names with one or more
            labels. A `NameRegex` stands for the names that match a regular expression.
        alpn: application protocols (ALPN); the client must offer one of these protocols. ``*`` stands for any
            characters, and a `NameRegex` for the protocols that match a regular expression.
        host: host names in the form of `sni`; the client must ask for one of these names. Only for protocols
            whose metadata can contain a host.
        on_timeout: whether the route gets the clients that stay silent. By default, the route gets silent
            clients if the server of the protocol speaks first.
        udp_session_timeout_ms: the time (ms) that a UDP session may be silent; by default the time of the
            protocol, else the time in the settings.
        udp_responses: the number of answers to each datagram of a client, after which a UDP session ends; by
            default the number of the protocol. See `Protocol.udp_responses`.
        balance: the name of a built-in balancer, or the class of another balancer.
        health: the health check of the backends. By default, only clients that cannot reach a backend show
            that the backend is down.
        proxy_protocol: the version of the PROXY header that Refractium sends to a backend before any other
            bytes, to name the client; by default no header. Routes for datagrams accept only ``v2``.
        id: the route's name in logs, status, metrics and listeners; by default the protocol's name.
        allow: the addresses and networks whose clients may use the route; empty for all clients. Refractium
            refuses other clients, unless a route with the same protocol and conditions admits them.
        deny: the addresses and networks whose clients may not use the route, even if `allow` contains these
            addresses.
        action: the action instead of `forward_to`: refuse clients (``reject``), or reset their connections
            (``reset``).
        hooks: the packet hooks of the route. Each hook is a class, or a pair of a class and its settings.
        idle_timeout_ms: the time (ms) that a connection may be silent; by default the time in the settings.
            Only for routes for TCP.
        client: addresses and networks, such as ``10.0.0.0/8``, that must contain the client's address. For
            other clients, the route does not match. The address of a client behind a trusted proxy is the
            address in its PROXY header.
        half_close_timeout_ms: the time (ms) that a half-closed connection may be silent; by default the time
            in the settings. Only for routes for TCP.
        match: conditions on metadata by key, for every key in `Protocol.metadata_keys`. The client must match
            one pattern of each key. The `MetadataKind` of the key tells what a pattern can be. The arguments
            `sni`, `host` and `alpn` are short forms of their keys.

    Raises:
        ConfigError: an argument is not valid, or a condition asks for metadata that the protocol lacks.
    """

    protocol: Protocol | Sequence[Protocol]
    forward_to: str | Member | Sequence[str | Member] = ()
    sni: NamePatterns = ()
    alpn: NamePatterns = ()
    host: NamePatterns = ()
    on_timeout: bool | None = None
    udp_session_timeout_ms: int | None = None
    udp_responses: int | None = None
    balance: str | type[Balancer] = DEFAULT
    health: Health = PASSIVE
    proxy_protocol: ProxyVersion | None = None
    id: str | None = None
    allow: Sequence[str] = ()
    deny: Sequence[str] = ()
    action: Action | None = None
    hooks: Sequence[HookUse] = ()
    idle_timeout_ms: int | None = None
    client: Names = ()
    half_close_timeout_ms: int | None = None
    match: Mapping[str, ConditionPatterns] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len({(one.name, one.transport) for one in self.protocols}) != 1:
            alike = "all protocols of a route need one name and one transport"
            raise ConfigError([Problem(alike, where="protocol")])
        if self.label == FALLBACK and not self.takes_the_rest:
            taken = "fallback_tcp and fallback_udp define the route of this name: choose another name"
            raise ConfigError([Problem(taken, where="id" if self.id else "protocol")])
        networks = {"allow": self.allow, "deny": self.deny, "client": self.clients}
        problems = [*self._problems_of_target(), *network_problems(networks)]
        problems += (*hook_problems(self.hooks), *self._problems_of_limits())
        if isinstance(self.balance, str) and self.balance not in BALANCERS:
            problems.append(Problem(unknown_name(self.balance, BALANCERS), where="balance"))
        if self.proxy_protocol is not None and (message := self._problem_of_version(self.proxy_protocol)):
            problems.append(Problem(message, where="proxy_protocol"))
        problems += self._problems_of_conditions()
        if problems:
            raise ConfigError(problems)

    def _problems_of_target(self) -> Iterator[Problem]:
        if self.action is None:
            yield from _member_problems(self.forward_to, self.transport)
        elif self.action not in get_args(Action):
            yield Problem(unknown_name(self.action, get_args(Action)), where="action")
        elif self.members:
            yield Problem("a route has backends or an action: leave one of the two out", where="forward_to")
        elif self.action == "reset" and self.transport is Transport.UDP:
            yield Problem('only a connection can be reset: write "reject"', where="action")

    def _problems_of_conditions(self) -> Iterator[Problem]:
        for key in SHORT_FORMS:
            if getattr(self, key):
                yield from self._problems_of_key(key, key, getattr(self, key))
        for key, patterns in self.match.items():
            where = key_path("match", key)
            if key in SHORT_FORMS and getattr(self, key):
                yield Problem(f"{key} is given twice: leave one of {key} and {where} out", where=where)
            yield from self._problems_of_key(key, where, patterns)

    def _problems_of_key(self, key: str, where: str, patterns: ConditionPatterns) -> Iterator[Problem]:
        kinds = {kinds_of(one.metadata_keys).get(key) for one in self.protocols}
        if None in kinds:
            known = sorted(self.kinds)
            listed = f"there are {', '.join(known)}" if known else "this protocol has no metadata"
            hint = suggestion(key, known) or ":"
            yield Problem(f"protocol {self.name} carries no {key}{hint} {listed}", where=where)
            return
        if len(kinds) > 1:
            yield Problem(f"the protocols of the route declare {key} with different kinds", where=where)
            return
        several = as_tuple(patterns)
        if not several:
            yield Problem("is empty", where=where)
        for at, pattern in enumerate(several):
            try:
                condition_pattern(self.kinds[key], pattern)
            except ValueError as error:
                yield Problem(str(error), where=where if pattern is patterns else f"{where}[{at}]")

    def _problems_of_limits(self) -> Iterator[Problem]:
        for key, kind in _LIMITS.items():
            try:
                msgspec.convert(getattr(self, key), kind | None)
            except msgspec.ValidationError as error:
                yield Problem(in_toml_words(error)[1], where=key)
            if key in _OF_CONNECTIONS and getattr(self, key) is not None and self.transport is Transport.UDP:
                yield Problem("is for connections only: write udp_session_timeout_ms", where=key)
        if self.udp_responses is not None and self.transport is Transport.TCP:
            yield Problem("is for datagrams only: leave it out of a route for TCP", where="udp_responses")

    def _problem_of_version(self, version: ProxyVersion) -> str | None:
        if version not in get_args(ProxyVersion):
            return unknown_name(version, get_args(ProxyVersion))
        if version == "v1" and self.transport is Transport.UDP:
            return 'version 1 is for connections only: write "v2", or transport = "tcp"'
        return None

    @property
    def protocols(self) -> tuple[Protocol, ...]:
        return (self.protocol,) if isinstance(self.protocol, Protocol) else tuple(self.protocol)

    @property
    def name(self) -> str:
        return self.protocols[0].name

    @property
    def transport(self) -> Transport:
        return self.protocols[0].transport

    @property
    def label(self) -> str:
        """The id of the route; the name of its protocol if the route has no id."""
        return self.id or self.name

    @property
    def access(self) -> AccessRules | None:
        """The access rules of the route; None if every client may use the route."""
        return access_of(self.allow, self.deny)

    @property
    def used_hooks(self) -> tuple[UsedHook, ...]:
        """The hooks of the route, each with its settings."""
        return tuple(map(used, self.hooks))

    @property
    def members(self) -> tuple[Member, ...]:
        """The backends of the route, each as a `Member`."""
        return members_of(self.forward_to)

    @property
    def backends(self) -> tuple[Address, ...]:
        return tuple(Address.parse(member.address) for member in self.members)

    @property
    def balancer(self) -> type[Balancer]:
        """The class of the balancer that `balance` names."""
        return BALANCERS[self.balance] if isinstance(self.balance, str) else self.balance

    @cached_property
    def kinds(self) -> Mapping[str, MetadataKind]:
        """The metadata keys of the protocol with their kinds, in the order in which routes compare them."""
        return {key: kind for one in self.protocols for key, kind in kinds_of(one.metadata_keys).items()}

    @cached_property
    def conditions(self) -> Conditions:
        """The patterns that clients must match, by metadata key; host names are in lower case.

        The order of the keys is the order in which routes compare the keys. There is no empty condition.
        """
        asked = {key: getattr(self, key) for key in SHORT_FORMS if getattr(self, key)} | dict(self.match)
        return {
            key: tuple(condition_pattern(kind, one) for one in as_tuple(asked[key]))
            for key, kind in self.kinds.items()
            if key in asked
        }

    @property
    def takes_the_rest(self) -> bool:
        """Whether the route gets the clients that match no other route."""
        return isinstance(self.protocols[0], AnyProtocol)

    @property
    def competes_as(self) -> str:
        """The name of the protocol whose routes compete for a client; ``any`` for the route of a fallback."""
        return ANY if self.takes_the_rest else self.name

    @property
    def clients(self) -> tuple[str, ...]:
        """The networks of `client`; empty if the route does not depend on the client's address."""
        return several(self.client)

    @property
    def all_conditions(self) -> dict[str, tuple[str, ...]]:
        """All conditions of the route as text, by their key path in the configuration file."""
        found = {
            key if key in SHORT_FORMS else key_path("match", key): tuple(map(written, patterns))
            for key, patterns in self.conditions.items()
        }
        return found | ({"client": self.clients} if self.clients else {})

    @property
    def takes_silent(self) -> bool:
        """Whether the route gets the clients that stay silent."""
        if self.on_timeout is None:
            return any(protocol.server_first for protocol in self.protocols)
        return self.on_timeout

    def __str__(self) -> str:
        conditions = [f"{key}={','.join(values)}" for key, values in self.all_conditions.items()]
        return " ".join((self.name, *conditions))


def fallback_route(transport: Transport, addresses: Sequence[str]) -> Route:
    """Return the route that ``fallback_tcp`` or ``fallback_udp`` defines.

    Args:
        transport: the transport of the clients.
        addresses: the addresses of the backends, each ``HOST:PORT``, ``[IPV6]:PORT`` or ``unix:PATH``.

    Raises:
        ConfigError: an address is not valid for the transport.
    """
    return Route(AnyProtocol(transport, FALLBACK), tuple(addresses))


def several(names: Names) -> tuple[str, ...]:
    """Return one name or several names as a tuple."""
    return (names,) if isinstance(names, str) else tuple(names)


def as_tuple(patterns: ConditionPatterns) -> tuple[ConditionPattern, ...]:
    """Return one pattern or several patterns as a tuple."""
    if isinstance(patterns, str) or not isinstance(patterns, Sequence):
        return (patterns,)
    return tuple(patterns)


def backend_address(text: str, transport: Transport) -> Address:
    """Parse the address of a backend, and check that the transport can use the address.

    Raises:
        ValueError: the text is not an address, or is the path of a unix socket while the transport is UDP.
    """
    address = Address.parse(text)
    if address.is_unix and transport is Transport.UDP:
        raise ValueError("a unix socket takes no datagrams here: write HOST:PORT")
    return address


def members_of(written: str | Member | Sequence[str | Member]) -> tuple[Member, ...]:
    """Return the backends in `written`, one backend or a sequence of backends, as `Member` objects."""
    several = (written,) if isinstance(written, str | Member) else written
    return tuple(Member(one) if isinstance(one, str) else one for one in several)


def _member_problems(
    written: str | Member | Sequence[str | Member], transport: Transport
) -> Iterator[Problem]:
    is_alone = isinstance(written, str | Member)
    members = members_of(written)
    if not members:
        yield Problem("no backend is given", where="forward_to")
    for at, member in enumerate(members):
        try:
            backend_address(member.address, transport)
            msgspec.convert(msgspec.structs.asdict(member), Member)
        except ValueError as error:
            yield Problem(str(error), where="forward_to" if is_alone else f"forward_to[{at}]")


def hook_problems(hooks: Sequence[HookUse]) -> Iterator[Problem]:
    """Yield the problems of the hooks of one route, or of all routes."""
    for at, use in enumerate(hooks):
        try:
            used(use)
        except ValueError as error:
            yield Problem(str(error), where=f"hooks[{at}]")
