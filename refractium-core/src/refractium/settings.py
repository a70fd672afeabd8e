"""Limits and timeouts of connections and UDP sessions, and the timing of health checks."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

_Count = Annotated[int, Meta(ge=1, le=10_000_000)]
Milliseconds = Annotated[int, Meta(ge=1, le=7 * 24 * 3600 * 1000)]
"""A timeout in milliseconds, at most one week."""
Responses = Annotated[int, Meta(ge=0, le=1_000_000)]
"""The number of answers of a backend to each datagram of a client (`Protocol.udp_responses`)."""
ProxyVersion: TypeAlias = Literal["v1", "v2"]
"""A version of the PROXY protocol."""
Action: TypeAlias = Literal["reject", "reset"]
"""Treatment of the clients of a route without backends: Refractium closes or resets their connections."""


class Settings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Limits (counts, bytes) and timeouts (ms). The defaults suit a public port."""

    max_connections: _Count = 10_000
    """Largest number of open TCP connections. Refractium closes any further connection at accept."""
    max_connections_per_ip: _Count = 50
    """Largest number of open TCP connections for each client address or IPv6 network. An IPv4 address mapped
    into IPv6 counts as the IPv4 address."""
    max_udp_sessions: _Count = 10_000
    """Largest number of open UDP sessions. A further session replaces the oldest session that no backend has
    answered, if there is such a session. Sessions with all their answers do not count."""
    max_udp_sessions_per_ip: _Count = 1_000
    """Largest number of open UDP sessions for each client address or IPv6 network."""
    ipv6_prefix_length: Annotated[int, Meta(ge=1, le=128)] = 64
    """IPv6 clients whose addresses share this many leading bits count as one address. With 128, each address
    counts separately."""
    peek_timeout_ms: Milliseconds = 3_000
    """Milliseconds from accept within which a client must show its protocol. Further bytes of the client do
    not extend this time."""
    peek_grace_ms: Milliseconds = 100
    """Milliseconds for which Refractium waits for further bytes after a match, while a protocol with stronger
    evidence is still possible. Once such a protocol has recognised its own traffic, the limit is
    `peek_timeout_ms`."""
    peek_buffer_size: Annotated[int, Meta(ge=16, le=65_536)] = 1_024
    """Bytes of a client that Refractium inspects to tell protocols apart. `Protocol.max_bytes` explains which
    protocols may read more."""
    backend_buffer_size: Annotated[int, Meta(ge=0, le=1024 * 1024 * 1024)] = 0
    """Bytes of a bulk transfer that the kernel accepts from a backend before the client has received them.
    With 0, the kernel chooses the number, up to the last value of ``net.ipv4.tcp_rmem``. For other values,
    the upper limit is ``net.core.rmem_max``."""
    connect_timeout_ms: Milliseconds = 5_000
    """Milliseconds that one attempt to reach a backend may take."""
    idle_timeout_ms: Milliseconds = 3_600_000
    """Milliseconds without a byte in either direction after which Refractium ends a connection. A route may
    have its own timeout."""
    half_close_timeout_ms: Milliseconds = 60_000
    """Milliseconds without a byte after which Refractium ends a half-closed connection: one side has ended,
    and the other side sends nothing. If `idle_timeout_ms` is shorter, `idle_timeout_ms` applies. A route may
    have its own timeout."""
    udp_session_timeout_ms: Milliseconds = 60_000
    """Milliseconds without a datagram in either direction after which Refractium ends a UDP session. A route
    or its protocol may have its own timeout."""
    udp_unanswered_timeout_ms: Milliseconds = 10_000
    """Milliseconds without a datagram after which Refractium ends a UDP session that no backend has answered,
    because the client address may be forged. A shorter `udp_session_timeout_ms` applies instead."""
    drain_timeout_ms: Annotated[int, Meta(ge=0, le=24 * 3600 * 1000)] = 30_000
    """Milliseconds for which a stop waits for open connections to finish."""
    proxy_protocol_from: Annotated[
        tuple[str, ...],
        Meta(description="Addresses and networks of the proxies that must send a PROXY header."),
    ] = ()
    """Addresses and networks (``10.0.0.0/8``, ``::1``) of proxies whose connections begin with a PROXY
    header, which Refractium believes. A PROXY header from any other client counts as ordinary first bytes."""


class HealthSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The timing of health checks (ms), and the number of results that make a backend up or down."""

    interval_ms: Annotated[int, Meta(ge=10, le=24 * 3600 * 1000)] = 10_000
    """Milliseconds between two checks of a healthy backend. Without checks, only clients can show that a
    backend is up again. Then this value is the least time for which a backend that is down gets no
    clients."""
    timeout_ms: Annotated[int, Meta(ge=1, le=3600 * 1000)] = 1_000
    """Milliseconds that one check may take."""
    rise: Annotated[int, Meta(ge=1, le=100)] = 2
    """Number of successful checks in a row after which a backend that was down is up."""
    fall: Annotated[int, Meta(ge=1, le=100)] = 3
    """Number of failed checks in a row after which a backend that was up is down."""
