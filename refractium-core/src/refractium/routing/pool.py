"""A pool: which backends of a route may be used now, and the balancer that orders them for each client."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refractium.routing.balancers import RoundRobin

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from refractium.addresses.networks import Access
    from refractium.backends.backend import Backend
    from refractium.contract import Balancer, SocketAddress
    from refractium.hooks import Taps
    from refractium.settings import Action, ProxyVersion


class Pool:
    """Hands out backends: those that are up; backups behind all others; none that a check has found down.

    Of backends that nobody checks only clients can tell whether they are back. So of those that are down one
    is offered to one client now and then, and where no backend is up they are offered to everyone.

    Args:
        label: what logs call it: that of the route, or ``fallback``.
        backends: at least one, unless there is an action.
        session_timeout_ms: how long a UDP session may be silent (ms), where it is not as everywhere else.
        balancer: how they are ordered.
        proxy_protocol: the version of the PROXY header that they are sent first, if they are.
        access: whose clients may use it; None for everybody's.
        action: what becomes of its clients instead of being sent anywhere.
        protocol: the protocol's name, where the label is another.
        taps: the hooks that are told of what passes; None where there are none.
    """

    __slots__ = (
        "__weakref__",
        "_balancer",
        "_is_plain",
        "_primaries",
        "_reserve",
        "_reserve_balancer",
        "_resting",
        "_spares",
        "_usable",
        "access",
        "action",
        "backends",
        "label",
        "protocol",
        "proxy_protocol",
        "session_timeout_ms",
        "taps",
    )

    def __init__(
        self,
        label: str,
        backends: Sequence[Backend],
        session_timeout_ms: int | None = None,
        balancer: type[Balancer] = RoundRobin,
        proxy_protocol: ProxyVersion | None = None,
        *,
        access: Access | None = None,
        action: Action | None = None,
        protocol: str | None = None,
        taps: Taps | None = None,
    ) -> None:
        self.label = label
        self.protocol = protocol or label
        self.taps = taps
        self.access = access
        self.action = action
        self.proxy_protocol = proxy_protocol
        self.backends = tuple(backends)
        self.session_timeout_ms = session_timeout_ms
        self._balancer = balancer()
        self._reserve_balancer = balancer()
        spares = tuple(backend for backend in self.backends if backend.is_backup)
        self._primaries = tuple(backend for backend in self.backends if not backend.is_backup) or spares
        self._spares = spares if self._primaries != spares else ()
        for backend in self.backends:
            backend.state.watch(self)
        self.refresh()

    def refresh(self) -> None:
        """A backend has gone up or down."""
        up = _those(self._primaries, is_up=True), _those(self._spares, is_up=True)
        down = _those(self._primaries, is_up=False), _those(self._spares, is_up=False)
        if any(up):
            self._resting = down[0]
            self._usable, self._reserve = up if up[0] else (up[1], ())
        else:
            self._resting = ()
            self._usable, self._reserve = down if down[0] else (down[1], ())
        self._is_plain = bool(self._usable) and not (self._reserve or self._resting)

    def admits(self, client: str) -> bool:
        """Whether a client with this IP address may use it."""
        return self.access is None or self.access.admits(client)

    def targets(self, client: str = "") -> Iterator[tuple[Backend, SocketAddress]]:
        """Every address of every backend, in the order in which to try them for a client with this IP."""
        for backend in self.candidates(client):
            for target in backend.socket_addresses:
                yield backend, target

    def candidates(self, client: str = "") -> Iterable[Backend]:
        """Every backend that may be used, once, beginning with the one that is the client's."""
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


def _those(backends: Sequence[Backend], *, is_up: bool) -> tuple[Backend, ...]:
    """The ones that are up; or those that are down as far as clients know, and that nobody checks."""
    if is_up:
        return tuple(backend for backend in backends if backend.state.is_up)
    return tuple(backend for backend in backends if not (backend.state.is_up or backend.state.is_checked))
