"""The rules for balancing methods: the order of backends, and the cost of a call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from refractium.audit.cost import TIME_LAW, cost_of
from refractium.audit.loading import subject_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from refractium.audit.report import Report
    from refractium.contract import Balancer
    from refractium.plugins.installed import Given

_MANY: Final = 100
_CLIENTS: Final = ("192.0.2.1", "2001:db8::1", "198.51.100.255", "")
"""IP addresses of clients (RFC 5737, RFC 3849); the client of a unix socket has none."""


@dataclass(frozen=True, slots=True)
class _Backend:
    """A backend as a balancer sees it."""

    address: str
    weight: int
    active: int


def _pools() -> Iterator[tuple[_Backend, ...]]:
    """Yield sets of backends with equal and with different weights and counts."""
    for count in (1, 2, 3, 10, _MANY):
        for weight, active in ((1, 0), (1000, 65_535)):
            yield tuple(_Backend(f"192.0.2.{number}:80", weight, active) for number in range(count))
        yield tuple(
            _Backend(f"192.0.2.{number}:80", number % 1000 + 1, number * 7 % 5) for number in range(count)
        )


def check_balancers(given: Given, report: Report) -> None:
    """Check the balancing methods of a plugin."""
    for balancer in given.balancers:
        _check(balancer, report, subject_of("balancer", balancer.name))


def _check(method: type[Balancer], report: Report, subject: str) -> None:
    for backends in _pools():
        if not _check_pool(method, backends, report, subject):
            return


def _check_pool(method: type[Balancer], backends: tuple[_Backend, ...], report: Report, subject: str) -> bool:
    """Check a balancer with one set of backends, and return whether it raised no exception."""
    when = f"for {len(backends)} backends"
    report.stage(subject, f"order {when}")
    try:
        balancer = method()
        for client in _CLIENTS:
            if problem := _problem_of(list(balancer.order(backends, client)), backends):
                report.broken("balancer-order", subject, f"order {problem} {when}")
        # The balancer may compute something when it first sees these backends.
        cost = cost_of(lambda: list(balancer.order(backends, _CLIENTS[0])))
    except BaseException as error:  # noqa: BLE001 - the code of a plugin may raise any exception
        report.raised("balancer-fails", subject, error, when)
        return False
    if cost > TIME_LAW:
        report.broken("balancer-slow", subject, f"order takes {cost * 1000:.1f} ms {when}")
    return True


def _problem_of(order: Sequence[object], backends: tuple[_Backend, ...]) -> str | None:
    """Return the end of a sentence about an order that is not valid."""
    if not order:
        return "returns no backend"
    if any(one not in backends for one in order):
        return "returns an object that is not one of the backends"
    return "returns a backend twice" if len(set(map(id, order))) < len(order) else None
