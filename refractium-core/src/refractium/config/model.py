"""The configuration file as types: what it may say, with its defaults.

The structs hold what is written. Properties of a `RouteConfig` give it in one form: always a tuple, parsed,
names in lower case. The functions that read single values are what `load` checks them with, so what it lets
through never raises here.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias

from msgspec import Meta, Struct

from refractium.addresses.address import Address
from refractium.config.values import (
    request_host,
    server_name,
)
from refractium.contract import Transport
from refractium.identify.patterns import Hex, Pattern, Regex, Text
from refractium.routing import BALANCERS, Member
from refractium.settings import Action, HealthSettings, Milliseconds, ProxyVersion, Settings
from refractium.system.users import Identity, identity_of
from refractium.wire.text import text_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

Finding: TypeAlias = tuple[str, str]
"""A key path and a message."""
Routes: TypeAlias = "Sequence[tuple[str, RouteConfig]]"
"""Routes, each with the key path or flag that it comes from."""
Listeners: TypeAlias = "Sequence[tuple[str, ListenerConfig]]"
"""Listeners, each with its key path."""

_AddressText = Annotated[str, Meta(description="HOST:PORT, [IPV6]:PORT or unix:PATH")]
_Names = str | tuple[str, ...]
_Allow = Annotated[
    tuple[str, ...], Meta(description="Addresses and networks of the only clients that are served.")
]
_Deny = Annotated[
    tuple[str, ...],
    Meta(description="Addresses and networks of clients that are never served."),
]


class HookConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A packet hook with settings of its own, which come before those of ``[plugins.ID]``."""

    name: Annotated[str, Meta(description="The hook, as `refractium plugins list` names it.")]
    options: dict[str, Any] = {}
    """The keys that are the hook's own. In the file they stand beside the name."""


