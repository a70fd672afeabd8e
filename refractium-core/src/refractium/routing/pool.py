"""A pool: the usable backends of a route, and the balancer that orders these backends for each client."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refractium.contract.metadata import kinds_of, types_of
from refractium.guard.faults import PROTOCOL, is_interrupt
from refractium.routing.balancers import RoundRobin, made

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from refractium.addresses.networks import AccessRules
    from refractium.backends.backend import Backend
    from refractium.contract import Balancer, Protocol, SocketAddress
    from refractium.guard.faults import Faults
    from refractium.hooks import RouteHooks
    from refractium.settings import Action, ProxyVersion


class Pool:
    """The backends of one route or of the fallback, and the order in which to try the backends for a client.

    A pool offers the backends that are up, with the backups last. A pool never offers a backend that a health
    check has found down.

    Only a client can find out that a backend without health checks is up again. So once in each
    `Health.interval_ms`, the pool offers one client such a backend although the backend is down. If no
    backend is up, the pool offers all backends without health checks to every client.

    Args:
        label: the pool's name in logs: the route's label, or ``fallback``.
        backends: the backends. A pool without an action needs at least one backend.
        udp_session_timeout_ms: the time (ms) that a UDP session may be silent; None for the time in the
            settings.
        balancer: the class whose instances order the backends.
        proxy_protocol: the version of the PROXY header that a backend receives first; None for no header.
        access: the access rules for the pool's clients; None if every client may use the pool.
        action: the action on the pool's clients; None to connect the clients to backends.
        protocol: the protocol's name; None if the label is this name.
        hooks: the packet hooks of the pool; None without hooks.
        idle_timeout_ms: the time (ms) that a connection may be silent; None for the time in the settings.
        half_close_timeout_ms: the time (ms) that a half-closed connection may be silent; None for the time in
            the settings.
        protocols: the protocols of the pool's route.
        faults: the counts of the faults of protocols and balancers; None to count nothing.
        udp_responses: the number of answers to each datagram of a client, after which a UDP session ends;
            None if no number of answers ends a session.

    Attributes:
        attempts: the attempts to send a datagram: one, and another one for each backend.
        declared: the types of the values of each metadata key that the protocols declare; None if any key may
            occur.
        declared_texts: the keys of `declared` whose values may be strings; None if any key may occur.
        offers_none: whether health checks have found every backend down; also true for a pool with an action.
    """

    __slots__ = (
        "__weakref__",
        "_balancer",
        "_faults",
        "_is_plain",
        "_primaries",
        "_protocols",
        "_reserve",
        "_reserve_balancer",
        "_resting",
        "_spares",
        "_usable",
        "access",
        "action",
        "attempts",
        "backends",
        "declared",
        "declared_texts",
        "half_close_timeout_ms",
        "hooks",
        "idle_timeout_ms",
        "label",
        "offers_none",
        "protocol",
        "proxy_protocol",
        "udp_responses",
        "udp_session_timeout_ms",
    )

    def __init__(
        self,
        label: str,
        backends: Sequence[Backend],
        udp_session_timeout_ms: int | None = None,
        balancer: type[Balancer] = RoundRobin,
        proxy_protocol: ProxyVersion | None = None,
        *,
        access: AccessRules | None = None,
        action: Action | None = None,
        protocol: str | None = None,
        hooks: RouteHooks | None = None,
        idle_timeout_ms: int | None = None,
        half_close_timeout_ms: int | None = None,
        protocols: Sequence[Protocol] = (),
        faults: Faults | None = None,
        udp_responses: int | None = None,
    ) -> None:
        self.label = label
        self.protocol = protocol or label
        self.hooks = hooks
        self.access = access
        self.action = action
        self.proxy_protocol = proxy_protocol
        self.backends = tuple(backends)
        self.attempts = range(1 + len(self.backends))
        self.idle_timeout_ms = idle_timeout_ms
        self.half_close_timeout_ms = half_close_timeout_ms
        self.udp_session_timeout_ms = udp_session_timeout_ms
        self.udp_responses = udp_responses
        self._protocols = protocols
        self._faults = faults
        self.declared = _declared(protocols) if protocols else None
        self.declared_texts = (
            None
            if self.declared is None
            else frozenset(key for key, types in self.declared.items() if str in types)
        )
        self._balancer = made(balancer, faults)
        self._reserve_balancer = made(balancer, faults)
        spares = tuple(backend for backend in self.backends if backend.is_backup)
        self._primaries = tuple(backend for backend in self.backends if not backend.is_backup) or spares
        self._spares = spares if self._primaries != spares else ()
        for backend in self.backends:
            backend.state.watch(self)
        self.refresh()

    def refresh(self) -> None:
        """Update the choice of backends to offer, after a backend has gone up or down."""
        up = _those(self._primaries, is_up=True), _those(self._spares, is_up=True)
        down = _those(self._primaries, is_up=False), _those(self._spares, is_up=False)
        if any(up):
            self._resting = down[0]
            self._usable, self._reserve = up if up[0] else (up[1], ())
        else:
            self._resting = ()
            self._usable, self._reserve = down if down[0] else (down[1], ())
        self._is_plain = bool(self._usable) and not (self._reserve or self._resting)
        self.offers_none = not (self._usable or self._resting)

    def admits(self, client: str) -> bool:
        """Return whether a client with this IP address may use the pool."""
        return self.access is None or self.access.admits(client)

    def note_bad_metadata(self, error: BaseException) -> None:
        """Count and log a fault in the metadata of a match that led to this pool.

        Raises:
            KeyboardInterrupt: `error` comes from the user.
        """
        if self._faults is not None and self._protocols:
            effect = "the log, hooks and backends of this client do not get this metadata"
            self._faults.note(PROTOCOL + self.protocol, self._protocols[0], error, effect)
        elif is_interrupt(error):
            raise error

    def targets(self, client: str = "") -> Iterator[tuple[Backend, SocketAddress]]:
        """Yield all addresses of all offered backends, in the order of the attempts for this client."""
        for backend in self.candidates(client):
            for target in backend.socket_addresses:
                yield backend, target

    def candidates(self, client: str = "") -> Iterable[Backend]:
        """Return the offered backends, each once, in the order of the attempts for this client."""
        if self._is_plain:
            return self._balancer.order(self._usable, client)
        return self._unusual(client)

    def _unusual(self, client: str) -> Iterator[Backend]:
        on_trial = next((backend for backend in self._resting if backend.state.may_try()), None)
        if on_trial is not None:
            yield on_trial
        if self._usable:
            yield from self._balancer.order(self._usable, client)
        if self._reserve:
            yield from self._reserve_balancer.order(self._reserve, client)


def _declared(protocols: Sequence[Protocol]) -> dict[str, tuple[type, ...]]:
    """Return the types of the values of each metadata key that at least one protocol declares."""
    declared: dict[str, tuple[type, ...]] = {}
    for one in protocols:
        for key, kind in kinds_of(one.metadata_keys).items():
            declared[key] = (*declared.get(key, ()), *types_of(kind))
    return declared


def _those(backends: Sequence[Backend], *, is_up: bool) -> tuple[Backend, ...]:
    """Return the backends that are up (`is_up`), or the backends that are down and have no health check."""
    if is_up:
        return tuple(backend for backend in backends if backend.state.is_up)
    return tuple(backend for backend in backends if not (backend.state.is_up or backend.state.is_checked))
