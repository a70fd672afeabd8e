"""Routes as an operator or a program writes them: a protocol, conditions, backends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeAlias, get_args

import msgspec
from msgspec import Meta, Struct

from refractium.addresses.address import Address
from refractium.addresses.networks import Access, access_of, network_problems
from refractium.backends.health import PASSIVE, Health
from refractium.contract import Balancer, Protocol, Transport
from refractium.errors import ConfigError
from refractium.hooks import HookUse, UsedHook, used
from refractium.problems import Problem, unknown_name
from refractium.routing.balancers import BALANCERS, DEFAULT
from refractium.settings import Action, ProxyVersion

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Names: TypeAlias = "str | Sequence[str]"


class Member(Struct, frozen=True, forbid_unknown_fields=True):
    """A backend of a route, and its part in the balance."""

    address: Annotated[str, Meta(description="HOST:PORT, [IPV6]:PORT or unix:PATH")]
    weight: Annotated[int, Meta(ge=1, le=1000, description="Its share compared with the others'.")] = 1
    backup: Annotated[bool, Meta(description="Whether it is used only when none of the others is up.")] = (
        False
    )


@dataclass(frozen=True, eq=False)
class Route:
    """A protocol, the conditions under which the route applies, and where its clients go.

    Args:
        protocol: the protocol, or several that are one protocol by different evidence (all of one name and
            transport).
        forward_to: ``HOST:PORT``, ``[IPV6]:PORT`` or ``unix:PATH``, or a `Member` with one of them; several
            are balanced.
        sni: names of which the client's must be one; ``*.example.org`` covers one label.
        alpn: application protocols of which the client must offer one.
        host: as `sni`, for protocols that carry a host.
        on_timeout: whether the route gets the clients that stay silent. By default it does if the protocol
            is one whose server speaks first.
        udp_session_timeout_ms: how long a UDP session may be silent (ms); by default as in the settings.
        balance: how a backend is chosen: the name of a built-in way, or a class of another one.
        health: how its backends are watched; by default only by whether clients reach them.
        proxy_protocol: the version of the PROXY header that its backends are sent first, which tells them
            who the client is; by default they are sent none. Datagrams have version 2 only.
        id: what logs, status, metrics and listeners call the route, where that is not to be its protocol's
            name.
        allow: the addresses and networks whose clients may use it; none for all. Others are closed, whatever
            other route there is.
        deny: those whose clients may not, even if they are allowed.
        action: instead of `forward_to`: close its clients (``reject``), or reset them (``reset``).
        hooks: packet hooks that are told of what passes: classes, each alone or in a pair with its settings.

    Raises:
        ConfigError: an argument is not valid, or asks for what the protocol cannot tell.
    """

    protocol: Protocol | Sequence[Protocol]
    forward_to: str | Member | Sequence[str | Member] = ()
    sni: Names = ()
    alpn: Names = ()
    host: Names = ()
    on_timeout: bool | None = None
    udp_session_timeout_ms: int | None = None
    balance: str | type[Balancer] = DEFAULT
    health: Health = PASSIVE
    proxy_protocol: ProxyVersion | None = None
    id: str | None = None
    allow: Sequence[str] = ()
    deny: Sequence[str] = ()
    action: Action | None = None
    hooks: Sequence[HookUse] = ()

    def __post_init__(self) -> None:
        problems = [*self._problems_of_target(), *network_problems(self.allow, self.deny)]
        problems += hook_problems(self.hooks)
        if isinstance(self.balance, str) and self.balance not in BALANCERS:
            problems.append(Problem(unknown_name(self.balance, BALANCERS), where="balance"))
        if self.proxy_protocol is not None and (message := self._problem_of_version(self.proxy_protocol)):
            problems.append(Problem(message, where="proxy_protocol"))
        if len({(one.name, one.transport) for one in self.protocols}) != 1:
            problems.append(Problem("not one protocol of one name and transport", where="protocol"))
        for key, names in self.conditions.items():
            if names and not all(key in one.metadata_keys for one in self.protocols):
                problems.append(Problem(f"{self.name} tells no {key}, so no client would match", where=key))
        if problems:
            raise ConfigError(problems)

    def _problems_of_target(self) -> Iterator[Problem]:
        if self.action is None:
            yield from _member_problems(self.members)
        elif self.action not in get_args(Action):
            yield Problem(unknown_name(self.action, get_args(Action)), where="action")
        elif self.members:
            yield Problem("with an action its clients go nowhere", where="forward_to")
        elif self.action == "reset" and self.transport is Transport.UDP:
            yield Problem('only a connection can be reset: write "reject"', where="action")

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
        """What it is called: its id, if it has one, else its protocol's name."""
        return self.id or self.name

    @property
    def access(self) -> Access | None:
        """Whose clients may use it; None for everybody's."""
        return access_of(self.allow, self.deny)

    @property
    def used_hooks(self) -> tuple[UsedHook, ...]:
        """The hooks, all with their settings."""
        return tuple(map(used, self.hooks))

    @property
    def members(self) -> tuple[Member, ...]:
        """The backends, all in the one form."""
        written = (self.forward_to,) if isinstance(self.forward_to, str | Member) else self.forward_to
        return tuple(Member(one) if isinstance(one, str) else one for one in written)

    @property
    def backends(self) -> tuple[Address, ...]:
        return tuple(Address.parse(member.address) for member in self.members)

    @property
    def balancer(self) -> type[Balancer]:
        """What `balance` says."""
        return BALANCERS[self.balance] if isinstance(self.balance, str) else self.balance

    @property
    def conditions(self) -> dict[str, tuple[str, ...]]:
        """The names asked for, by metadata key; host names in lower case."""
        return {
            "sni": tuple(name.lower().removesuffix(".") for name in _several(self.sni)),
            "alpn": _several(self.alpn),
            "host": tuple(name.lower().removesuffix(".") for name in _several(self.host)),
        }

    @property
    def takes_silent(self) -> bool:
        """Whether the clients that stay silent are this route's."""
        if self.on_timeout is None:
            return any(protocol.server_first for protocol in self.protocols)
        return self.on_timeout

    def __str__(self) -> str:
        conditions = [f"{key}={','.join(names)}" for key, names in self.conditions.items() if names]
        return " ".join((self.name, *conditions))


def _several(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _member_problems(members: Sequence[Member]) -> Iterator[Problem]:
    if not members:
        yield Problem("no backend is given", where="forward_to")
    for member in members:
        try:
            Address.parse(member.address)
            msgspec.convert(msgspec.structs.asdict(member), Member)
        except ValueError as error:
            yield Problem(str(error), where="forward_to")


def hook_problems(hooks: Sequence[HookUse]) -> Iterator[Problem]:
    """What is wrong with the hooks of a route, or of all."""
    for at, use in enumerate(hooks):
        try:
            used(use)
        except ValueError as error:
            yield Problem(str(error), where=f"hooks[{at}]")
