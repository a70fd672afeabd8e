"""The state of a backend, up or down, by the results of checks and clients."""

from __future__ import annotations

import logging
import time
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol
from weakref import WeakSet

from refractium.backends.health_settings import PASSIVE, Health, StateKey

if TYPE_CHECKING:
    from collections.abc import Callable

    from refractium.addresses.address import Address
    from refractium.settings import ProxyVersion


log = logging.getLogger(__name__)


class Availability(StrEnum):
    """Availability of a backend."""

    UNKNOWN = "unknown"
    """Neither checks nor clients have shown the availability yet. The backend counts as up."""
    UP = "up"
    DOWN = "down"


class Watcher(Protocol):
    """An object that is notified when a backend goes up or down."""

    def refresh(self) -> None:
        """Read the state again, because it has changed."""


class Authority(Protocol):
    """A judge of the availability of backends, in place of the backends' own states."""

    def adopt(self, state: BackendState) -> None:
        """Judge a state from now on, and pass the known availability to it (`BackendState.believe`)."""

    def client_failed(self, state: BackendState, reason: str) -> None:
        """Count a client that could not reach the backend."""

    def client_reached(self, state: BackendState) -> None:
        """Note that a client has reached the backend: the first client, or the first after a failure."""


class BackendState:
    """The state of one backend, shared by all routes with identical health settings.

    New routes take over the states of old routes with the same key, so that the availability of a backend is
    known at once.

    Args:
        address: address as configured.
        health: health settings, whose `kind` is a `HealthCheck` object or ``none``, but no other name.
        clock: function that returns monotonic time (s).
        proxy_protocol: version of the PROXY header that checks send first, as clients' connections do.

    Attributes:
        availability: current availability: unknown, up or down.
        reason: reason why the backend is down; empty while the backend is not down.
        since: time of the last change of `availability` (s since the epoch), for display.
        active: count of current connections and UDP sessions.
        awaits_client: whether to call `client_reached` for the next client that reaches the backend.
        failed_clients: count of clients in a row that could not reach the backend.
        authority: judge of the availability, or None if this state judges by itself.
    """

    __slots__ = (
        "__weakref__",
        "_clock",
        "_failed_checks",
        "_passed_checks",
        "_retry_at",
        "_watchers",
        "active",
        "address",
        "authority",
        "availability",
        "awaits_client",
        "failed_clients",
        "health",
        "proxy_protocol",
        "reason",
        "since",
    )

    def __init__(
        self,
        address: Address,
        health: Health = PASSIVE,
        clock: Callable[[], float] = time.monotonic,
        proxy_protocol: ProxyVersion | None = None,
    ) -> None:
        self.address = address
        self.health = health
        self.proxy_protocol = proxy_protocol if health.check is not None else None
        self.availability = Availability.UNKNOWN
        self.reason = ""
        self.since = time.time()
        self.active = 0
        self.awaits_client = True
        self.failed_clients = 0
        self.authority: Authority | None = None
        self._clock = clock
        self._failed_checks = 0
        self._passed_checks = 0
        self._retry_at = 0.0
        self._watchers: WeakSet[Watcher] = WeakSet()

    def __repr__(self) -> str:
        return f"<BackendState {self.address} {self.availability}>"

    @property
    def key(self) -> StateKey:
        """The key for sharing a state: the address, the PROXY version and the health settings."""
        return str(self.address), self.proxy_protocol or "", *self.health.key

    @property
    def is_up(self) -> bool:
        """Whether clients may be sent to the backend."""
        return self.availability is not Availability.DOWN

    @property
    def is_checked(self) -> bool:
        """Whether the backend has a health check."""
        return self.health.check is not None

    @property
    def pause(self) -> float:
        """Seconds from the beginning of one check to the beginning of the next check.

        For a backend that is down, the interval is divided by `rise`. After a failed check of a backend that
        is up, the interval is divided by `fall`. So the checks that change the availability take one interval
        together.
        """
        interval = self.health.interval_ms / 1000
        if self.availability is Availability.DOWN:
            return interval / self.health.rise
        return interval / self.health.fall if self._failed_checks else interval

    def watch(self, watcher: Watcher) -> None:
        """Notify `watcher` of every change, as long as another object holds a reference to the watcher."""
        self._watchers.add(watcher)

    def check_passed(self) -> None:
        """Count a check that passed."""
        self._failed_checks = self.failed_clients = 0
        self._passed_checks += 1
        if self.availability is Availability.UNKNOWN:
            self._become(Availability.UP)
        elif self.availability is Availability.DOWN and self._passed_checks >= self.health.rise:
            self._become(Availability.UP, f"passed {_times(self._passed_checks, 'check')} in a row")

    def check_failed(self, reason: str) -> None:
        """Count a check that failed. The first check of a backend changes the availability at once."""
        self._passed_checks = 0
        self._failed_checks += 1
        if self.availability is Availability.UNKNOWN or self._has_failed_enough:
            self._go_down(reason)

    def client_failed(self, reason: str) -> None:
        """Count a client that could not reach the backend; without an authority, as a failed check.

        The caller does not report clients that failed because this machine lacked a resource.
        """
        self.failed_clients += 1
        self.awaits_client = True
        if self.authority is not None:
            self.authority.client_failed(self, reason)
        elif self._has_failed_enough:
            self._go_down(reason)

    def client_reached(self) -> None:
        """Note that a client has reached the backend: the first client, or the first after a failure.

        Callers call this method only if `awaits_client` is true.
        """
        self.failed_clients = 0
        self.awaits_client = False
        if self.authority is not None:
            self.authority.client_reached(self)
        elif self.availability is Availability.DOWN and not self.is_checked:
            self._become(Availability.UP, "a client has reached it")
        elif self.availability is Availability.UNKNOWN and not self.is_checked:
            self._become(Availability.UP)

    def believe(self, availability: Availability, since: float, reason: str) -> None:
        """Take over the decision of the authority: the new values of the attributes with these names."""
        self.availability, self.since, self.reason = availability, since, reason
        self.failed_clients = 0
        self.awaits_client = availability is not Availability.UP
        if availability is Availability.DOWN:
            self._rest()
        self._tell_watchers()

    def may_try(self) -> bool:
        """Return whether a client may try a backend that is down and has no check.

        The answer True is for one client. The next client may try one interval later.
        """
        now = self._clock()
        if now < self._retry_at:
            return False
        self._retry_at = now + self.health.interval_ms / 1000
        return True

    @property
    def _has_failed_enough(self) -> bool:
        return self._failed_checks + self.failed_clients >= self.health.fall

    def _go_down(self, reason: str) -> None:
        if self.availability is not Availability.DOWN:
            self._passed_checks = 0
            self._rest()
            self._become(Availability.DOWN, reason)

    def _rest(self) -> None:
        self._retry_at = self._clock() + self.health.interval_ms / 1000

    def _become(self, availability: Availability, reason: str = "") -> None:
        self.availability = availability
        self.since = time.time()
        self.reason = reason if availability is Availability.DOWN else ""
        if availability is Availability.DOWN:
            log.warning("backend %s is down: %s", self.address, reason)
        elif reason:
            log.info("backend %s is up again: %s", self.address, reason)
            self._failed_checks = self.failed_clients = 0
        self._tell_watchers()

    def _tell_watchers(self) -> None:
        for watcher in list(self._watchers):
            watcher.refresh()


def _times(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
