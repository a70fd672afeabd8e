"""The number of log lines of one kind that may be written."""

from __future__ import annotations

from refractium.throttle import Allowance


def taken(allowance: Allowance, wanted: int) -> int:
    return sum(allowance.take() for _ in range(wanted))


def test_the_lines_of_ten_seconds_may_come_at_once_and_then_the_rate_applies() -> None:
    now = 1000.0
    allowance = Allowance(100, lambda: now)
    assert taken(allowance, 5000) == 1000
    now += 0.5
    allowance.refill()
    assert taken(allowance, 5000) == 50
    now += 3600
    allowance.refill()
    assert taken(allowance, 5000) == 1000


def test_fractions_of_a_line_add_up() -> None:
    now = 1000.0
    allowance = Allowance(1, lambda: now)
    total = taken(allowance, 100)
    for _ in range(500):
        now += 0.02
        allowance.refill()
        total += taken(allowance, 100)
    assert total in {19, 20}  # the fractions of a second sum up to a little more or less than ten seconds


def test_the_rate_can_be_changed() -> None:
    now = 1000.0
    allowance = Allowance(100, lambda: now)
    allowance.per_second = 1
    allowance.refill()
    assert taken(allowance, 100) == 10
    allowance.per_second = 1000
    now += 10
    allowance.refill()
    assert taken(allowance, 100_000) == 10_000
