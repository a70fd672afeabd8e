"""The numbers that bound what connections may use, how long they may take, and when a backend is down."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

_Count = Annotated[int, Meta(ge=1, le=10_000_000)]
Milliseconds = Annotated[int, Meta(ge=1, le=7 * 24 * 3600 * 1000)]
"""A timeout (ms), a week at the most."""
ProxyVersion: TypeAlias = Literal["v1", "v2"]
"""A version of the PROXY protocol."""
Action: TypeAlias = Literal["reject", "reset"]
"""What becomes of the clients of a route that forwards to nowhere: closed, or reset."""


class Settings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Limits (counts, bytes) and timeouts (ms). The defaults suit a public port."""

    max_connections: _Count = 10_000
    """TCP connections held at once; one more is closed at accept."""
    max_connections_per_ip: _Count = 50
    """TCP connections held at once for each client address or IPv6 network; mapped IPv4 counts as IPv4."""
    max_udp_sessions: _Count = 10_000
    """UDP sessions held at once. One more takes the place of the oldest that was never answered, if any."""
    max_udp_sessions_per_ip: _Count = 1_000
    """UDP sessions held at once for each client address or IPv6 network."""
    ipv6_prefix_length: Annotated[int, Meta(ge=1, le=128)] = 64
    """IPv6 clients whose addresses share this many bits count as one address; 128 counts each by itself."""
    peek_timeout_ms: Milliseconds = 3_000
    """How long a client may take to show what it speaks, from accept, however it spreads its bytes."""
    peek_buffer_size: Annotated[int, Meta(ge=16, le=65_536)] = 1_024
    """Bytes inspected to tell protocols apart; see `Protocol.max_bytes` for who may read on."""
    backend_buffer_size: Annotated[int, Meta(ge=0, le=1024 * 1024 * 1024)] = 0
    """Bytes that the kernel takes from a backend in bulk beyond what its client has taken. With 0 it chooses,
    up to the last value of ``net.ipv4.tcp_rmem``; it never takes more than ``net.core.rmem_max``."""
    connect_timeout_ms: Milliseconds = 5_000
    """How long one attempt to reach a backend may take."""
    idle_timeout_ms: Milliseconds = 3_600_000
    """A connection is ended after this long without a byte either way."""
    udp_session_timeout_ms: Milliseconds = 60_000
    """A UDP session is ended after this long without a datagram either way; a route may have its own."""
    udp_unanswered_timeout_ms: Milliseconds = 10_000
    """The same, if shorter, for a session that no backend has answered: its client may be forged."""
    drain_timeout_ms: Annotated[int, Meta(ge=0, le=24 * 3600 * 1000)] = 30_000
    """How long a stop waits for open connections."""
    proxy_protocol_from: Annotated[
        tuple[str, ...],
        Meta(description="Addresses and networks of the proxies that must send a PROXY header."),
    ] = ()
    """Proxies (``10.0.0.0/8``, ``::1``) whose connections begin with a PROXY header, which is believed. From
    everybody else it is what any other first bytes are."""


class HealthSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """When a backend is checked (ms), and how many answers make it up or down (counts)."""

    interval_ms: Annotated[int, Meta(ge=10, le=24 * 3600 * 1000)] = 10_000
    """Between checks of a backend that is well, and how long one that is down is out of rotation at least, if
    nobody but clients can tell whether it is back."""
    timeout_ms: Annotated[int, Meta(ge=1, le=3600 * 1000)] = 1_000
    """How long one check may take."""
    rise: Annotated[int, Meta(ge=1, le=100)] = 2
    """Checks in a row that a backend which is down must pass to be up again."""
    fall: Annotated[int, Meta(ge=1, le=100)] = 3
    """Checks in a row that a backend which is up must fail to be down."""
