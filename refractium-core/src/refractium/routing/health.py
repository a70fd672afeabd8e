"""Whether a backend is up: what checks and clients have found, and how many of them it takes to believe it.

Nothing here opens a socket or waits: `refractium.net.checker` asks, the data path tells what clients met.
"""

from __future__ import annotations

import errno
import logging
import time
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias
from weakref import WeakSet

import msgspec

from refractium.contract import SHARED_KEYS, HealthCheck
from refractium.errors import ConfigError, Problem
from refractium.settings import HealthSettings
from refractium.tables import conversion_problems, table_problems

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from refractium.address import Address
    from refractium.settings import ProxyVersion

log = logging.getLogger(__name__)

LOCAL_ERRORS: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN}
)
"""What this machine says when it has run out of something; none of it is about the backend."""

StateKey: TypeAlias = tuple[str, ...]


def option_problems(check: HealthCheck[Any], options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is wrong with what a kind of check is given: pairs of a key and a message."""
    what = f"a check of kind {check.name!r}"
    if findings := list(table_problems(check.settings, options, what, SHARED_KEYS)):
        yield from findings
    else:
        yield from check.problems(msgspec.convert(options, check.settings))


class Health(HealthSettings, frozen=True, kw_only=True):
    """How the backends of a route are watched.

    Args:
        kind: the name of a built-in kind of check, an object of another one, or ``none``: then clients that
            cannot reach a backend are all that is known of it.
        options: what the kind takes, by key.

    Raises:
        ConfigError: a number is out of range, or an option is not one of the kind's.
    """

    kind: str | HealthCheck[Any] = "none"
    options: dict[str, Any] = {}  # noqa: RUF012 - a Struct copies it

    def __post_init__(self) -> None:
        numbers = {key: getattr(self, key) for key in HealthSettings.__struct_fields__}
        findings = [*conversion_problems(HealthSettings, numbers)]
        if self.check is not None:
            findings += option_problems(self.check, self.options)
        elif self.kind == "none":
            findings += [(key, "there is no check that takes it") for key in self.options]
        if findings:
            raise ConfigError(Problem(message, where=f"health.{key}") for key, message in findings)

    @property
    def check(self) -> HealthCheck[Any] | None:
        """The kind of check, where it is known."""
        return self.kind if isinstance(self.kind, HealthCheck) else None

    @property
    def settings(self) -> Any:
        """The options as the Struct that the kind of check takes."""
        return None if self.check is None else msgspec.convert(self.options, self.check.settings)

    @property
    def key(self) -> StateKey:
        """Equal for what asks the same question of a backend and believes the answer at the same time."""
        name = self.kind.name if isinstance(self.kind, HealthCheck) else self.kind
        numbers = [str(getattr(self, key)) for key in HealthSettings.__struct_fields__]
        return name, msgspec.json.encode(self.options, order="deterministic").decode(), *numbers


PASSIVE: Final = Health()
"""For backends that nobody checks."""


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
