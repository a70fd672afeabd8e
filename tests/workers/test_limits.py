"""Limits that hold over several processes: exact, and given back by those who die."""

from __future__ import annotations

import os
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from refractium import Settings
from refractium.workers.limits import LimitTable, SharedLimits
from support.clients import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

    import pytest

ADDRESSES = ("192.0.2.1", "192.0.2.2", "2001:db8::1")


@contextmanager
def shared(workers: int, settings: Settings) -> Iterator[tuple[LimitTable, list[SharedLimits]]]:
    table = LimitTable.create(workers, settings.max_connections)
    try:
        yield table, [SharedLimits(table, worker, settings) for worker in range(workers)]
    finally:
        table.close()


def test_it_says_which_limit_keeps_a_client_out_whichever_worker_it_asks() -> None:
    with shared(2, Settings(max_connections=3, max_connections_per_ip=2)) as (table, (one, two)):
        assert [one.enter("a"), two.enter("a"), one.enter("a")] == [None, None, "max_connections_per_ip"]
        assert [two.enter("b"), one.enter("b")] == [None, "max_connections"]
        assert (table.active, one.active, two.active) == (3, 1, 2)
        one.leave("a")
        assert two.enter("b") is None


def test_a_client_that_is_known_later_counts_from_then_on() -> None:
    with shared(2, Settings(max_connections_per_ip=1)) as (table, (one, two)):
        assert [one.enter(None), two.enter(None)] == [None, None]
        assert [one.assign("a"), two.assign("a")] == [None, "max_connections_per_ip"]
        two.leave(None)
        one.leave("a")
        assert (table.active, two.enter("a")) == (0, None)


def test_other_limits_hold_for_those_to_come() -> None:
    with shared(2, Settings(max_connections_per_ip=1)) as (_, (one, two)):
        one.enter("a")
        two.apply(Settings(max_connections_per_ip=2))
        assert [two.enter("a"), two.enter("a")] == [None, "max_connections_per_ip"]


def test_what_a_dead_worker_has_counted_is_given_back_and_nothing_else() -> None:
    with shared(2, Settings(max_connections=4, max_connections_per_ip=3)) as (table, (one, two)):
        for limits in (one, one, two):
            assert limits.enter("a") is None
        one.enter("b")
        table.forget(0)
        assert table.active == 1
        again = SharedLimits(table, 0, Settings(max_connections=4, max_connections_per_ip=3))
        assert [again.enter("a"), again.enter("a"), two.enter("a")] == [None, None, "max_connections_per_ip"]
        two.leave("a")
        assert two.enter("b") is None


def test_an_address_without_a_row_left_is_kept_out_and_others_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All addresses in one bucket, which a table of the size of ours does not see."""
    monkeypatch.setattr("refractium.workers.limits._FEWEST_BUCKETS", 1)
    monkeypatch.setattr("refractium.workers.limits._ROOM", 1)
    with shared(1, Settings(max_connections=16)) as (_, (limits,)):
        limits.apply(Settings())
        assert [limits.enter(str(number)) for number in range(17)] == [None] * 16 + ["max_connections"]
        assert limits.enter("3") is None
        limits.leave("4")
        assert limits.enter("x") is None


Step = tuple[int, int, str]
"""A worker; whether somebody comes (0), goes (1), or the worker dies (2); whose address it is."""


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.sampled_from(ADDRESSES)), max_size=60))
def test_whoever_comes_goes_and_dies_the_counts_are_those_of_who_is_in(steps: list[Step]) -> None:
    settings = Settings(max_connections=5, max_connections_per_ip=3)
    with shared(3, settings) as (table, workers):
        inside = [Counter[str]() for _ in workers]
        for number, what, ip in steps:
            everyone = sum(inside, Counter())
            if what == 0:
                fits = everyone.total() < 5 and everyone[ip] < 3
                assert (workers[number].enter(ip) is None) == fits
                inside[number][ip] += fits
            elif what == 1 and inside[number][ip]:
                workers[number].leave(ip)
                inside[number][ip] -= 1
            elif what == 2:
                table.forget(number)
                workers[number] = SharedLimits(table, number, settings)
                inside[number].clear()
            assert table.active == sum(one.total() for one in inside)
            assert [one.active for one in workers] == [one.total() for one in inside]


def enter_often(fd: int, number: int, pipe: Connection) -> None:
    """A process that lets in whom it can, and says how many; then it waits to be killed."""
    limits = SharedLimits(
        LimitTable(os.dup(fd)), number, Settings(max_connections=500, max_connections_per_ip=120)
    )
    let_in = Counter(ip for _ in range(400) for ip in ADDRESSES if limits.enter(ip) is None)
    pipe.send(let_in)
    pipe.recv()


def test_processes_that_count_at_the_same_time_never_let_one_too_many_in() -> None:
    context = get_context("fork")
    with shared(4, Settings(max_connections=500)) as (table, _), ThreadPoolExecutor(4) as pool:
        pipes, processes = [], []
        for number in range(4):
            ours, theirs = context.Pipe()
            process = context.Process(target=enter_often, args=(table.fd, number, theirs))
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        try:
            assert all(pool.map(lambda pipe: pipe.poll(PATIENCE), pipes))
            found: list[Counter[str]] = [pipe.recv() for pipe in pipes]
            assert sum(found, Counter()) == dict.fromkeys(ADDRESSES, 120)
            assert table.active == 360
        finally:
            for process in processes:
                process.kill()
                process.join(PATIENCE)
                assert process.exitcode == -signal.SIGKILL
            for pipe in pipes:
                pipe.close()
        table.forget(1)
        assert table.active == 360 - found[1].total()


def die_inside(fd: int) -> None:
    with LimitTable(os.dup(fd)):
        os.kill(os.getpid(), signal.SIGKILL)


def test_one_that_is_killed_while_it_lets_somebody_in_keeps_nobody_waiting() -> None:
    with shared(2, Settings()) as (table, (_, other)):
        process = get_context("fork").Process(target=die_inside, args=(table.fd,))
        process.start()
        process.join(PATIENCE)
        assert process.exitcode == -signal.SIGKILL
        assert other.enter("a") is None
