"""The evidence that takes a backend up or down. No test here opens a socket."""

from __future__ import annotations

import gc
import logging
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refractium import ConfigError
from refractium.addresses.address import Address
from refractium.backends.checks import CHECKS
from refractium.backends.health_settings import Health
from refractium.backends.state import BackendState

if TYPE_CHECKING:
    from collections.abc import Iterator

ADDRESS = Address("10.0.0.1", 80)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def checked(*, rise: int = 2, fall: int = 3, interval_ms: int = 10_000) -> BackendState:
    return BackendState(ADDRESS, Health(kind=CHECKS["tcp"], rise=rise, fall=fall, interval_ms=interval_ms))


def unchecked(clock: Clock | None = None, *, fall: int = 3) -> BackendState:
    return BackendState(ADDRESS, Health(fall=fall), clock or Clock())


def up(*, rise: int = 2, fall: int = 3) -> BackendState:
    state = checked(rise=rise, fall=fall)
    state.check_passed()
    return state


@pytest.fixture
def changes(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """Collect the log lines of the test."""

    class Lines(list[str]):
        def __eq__(self, other: object) -> bool:
            return [f"{one.levelname} {one.getMessage()}" for one in caplog.records] == other

        __hash__ = None

        def __repr__(self) -> str:
            return repr([one.getMessage() for one in caplog.records])

    with caplog.at_level(logging.INFO, "refractium.backends.state"):
        yield Lines()


def test_a_backend_of_unknown_state_counts_as_up() -> None:
    assert (checked().availability, checked().is_up) == ("unknown", True)


def test_a_backend_that_served_a_client_is_up_and_awaits_no_further_client(changes: list[str]) -> None:
    state = unchecked()
    assert state.awaits_client
    state.client_reached()
    assert (state.availability, state.awaits_client) == ("up", False)
    state.client_failed("Connection refused")
    assert state.awaits_client
    assert changes == []


def test_the_first_check_is_believed_at_once(changes: list[str]) -> None:
    one, other = checked(), checked()
    one.check_passed()
    assert (one.availability, one.reason) == ("up", "")
    assert changes == []
    other.check_failed("tcp check: Connection refused")
    assert (other.availability, other.reason) == ("down", "tcp check: Connection refused")
    assert changes == ["WARNING backend 10.0.0.1:80 is down: tcp check: Connection refused"]


def test_as_many_failures_in_a_row_as_fall_says_take_a_backend_down() -> None:
    state = up(fall=3)
    for _ in range(5):
        state.check_failed("x")
        state.check_failed("x")
        state.check_passed()
    assert state.is_up
    for is_up in (True, True, False):
        state.check_failed("x")
        assert state.is_up is is_up


def test_as_many_passes_in_a_row_as_rise_says_take_a_backend_up() -> None:
    state = checked(rise=3)
    state.check_failed("x")
    for _ in range(5):
        state.check_passed()
        state.check_passed()
        state.check_failed("x")
    assert not state.is_up
    for is_up in (False, False, True):
        state.check_passed()
        assert state.is_up is is_up


def test_a_recovered_backend_goes_down_only_after_fall_failures_again() -> None:
    state = checked(rise=1, fall=2)
    for _ in range(9):
        state.check_failed("x")
    state.check_passed()
    state.check_failed("x")
    assert state.is_up
    state.check_failed("x")
    assert not state.is_up


def test_each_change_is_logged_once(changes: list[str]) -> None:
    state = up(rise=1, fall=1)
    for _ in range(2):
        for _ in range(5):
            state.check_failed("http check: status 503")
        for _ in range(5):
            state.check_passed()
    assert (
        changes
        == [
            "WARNING backend 10.0.0.1:80 is down: http check: status 503",
            "INFO backend 10.0.0.1:80 is up again: passed 1 check in a row",
        ]
        * 2
    )


def test_a_client_that_cannot_connect_counts_as_a_failed_check() -> None:
    state = up(fall=3)
    state.check_failed("x")
    state.client_failed("y")
    assert state.is_up
    state.client_failed("it cannot be reached: Connection refused")
    assert (state.is_up, state.reason) == (False, "it cannot be reached: Connection refused")


def test_a_client_that_connects_clears_only_failures_of_clients() -> None:
    state = up(fall=3)
    for _ in range(9):
        state.client_failed("y")
        state.client_failed("y")
        state.client_reached()
    assert state.is_up
    state.check_failed("x")
    state.check_failed("x")
    state.client_reached()
    state.check_failed("x")
    assert not state.is_up


def test_a_client_that_connects_does_not_take_a_checked_backend_up() -> None:
    state = up(fall=1)
    state.check_failed("x")
    state.client_reached()
    assert not state.is_up


def test_clients_that_fail_late_do_not_delay_the_return_of_a_backend() -> None:
    state = checked(rise=2)
    state.check_failed("x")
    state.check_passed()
    for _ in range(9):
        state.client_failed("dialled before it was known to be down")
    state.check_passed()
    assert state.is_up
    state.client_failed("y")
    assert state.is_up


def test_without_checks_a_client_that_connects_takes_a_backend_up(changes: list[str]) -> None:
    state = unchecked(fall=2)
    state.client_failed("y")
    assert state.is_up
    state.client_failed("y")
    assert not state.is_up
    state.client_reached()
    assert state.is_up
    assert changes == [
        "WARNING backend 10.0.0.1:80 is down: y",
        "INFO backend 10.0.0.1:80 is up again: a client has reached it",
    ]


def test_without_checks_one_client_may_try_a_down_backend_in_each_interval() -> None:
    clock = Clock()
    state = unchecked(clock, fall=1)
    state.client_failed("y")
    assert not state.may_try()
    clock.now += 9.9
    assert not state.may_try()
    clock.now += 0.2
    assert state.may_try()
    assert not state.may_try()
    clock.now += 10.1
    assert state.may_try()


def test_checks_are_more_frequent_while_the_state_is_in_question() -> None:
    state = checked(rise=2, fall=4, interval_ms=1000)
    assert state.pause == 1.0
    state.check_passed()
    assert state.pause == 1.0
    state.check_failed("x")
    assert state.pause == 0.25
    for _ in range(3):
        state.check_failed("x")
    assert state.pause == 0.5
    state.check_passed()
    assert state.pause == 0.5
    state.check_passed()
    assert state.pause == 1.0


def test_a_watcher_is_called_at_every_change_and_not_kept_alive() -> None:
    told = []

    class Watcher:
        def refresh(self) -> None:
            told.append(state.is_up)

    state, watcher = up(rise=1, fall=1), Watcher()
    state.watch(watcher)
    state.check_failed("x")
    state.check_failed("x")
    state.check_passed()
    assert told == [False, True]
    del watcher
    gc.collect()
    state.check_failed("x")
    assert told == [False, True]


@given(st.lists(st.sampled_from(["pass", "fail", "client fails", "client connects"])), st.data())
def test_in_any_history_only_enough_equal_results_in_a_row_change_the_state(
    history: list[str], data: st.DataObject
) -> None:
    rise, fall = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    state = up(rise=rise, fall=fall)
    passed = failed = clients = 0
    for event in history:
        before = state.is_up
        if event == "pass":
            state.check_passed()
            passed, failed, clients = passed + 1, 0, 0
        elif event == "fail":
            state.check_failed("x")
            passed, failed = 0, failed + 1
        elif event == "client fails":
            state.client_failed("y")
            clients += 1
        else:
            state.client_reached()
            clients = 0
        if before:
            assert state.is_up == (failed + clients < fall)
        else:
            assert state.is_up == (event == "pass" and passed >= rise)
        if before and not state.is_up:
            passed = 0
        assert bool(state.reason) is not state.is_up


# Settings of health checks


def test_equal_addresses_and_health_settings_have_the_same_key() -> None:
    def key(**values: object) -> tuple[str, ...]:
        health = Health(**{"kind": CHECKS["http"], "options": {"path": "/a"}} | values)  # type: ignore[arg-type]
        return BackendState(ADDRESS, health).key

    assert key() == key(interval_ms=10_000)
    assert key() == key(kind=type(CHECKS["http"])())
    different: list[dict[str, object]] = [
        {"options": {"path": "/b"}},
        {"options": {}},
        {"interval_ms": 1000},
        {"timeout_ms": 1},
        {"rise": 1},
        {"fall": 1},
        {"kind": CHECKS["tcp"], "options": {}},
    ]
    assert len({key(), *(key(**values) for values in different)}) == 1 + len(different)
    assert BackendState(ADDRESS).key != BackendState(Address("10.0.0.1", 81)).key


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"rise": 0}, ["health.rise"]),
        ({"interval_ms": 1, "fall": 101}, ["health.interval_ms", "health.fall"]),
        ({"kind": CHECKS["tcp"], "options": {"path": "/"}}, ["health.path"]),
        ({"kind": CHECKS["http"], "options": {"path": 1, "hots": ""}}, ["health.hots", "health.path"]),
        ({"kind": CHECKS["send_expect"]}, ["health.expect"]),
        ({"options": {"path": "/"}}, ["health.path"]),
    ],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, object], where: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Health(**values)  # type: ignore[arg-type]
    assert [problem.where for problem in caught.value.problems] == where
