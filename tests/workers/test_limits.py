"""Limits over several processes: exact, and released when a process dies."""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import signal
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack, contextmanager
from subprocess import PIPE
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refractium import Settings
from refractium.workers.shared_limiter import LimitTable, SharedLimiter
from support.clients import PATIENCE
from support.process import able_to_import_tests
from workers.counting import ADDRESSES, COUNTED

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def shared(workers: int, settings: Settings) -> Iterator[tuple[LimitTable, list[SharedLimiter]]]:
    table = LimitTable.create(workers, settings.max_connections)
    try:
        yield table, [SharedLimiter(table, worker, settings) for worker in range(workers)]
    finally:
        table.close()


def test_a_refused_client_gets_the_name_of_the_limit_from_every_worker() -> None:
    with shared(2, Settings(max_connections=3, max_connections_per_ip=2)) as (table, (one, two)):
        assert [one.enter("a"), two.enter("a"), one.enter("a")] == [None, None, "max_connections_per_ip"]
        assert [two.enter("b"), one.enter("b")] == [None, "max_connections"]
        assert (table.active, one.active, two.active) == (3, 1, 2)
        one.leave("a")
        assert two.enter("b") is None


def test_a_client_whose_address_is_known_later_counts_from_then_on() -> None:
    with shared(2, Settings(max_connections_per_ip=1)) as (table, (one, two)):
        assert [one.enter(None), two.enter(None)] == [None, None]
        assert [one.assign("a"), two.assign("a")] == [None, "max_connections_per_ip"]
        two.leave(None)
        one.leave("a")
        assert (table.active, two.enter("a")) == (0, None)


def test_changed_limits_apply_to_new_clients() -> None:
    with shared(2, Settings(max_connections_per_ip=1)) as (_, (one, two)):
        one.enter("a")
        two.apply(Settings(max_connections_per_ip=2))
        assert [two.enter("a"), two.enter("a")] == [None, "max_connections_per_ip"]


def test_only_the_counts_of_a_dead_worker_are_released() -> None:
    with shared(2, Settings(max_connections=4, max_connections_per_ip=3)) as (table, (one, two)):
        for limiter in (one, one, two):
            assert limiter.enter("a") is None
        one.enter("b")
        table.forget(0)
        assert table.active == 1
        again = SharedLimiter(table, 0, Settings(max_connections=4, max_connections_per_ip=3))
        assert [again.enter("a"), again.enter("a"), two.enter("a")] == [None, None, "max_connections_per_ip"]
        two.leave("a")
        assert two.enter("b") is None


def test_an_address_without_a_free_row_is_refused_and_others_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All addresses share one bucket, which never happens in a table of the usual size."""
    monkeypatch.setattr("refractium.workers.shared_limiter._FEWEST_BUCKETS", 1)
    monkeypatch.setattr("refractium.workers.shared_limiter._ROOM", 1)
    with shared(1, Settings(max_connections=16)) as (_, (limiter,)):
        limiter.apply(Settings())
        assert [limiter.enter(str(number)) for number in range(17)] == [None] * 16 + ["max_connections"]
        assert limiter.enter("3") is None
        limiter.leave("4")
        assert limiter.enter("x") is None


Step = tuple[int, int, str]
"""The worker, the event (0: a client comes, 1: a client leaves, 2: the worker dies), and the address of the
client."""


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.sampled_from(ADDRESSES)), max_size=60))
def test_after_any_comings_goings_and_deaths_the_counts_are_exact(steps: list[Step]) -> None:
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
                workers[number] = SharedLimiter(table, number, settings)
                inside[number].clear()
            assert table.active == sum(one.total() for one in inside)
            assert [one.active for one in workers] == [one.total() for one in inside]


@pytest.mark.parametrize("each", [1, 2, 3, 4])
def test_locks_that_fail_stop_neither_the_counting_nor_the_release(
    monkeypatch: pytest.MonkeyPatch, each: int
) -> None:
    calls, real, locked = itertools.count(1), fcntl.lockf, False

    def lockf(fd: int, operation: int) -> None:
        nonlocal locked
        if not next(calls) % each:
            raise OSError(errno.ENOMEM, "no memory")
        real(fd, operation)
        locked = operation != fcntl.LOCK_UN

    monkeypatch.setattr("refractium.workers.shared_limiter.fcntl.lockf", lockf)
    with shared(2, Settings()) as (table, (one, two)):
        for _ in range(6):
            assert one.enter("a") is None
            assert two.enter("a") is None
        assert table.active == 12
        table.forget(0)
        assert (table.active, locked) == (6, False)


def test_processes_that_count_at_the_same_time_never_exceed_the_limit() -> None:
    with shared(4, COUNTED) as (table, _), ExitStack() as running:
        workers = [running.enter_context(worker(table, number)) for number in range(4)]
        assert [told(one) for one in workers] == ["ready"] * 4
        for one in workers:
            say(one, "begin")
        found = [Counter[str](json.loads(told(one))) for one in workers]
        assert sum(found, Counter()) == dict.fromkeys(ADDRESSES, 120)
        assert table.active == 360
        running.close()
        assert [one.returncode for one in workers] == [-signal.SIGKILL] * 4
        table.forget(1)
        assert table.active == 360 - found[1].total()


@contextmanager
def worker(table: LimitTable, number: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "workers.counting", str(table.fd), str(number)]
    with subprocess.Popen(
        command, env=able_to_import_tests(), pass_fds=[table.fd], stdin=PIPE, stdout=PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def told(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def say(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def test_a_worker_killed_while_it_counts_delays_no_other_worker() -> None:
    script = """
import os, signal, sys
from refractium.workers.shared_limiter import LimitTable
with LimitTable(int(sys.argv[1])):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    with shared(2, Settings()) as (table, (_, other)):
        died = subprocess.run(
            [sys.executable, "-c", script, str(table.fd)],
            pass_fds=[table.fd],
            timeout=PATIENCE,
            check=False,
        )
        assert died.returncode == -signal.SIGKILL
        assert other.enter("a") is None


def test_a_worker_stopped_while_it_counts_delays_the_others_only_for_a_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = """
import sys
from refractium.workers.shared_limiter import LimitTable
with LimitTable(int(sys.argv[1])):
    print("inside", flush=True)
    sys.stdin.read()
"""
    waits = []
    wait = LimitTable._wait_for_lock

    def counted(table: LimitTable) -> bool:
        waits.append(table)
        return wait(table)

    monkeypatch.setattr(LimitTable, "_wait_for_lock", counted)
    monkeypatch.setattr("refractium.workers.shared_limiter._PATIENCE", 0.1)
    monkeypatch.setattr("refractium.workers.shared_limiter._HOPELESS", PATIENCE)
    settings = Settings(max_connections_per_ip=40)
    command = [sys.executable, "-c", script]
    with shared(2, settings) as (table, (one, _)):
        fd = table.fd
        with subprocess.Popen(
            [*command, str(fd)], pass_fds=[fd], stdin=PIPE, stdout=PIPE, text=True
        ) as holder:
            assert told(holder) == "inside"
            holder.send_signal(signal.SIGSTOP)
            try:
                assert [one.enter("a") for _ in range(41)] == [None] * 40 + ["max_connections_per_ip"]
                assert len(waits) == 1
            finally:
                holder.kill()
        one.leave("a")
        assert one.enter("a") is None
        assert table.active == 40