class ServerConfig(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is listened on, and the limits and timeouts."""

    bind: Annotated[str, Meta(description="The address listened on: an IP address or a host name.")] = (
        "0.0.0.0"  # noqa: S104 - a multiplexer is there for the network
    )
    port: Annotated[int, Meta(ge=0, le=65_535, description="0 takes any free port, and prints it.")] = 8080
    allow: _Allow = ()
    deny: _Deny = ()
    hot_reload: Annotated[
        bool, Meta(description="Whether a changed file is taken over at once; SIGHUP does it in any case.")
    ] = True
    fallback_tcp: Annotated[
        _AddressText | None, Meta(description="Where connections go that no route matches; else closed.")
    ] = None
    fallback_udp: Annotated[
        _AddressText | None, Meta(description="Where datagrams go that no route matches; else dropped.")
    ] = None
    hooks: Annotated[
        tuple[str | HookConfig, ...],
        Meta(description="Packet hooks of every route and of the fallbacks."),
    ] = ()
    workers: Annotated[
        Annotated[int, Meta(ge=1, le=256)] | Literal["auto"],
        Meta(description='Processes that serve; "auto": as many as there are processors.'),
    ] = 1
    control: Annotated[
        str | None, Meta(description="The control socket. Without it: one by the port, in a usual place.")
    ] = None
    user: Annotated[
        str | int | None,
        Meta(description="The user to run as once all ports are bound: a name or a number. Else: no change."),
    ] = None
    group: Annotated[
        str | int | None,
        Meta(description="The group to run as: a name or a number. Without it: the user's primary group."),
    ] = None

    @property
    def worker_count(self) -> int:
        """How many processes serve: of the processors, those that this one may use count."""
        return len(os.sched_getaffinity(0)) if self.workers == "auto" else self.workers

    @property
    def identity(self) -> Identity | None:
        """The user and group to run as; None keeps those that the program was started with."""
        return identity_of(self.user, self.group) if self.user is not None else None


class ListenerConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One of several addresses that are listened on, and what is served there."""

    bind: Annotated[str, Meta(description="The address listened on: an IP address or a host name.")] = (
        "0.0.0.0"  # noqa: S104 - as that of the server
    )
    port: Annotated[int, Meta(ge=0, le=65_535, description="0 takes any free port, and prints it.")]
    transports: Annotated[
        tuple[Transport, ...], Meta(min_length=1, description="Those that are served there.")
    ] = tuple(Transport)
    routes: Annotated[
        tuple[str, ...] | None,
        Meta(description="Ids of routes, and protocols for all routes of theirs. Without it: all routes."),
    ] = None
    allow: _Allow = ()
    deny: _Deny = ()

    def serves(self, route: RouteConfig) -> bool:
        """Whether a route is among those that it serves."""
        return self.routes is None or route.label in self.routes or route.name in self.routes

    @property
    def name(self) -> str:
        """What it is called: where it listens."""
        return listener_name(self.bind, self.port)


def listener_name(bind: str, port: int) -> str:
    """What a listener is called: where it listens."""
    return f"[{bind}]:{port}" if ":" in bind else f"{bind}:{port}"


class PatternTable(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A pattern that is more than a string: either bytes at a fixed offset or a regular expression."""

    hex: Annotated[str, Meta(description="Bytes as hex digits; blanks between bytes are ignored.")] | None = (
        None
    )
    offset: Annotated[int, Meta(ge=0, le=65_535, description="Where the bytes must be, from 0.")] = 0
    regex: Annotated[str, Meta(description="A regex on bytes, anchored where it starts with ^.")] | None = (
        None
    )


class HealthConfig(HealthSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the backends of a route are watched."""

    kind: Annotated[str, Meta(description="How they are checked: tcp, send_expect, http, dns or none.")]
    options: dict[str, Any] = {}  # noqa: RUF012 - a Struct copies it
    """The keys that are the kind's own. In the file they stand beside the others."""


class RouteConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A protocol, the conditions under which the route applies, and where its clients go."""

    name: Annotated[str, Meta(description="The protocol: an installed one, or a new one with `patterns`.")]
    forward_to: Annotated[
        str | Member | tuple[str | Member, ...],
        Meta(description="The backends: HOST:PORT, [IPV6]:PORT or unix:PATH, or a table with an address."),
    ] = ()
    id: Annotated[
        str | None,
        Meta(description="What logs, metrics and listeners call the route. Without it: as the protocol."),
    ] = None
    sni: Annotated[_Names, Meta(description="TLS server names; *.example.org covers one label.")] = ()
    alpn: Annotated[_Names, Meta(description="Application protocols, one of which TLS must offer.")] = ()
    host: Annotated[_Names, Meta(description="Hosts of requests; *.example.org covers one label.")] = ()
    patterns: tuple[str | PatternTable, ...] | None = None
    transport: Annotated[
        Transport | None, Meta(description="Without it: every transport that the protocol has.")
    ] = None
    on_timeout: Annotated[
        bool | None,
        Meta(description="Whether silent clients come here. Without it: if the server speaks first."),
    ] = None
    udp_session_timeout_ms: Annotated[
        Milliseconds | None, Meta(description="Silence that ends a UDP session. Without it: as in [server].")
    ] = None
    balance: Annotated[str, Meta(description=f"How a backend is chosen: {', '.join(BALANCERS)}.")] = (
        "round_robin"
    )
    health: Annotated[
        HealthConfig | None,
        Meta(description="How backends are watched. Without it: by whether clients reach them."),
    ] = None
    proxy_protocol: Annotated[
        ProxyVersion | None,
        Meta(description="The PROXY header that tells backends who the client is. Without it: none."),
    ] = None
    allow: _Allow = ()
    deny: _Deny = ()
    action: Annotated[
        Action | None,
        Meta(description="Instead of forward_to: close its clients (reject), or reset them (reset)."),
    ] = None
    hooks: Annotated[
        tuple[str | HookConfig, ...],
        Meta(description="Packet hooks that are told of what passes; a table has settings of its own."),
    ] = ()

    @property
    def label(self) -> str:
        """What the route is called."""
        return self.id or self.name

    @property
    def members(self) -> tuple[Member, ...]:
        """The backends, all in the one form."""
        written = (self.forward_to,) if isinstance(self.forward_to, str | Member) else self.forward_to
        return tuple(Member(one) if isinstance(one, str) else one for one in written)

    @property
    def backends(self) -> tuple[Address, ...]:
        return tuple(Address.parse(member.address) for member in self.members)

    @property
    def snis(self) -> tuple[str, ...]:
        return tuple(map(server_name, several(self.sni)))

    @property
    def alpns(self) -> tuple[str, ...]:
        return several(self.alpn)

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(map(request_host, several(self.host)))

    @property
    def pattern_set(self) -> tuple[Pattern, ...]:
        """What `patterns` says; empty for an installed protocol."""
        return tuple(map(pattern, self.patterns or ()))


class PluginsConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which plugins are left out, and the settings of the others."""

    disable: Annotated[tuple[str, ...], Meta(description="Ids of plugins that are not even imported.")] = ()
    settings: dict[str, dict[str, Any]] = {}
    """The tables of plugins, by id. In the file each is ``[plugins.ID]``."""


class LogConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The limits of the log."""

    max_lines_per_second: Annotated[
        int,
        Meta(ge=1, le=1_000_000, description="Connections logged by each process, on average over 10 s."),
    ] = 1000


class MetricsConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How metrics are served."""

    bind: Annotated[
        str | None,
        Meta(description="HOST:PORT to serve them on; port 0 takes any free one. Else not served."),
    ] = None
    hosts: Annotated[
        tuple[str, ...],
        Meta(description="Names of this machine that a request may have as its Host, beside its addresses."),
    ] = ()


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole file. A fallback may stand at its top level too; loading moves it into `server`."""

    server: ServerConfig = ServerConfig()
    listeners: tuple[ListenerConfig, ...] = ()
    protocols: tuple[RouteConfig, ...] = ()
    log: LogConfig = LogConfig()
    metrics: MetricsConfig = MetricsConfig()
    plugins: PluginsConfig = PluginsConfig()


def listeners_of(config: Config, server: ServerConfig) -> list[tuple[str, ListenerConfig]]:
    """Those of a file, each with its key path.

    Where it has none, it is the one that `server`, which outranks the file's, describes.
    """
    if config.listeners:
        return [(f"listeners[{at}]", one) for at, one in enumerate(config.listeners)]
    only = ListenerConfig(bind=server.bind, port=server.port, allow=server.allow, deny=server.deny)
    return [("server", only)]


FALLBACKS: Final = ("fallback_tcp", "fallback_udp")
"""The keys of ``[server]`` that may stand at the top level as well."""


def several(names: _Names) -> tuple[str, ...]:
    """One name or several, as several."""
    return (names,) if isinstance(names, str) else names


def pattern(written: str | PatternTable) -> Pattern:
    """A pattern as the identifier takes it.

    Raises:
        ValueError: it says nothing, or two things at once, or no bytes.
    """
    if isinstance(written, str):
        return Text(text_bytes(written))
    if (written.hex is None) == (written.regex is None):
        raise ValueError("a pattern in braces has either hex or regex")
    if written.regex is not None:
        if written.offset:
            raise ValueError("offset goes with hex; a regex has its place in itself")
        return Regex(written.regex)
    try:
        return Hex(bytes.fromhex(written.hex or ""), written.offset)
    except ValueError:
        raise ValueError("hex is pairs of hex digits: 'ff 00'") from None
