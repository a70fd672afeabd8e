"""What is known of a backend: whether it is up, by what checks and clients have found."""

from __future__ import annotations

import logging
import time
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol
from weakref import WeakSet

from refractium.backends.health import PASSIVE, Health, StateKey

if TYPE_CHECKING:
    from collections.abc import Callable

    from refractium.addresses.address import Address
    from refractium.settings import ProxyVersion


log = logging.getLogger(__name__)


class Status(StrEnum):
    """What is believed of a backend."""

    UNKNOWN = "unknown"
    """Nobody has asked yet; it counts as up."""
    UP = "up"
    DOWN = "down"


class Watcher(Protocol):
    """Whoever must know at once when a backend goes up or down."""

    def refresh(self) -> None:
        """Look at the state again."""


class Authority(Protocol):
    """Who decides what is believed of backends, where that is not decided by their states themselves."""

    def adopt(self, state: BackendState) -> None:
        """Decide for a state from now on, and tell it what is believed already (`BackendState.believe`)."""

    def client_failed(self, state: BackendState, reason: str) -> None:
        """A client could not reach the backend."""

    def client_reached(self, state: BackendState) -> None:
        """A client has reached it after others could not."""


class BackendState:
    """What is known of one backend, shared by all who ask the same of it.

    A new set of routes takes over the states of the old one by their keys, so that nothing has to be found
    out again.

    Args:
        address: as configured.
        health: when to believe what. Its kind is resolved: a check, or ``none``.
        clock: monotonic time (s).
        proxy_protocol: the version of the PROXY header that checks begin with, as clients' connections do.

    Attributes:
        status: what is believed.
        reason: why it is down; empty while it is not.
        since: when `status` became what it is, in seconds since the epoch, to show it.
        active: connections and UDP sessions that it has now.
        failed_clients: how many clients in a row could not reach it.
        authority: who decides what is believed of it, if somebody else does.
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
        "failed_clients",
        "health",
        "proxy_protocol",
        "reason",
        "since",
        "status",
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
        self.status = Status.UNKNOWN
        self.reason = ""
        self.since = time.time()
        self.active = 0
        self.failed_clients = 0
        self.authority: Authority | None = None
        self._clock = clock
        self._failed_checks = 0
        self._passed_checks = 0
        self._retry_at = 0.0
        self._watchers: WeakSet[Watcher] = WeakSet()

    def __repr__(self) -> str:
        return f"<BackendState {self.address} {self.status}>"

    @property
    def key(self) -> StateKey:
        """The address and the definition of its health."""
        return str(self.address), self.proxy_protocol or "", *self.health.key

    @property
    def is_up(self) -> bool:
        """Whether clients may be sent there."""
        return self.status is not Status.DOWN

    @property
    def is_checked(self) -> bool:
        """Whether anybody but clients finds out how it is."""
        return self.health.check is not None

    @property
    def pause(self) -> float:
        """How long after the beginning of one check the next one is due (s).

        While it is down, or about to be, the interval is divided by the checks that are needed, so that it is
        back within one interval.
        """
        interval = self.health.interval_ms / 1000
        if self.status is Status.DOWN:
            return interval / self.health.rise
        return interval / self.health.fall if self._failed_checks else interval

    def watch(self, watcher: Watcher) -> None:
        """Tell `watcher` of every change, for as long as somebody else holds it."""
        self._watchers.add(watcher)

    def check_passed(self) -> None:
        """A check has found it well."""
        self._failed_checks = self.failed_clients = 0
        self._passed_checks += 1
        if self.status is Status.UNKNOWN:
            self._become(Status.UP)
        elif self.status is Status.DOWN and self._passed_checks >= self.health.rise:
            self._become(Status.UP, f"passed {_times(self._passed_checks, 'check')} in a row")

    def check_failed(self, reason: str) -> None:
        """A check has found it not well. The very first one is believed at once."""
        self._passed_checks = 0
        self._failed_checks += 1
        if self.status is Status.UNKNOWN or self._has_failed_enough:
            self._go_down(reason)

    def client_failed(self, reason: str) -> None:
        """A client could not reach it, through no fault of this machine: that counts as a failed check."""
        self.failed_clients += 1
        if self.authority is not None:
            self.authority.client_failed(self, reason)
        elif self._has_failed_enough:
            self._go_down(reason)

    def client_reached(self) -> None:
        """A client has reached it after others could not (`failed_clients`)."""
        self.failed_clients = 0
        if self.authority is not None:
            self.authority.client_reached(self)
        elif self.status is Status.DOWN and not self.is_checked:
            self._become(Status.UP, "a client has reached it")

    def believe(self, status: Status, since: float, reason: str) -> None:
        """What the authority has decided; the arguments are the attributes of these names."""
        self.status, self.since, self.reason = status, since, reason
        self.failed_clients = 0
        if status is Status.DOWN:
            self.failed_clients = 1  # so that the first client to reach it is told of
            self._rest()
        self._tell_watchers()

    def may_try(self) -> bool:
        """Whether it is time for a client to find out about a backend that is down and that nobody checks.

        A yes is for one client: the next one is given an interval later.
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
        if self.status is not Status.DOWN:
            self._passed_checks = 0
            self._rest()
            self._become(Status.DOWN, reason)

    def _rest(self) -> None:
        self._retry_at = self._clock() + self.health.interval_ms / 1000

    def _become(self, status: Status, reason: str = "") -> None:
        self.status = status
        self.since = time.time()
        self.reason = reason if status is Status.DOWN else ""
        if status is Status.DOWN:
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
