"""Warnings about limits and timeouts, and about a file without backends."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING, Final

from refractium.assembly.lint.rules import (
    LONG_PEEK_TIMEOUT,
    NO_BACKEND,
    TOO_FEW_DESCRIPTORS,
    WIDE_LIMIT,
    Warned,
)
from refractium.config import ServerConfig
from refractium.contract import Transport
from refractium.sockets.descriptors import A_CLIENT, SHARE_OF_SESSIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refractium.assembly.resolve import Resolved
    from refractium.assembly.sources import Overlaid

_LONG_PEEK_MS: Final = 5_000
"""Value of `peek_timeout_ms` (ms) above which `long_peeks` yields a warning."""
_MANY_PER_IP: Final = 200
"""Value of `max_connections_per_ip` (connections) above which `wide_limits` yields a warning."""


def long_peeks(overlaid: Overlaid) -> Iterator[Warned]:
    """Yield each peek timeout with which silent clients can hold many connections open."""
    peeks = [("server", overlaid.server.peek_timeout_ms)]
    peeks += [(path, one.peek_timeout_ms or 0) for path, one in overlaid.listeners]
    for path, timeout_ms in peeks:
        if timeout_ms > _LONG_PEEK_MS:
            yield Warned(
                LONG_PEEK_TIMEOUT,
                f"{path}.peek_timeout_ms",
                f"over {_LONG_PEEK_MS} ms, silent clients can hold many connections open",
            )


def wide_limits(server: ServerConfig) -> Iterator[Warned]:
    """Yield each limit for a client address that hardly limits a single client."""
    if server.max_udp_sessions_per_ip >= server.max_udp_sessions:
        where, message = "server.max_udp_sessions_per_ip", "one client can take all of max_udp_sessions"
        yield Warned(WIDE_LIMIT, where, message)
    where = "server.max_connections_per_ip"
    if server.max_connections_per_ip >= server.max_connections:
        yield Warned(WIDE_LIMIT, where, "one client can take all of max_connections")
    elif server.max_connections_per_ip > _MANY_PER_IP:
        yield Warned(WIDE_LIMIT, where, f"over {_MANY_PER_IP}, it hardly limits a single client")


def beyond_descriptors(resolved: Resolved) -> Iterator[Warned]:
    """Yield each changed limit of clients that exceeds the descriptors which all workers may open together.

    The program raises the soft limit of descriptors to the hard limit. The defaults are no decision of the
    operator, so they cause no warning.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return
    server, defaults = resolved.overlaid.server, ServerConfig()
    transports = {route.transport for _, route in resolved.routes}
    for transport, key, possible in (
        (Transport.TCP, "max_connections", hard // A_CLIENT),
        (Transport.UDP, "max_udp_sessions", hard // SHARE_OF_SESSIONS),
    ):
        most = getattr(server, key)
        is_changed = most != getattr(defaults, key)
        if transport in transports and is_changed and most > possible * server.worker_count:
            reason = (
                f"RLIMIT_NOFILE is {hard}, which allows {possible} in each process ({server.worker_count})"
            )
            message = f"{reason}: raise that limit, or lower this value"
            yield Warned(TOO_FEW_DESCRIPTORS, f"server.{key}", message)


def without_backends(resolved: Resolved) -> Iterator[Warned]:
    """Yield a warning if no client can reach a backend."""
    server = resolved.overlaid.server
    has_fallback = server.fallback_tcp or server.fallback_udp
    if not has_fallback and all(route.action for _, route in resolved.routes):
        message = "no route has a backend: add a route with forward_to, or set fallback_tcp"
        yield Warned(NO_BACKEND, "protocols", message)
