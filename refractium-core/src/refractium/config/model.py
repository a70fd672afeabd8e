"""The types of the configuration file, with its keys and their defaults.

The structs contain the values as they are written in the file. Properties of `RouteConfig` return the
values in one form: always a tuple, and parsed. The properties use the functions with which `decode` checks
values. So the properties never raise for a value that `decode` has accepted.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias

from msgspec import Meta, Struct

from refractium.addresses.address import Address, join_host_port
from refractium.contract import Transport
from refractium.identify.patterns import Hex, Pattern, Regex, Text
from refractium.routing import BALANCERS, ListenerRules, Member
from refractium.routing.names import NameRegex
from refractium.routing.route import members_of
from refractium.settings import Action, HealthSettings, Milliseconds, ProxyVersion, Responses, Settings
from refractium.system.users import Identity, identity_of
from refractium.wire.text import hex_bytes, text_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

Routes: TypeAlias = "Sequence[tuple[str, RouteConfig]]"
"""Routes, each with the key path or the flag that defines the route."""
Listeners: TypeAlias = "Sequence[tuple[str, ListenerConfig]]"
"""Listeners, each with its key path."""

_AddressText = Annotated[str, Meta(description="HOST:PORT, [IPV6]:PORT or unix:PATH")]
_Texts = str | tuple[str, ...]
_Names = str | NameRegex | tuple[str | NameRegex, ...]
_Patterns = str | bool | NameRegex | tuple[str | bool | NameRegex, ...]
_Allow = Annotated[
    tuple[str, ...],
    Meta(description="Addresses and networks of the only clients that Refractium serves."),
]
_Deny = Annotated[
    tuple[str, ...],
    Meta(description="Addresses and networks of clients that Refractium never serves."),
]


class HookConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A packet hook with settings of its own, which outrank the settings of ``[plugins.ID]``."""

    name: Annotated[str, Meta(description="The name of the hook, as in `refractium plugins list`.")]
    options: dict[str, Any] = {}
    """The settings of the hook. In the file, these keys stand beside the name."""


class ServerConfig(Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The table ``[server]``: the address to listen on, limits, timeouts and the processes that serve."""

    bind: Annotated[str, Meta(description="The address to listen on: an IP address or a host name.")] = (
        "0.0.0.0"  # noqa: S104 - a multiplexer serves the network
    )
    port: Annotated[
        int,
        Meta(ge=0, le=65_535, description="The port to listen on. 0 means any free port, which is printed."),
    ] = 8080
    allow: _Allow = ()
    deny: _Deny = ()
    hot_reload: Annotated[
        bool,
        Meta(
            description="Whether Refractium applies a changed file at once. SIGHUP always applies the file."
        ),
    ] = True
    fallback_tcp: Annotated[
        _AddressText | None,
        Meta(description="The address for connections without a matching route. By default, close them."),
    ] = None
    fallback_udp: Annotated[
        _AddressText | None,
        Meta(description="The address for datagrams without a matching route. By default, drop them."),
    ] = None
    hooks: Annotated[
        tuple[str | HookConfig, ...],
        Meta(description="Packet hooks of every route and of the fallbacks."),
    ] = ()
    workers: Annotated[
        Annotated[int, Meta(ge=1, le=256)] | Literal["auto"],
        Meta(description='The number of processes that serve. "auto" starts one for each processor.'),
    ] = 1
    control: Annotated[
        str | None,
        Meta(description="The path of the control socket. The default path contains the port."),
    ] = None
    user: Annotated[
        str | int | None,
        Meta(
            description="Name or number of the user to change to once all ports are bound. By default, none."
        ),
    ] = None
    group: Annotated[
        str | int | None,
        Meta(description="Name or number of the group to change to. By default, the user's primary group."),
    ] = None

    @property
    def fallbacks(self) -> Sequence[tuple[Transport, str]]:
        """The transport and the address of each fallback."""
        written = ((Transport.TCP, self.fallback_tcp), (Transport.UDP, self.fallback_udp))
        return [(transport, address) for transport, address in written if address is not None]

    @property
    def worker_count(self) -> int:
        """The number of processes that serve; ``auto`` counts the processors that this process may use."""
        return len(os.sched_getaffinity(0)) if self.workers == "auto" else self.workers

    @property
    def identity(self) -> Identity | None:
        """The user and group to run as; None for the user and group that started the program."""
        return identity_of(self.user, self.group) if self.user is not None else None


class ListenerConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table ``[[listeners]]``: one of several addresses to listen on, and the routes served there."""

    bind: Annotated[str, Meta(description="The address to listen on: an IP address or a host name.")] = (
        "0.0.0.0"  # noqa: S104 - a multiplexer serves the network
    )
    port: Annotated[
        int,
        Meta(ge=0, le=65_535, description="The port to listen on. 0 means any free port, which is printed."),
    ]
    transports: Annotated[
        tuple[Transport, ...],
        Meta(min_length=1, description="The transports that this listener serves."),
    ] = tuple(Transport)
    routes: Annotated[
        tuple[str, ...] | None,
        Meta(description="Ids or protocols of the routes that the listener serves. By default, all."),
    ] = None
    allow: _Allow = ()
    deny: _Deny = ()
    peek_timeout_ms: Annotated[
        Milliseconds | None,
        Meta(description="Time (ms) for a client's first bytes. By default, the value of [server]."),
    ] = None

    @property
    def rules(self) -> ListenerRules:
        """The routes and the clients that the listener serves, and its peek timeout."""
        return ListenerRules(self.routes, self.allow, self.deny, self.peek_timeout_ms)

    @property
    def name(self) -> str:
        """The name of the listener: its address and port."""
        return join_host_port(self.bind, self.port)


class PatternTable(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A pattern written as a table: either bytes at a fixed offset or a regular expression."""

    hex: Annotated[str, Meta(description="Bytes as hex digits; blanks may separate bytes.")] | None = None
    offset: Annotated[
        int,
        Meta(ge=0, le=65_535, description="The offset of `hex` from the first byte of the client (bytes)."),
    ] = 0
    regex: Annotated[str, Meta(description="A regular expression on bytes; ^ anchors its start.")] | None = (
        None
    )


class HealthConfig(HealthSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The health check of the backends of a route."""

    kind: Annotated[str, Meta(description="The kind of check: tcp, send_expect, http, dns or none.")]
    options: dict[str, Any] = {}  # noqa: RUF012 - a Struct copies the default
    """The keys that only this kind has. In the file, these keys stand beside the shared keys."""


class RouteConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table ``[[protocols]]``: a route with its protocol, its conditions and its backends."""

    name: Annotated[
        str, Meta(description="The protocol: an installed protocol, or a new name with `patterns`.")
    ]
    forward_to: Annotated[
        str | Member | tuple[str | Member, ...],
        Meta(description="The backends: HOST:PORT, [IPV6]:PORT, unix:PATH, or a table with an address."),
    ] = ()
    id: Annotated[
        str | None,
        Meta(description="The name of the route in logs, metrics and listeners. By default, the protocol."),
    ] = None
    sni: Annotated[_Names, Meta(description="TLS server names, or wildcards and regexes for them.")] = ()
    alpn: Annotated[_Names, Meta(description="ALPN protocols; TLS clients must offer one of them.")] = ()
    host: Annotated[_Names, Meta(description="Hosts of requests, or wildcards and regexes for them.")] = ()
    match: Annotated[
        dict[str, _Patterns],
        Meta(description="Conditions by metadata key: texts with *, flags, regexes, or lists of them."),
    ] = {}
    client: Annotated[
        _Texts, Meta(description="Addresses and networks of clients; other clients do not match the route.")
    ] = ()
    patterns: tuple[str | PatternTable, ...] | None = None
    transport: Annotated[
        Transport | None, Meta(description="The transport. By default, every transport of the protocol.")
    ] = None
    on_timeout: Annotated[
        bool | None,
        Meta(description="Whether the route gets silent clients. By default, if the server speaks first."),
    ] = None
    idle_timeout_ms: Annotated[
        Milliseconds | None,
        Meta(description="Silence (ms) that ends a connection. By default, the value of [server]."),
    ] = None
    half_close_timeout_ms: Annotated[
        Milliseconds | None,
        Meta(description="Silence (ms) that ends a half-closed connection. By default, [server]'s value."),
    ] = None
    udp_session_timeout_ms: Annotated[
        Milliseconds | None,
        Meta(description="Silence (ms) that ends a UDP session. By default, as the protocol, or [server]."),
    ] = None
    udp_responses: Annotated[
        Responses | None,
        Meta(description="Answers to each datagram that end a UDP session. By default, as the protocol."),
    ] = None
    balance: Annotated[str, Meta(description=f"The balancing method: {', '.join(BALANCERS)}.")] = (
        "round_robin"
    )
    health: Annotated[
        HealthConfig | None,
        Meta(description="The health check. By default, failed connections show that a backend is down."),
    ] = None
    proxy_protocol: Annotated[
        ProxyVersion | None,
        Meta(description="The PROXY header that tells backends the client's address. By default, none."),
    ] = None
    allow: _Allow = ()
    deny: _Deny = ()
    action: Annotated[
        Action | None,
        Meta(description="Action instead of forward_to: refuse clients, or reset their connections."),
    ] = None
    hooks: Annotated[
        tuple[str | HookConfig, ...],
        Meta(description="Packet hooks of this route: names, or tables with a name and settings."),
    ] = ()
    ignore: Annotated[
        tuple[str, ...],
        Meta(description="Codes of warnings to leave out for this route."),
    ] = ()

    @property
    def label(self) -> str:
        """The id of the route; the name of its protocol if the route has no id."""
        return self.id or self.name

    @property
    def members(self) -> tuple[Member, ...]:
        """The backends, each as a `Member`."""
        return members_of(self.forward_to)

    @property
    def backends(self) -> tuple[Address, ...]:
        return tuple(Address.parse(member.address) for member in self.members)

    @property
    def pattern_set(self) -> tuple[Pattern, ...]:
        """The parsed `patterns`; empty for an installed protocol."""
        return tuple(map(pattern, self.patterns or ()))


class PluginsConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The table ``[plugins]``: the plugins to leave out, the local plugins, and the settings of plugins."""

    disable: Annotated[
        tuple[str, ...], Meta(description="Ids of plugins that Refractium does not import.")
    ] = ()
    paths: Annotated[
        tuple[str, ...],
        Meta(description="Python files that are plugins, relative to the folder of the configuration file."),
    ] = ()
    settings: dict[str, dict[str, Any]] = {}
    """The table ``[plugins.ID]`` of each plugin, by id."""


class LogConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The table ``[log]``: the limits of the log."""

    max_lines_per_second: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000_000,
            description="Largest number of connections that a process logs per second, on average over 10 s.",
        ),
    ] = 1000
    open_connections: Annotated[
        bool,
        Meta(description="Whether a connection that is open for a second gets a log line before its end."),
    ] = True


class MetricsConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The table ``[metrics]``: the HTTP server of the metrics."""

    bind: Annotated[
        str | None,
        Meta(description="HOST:PORT of the metrics; port 0 means any free port. By default, no metrics."),
    ] = None
    hosts: Annotated[
        tuple[str, ...],
        Meta(description="Names that the Host of a request may contain, besides this machine's addresses."),
    ] = ()


class CheckConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The table ``[check]``: the warnings about this file."""

    ignore: Annotated[
        tuple[str, ...],
        Meta(description="Codes of warnings to leave out, at the start, at a reload and in check."),
    ] = ()


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole file. `decode` moves a fallback at the top level of the file to `server`."""

    server: ServerConfig = ServerConfig()
    listeners: tuple[ListenerConfig, ...] = ()
    protocols: tuple[RouteConfig, ...] = ()
    log: LogConfig = LogConfig()
    metrics: MetricsConfig = MetricsConfig()
    plugins: PluginsConfig = PluginsConfig()
    check: CheckConfig = CheckConfig()


FALLBACKS: Final = ("fallback_tcp", "fallback_udp")
"""The keys of ``[server]`` that may also stand at the top level of the file."""


def pattern(written: str | PatternTable) -> Pattern:
    """Convert a pattern of the configuration file into the type that the identifier uses.

    Raises:
        ValueError: a table contains neither `hex` nor `regex`, or both keys, or an invalid `hex`, or an
            `offset` beside a `regex`; or a text contains a character that stands for no byte.
    """
    if isinstance(written, str):
        return Text(text_bytes(written))
    if (written.hex is None) == (written.regex is None):
        raise ValueError("a pattern in braces needs either hex or regex")
    if written.regex is not None:
        if written.offset:
            raise ValueError("offset is for hex only: a regex itself says where it matches")
        return Regex(written.regex)
    return Hex(hex_bytes(written.hex or ""), written.offset)
