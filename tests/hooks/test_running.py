"""A hook receives all events of each session, in order, and harms nobody else, in a thread and in a
process."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
import tracemalloc
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refractium.contract import Direction, NoSettings
from refractium.hooks.process_runner import ProcessRunner
from refractium.hooks.runner import RunnerState
from refractium.hooks.tap import RouteHooks, make_runner
from support.hooks import (
    PATIENCE,
    RELEASE,
    At,
    Blocking,
    Computing,
    FailingToTellWhy,
    Hoarding,
    Ignoring,
    NotMade,
    NotReadable,
    NotStarting,
    NotStopping,
    Obeying,
    Recording,
    RecordingBatches,
    context,
    read,
    until,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
    from pathlib import Path

    from refractium.contract import PacketHook
    from refractium.contract.hook import Isolation
    from refractium.hooks.counters import Tally
    from refractium.hooks.runner import Runner
    from refractium.hooks.tap import Tap

IN, OUT = Direction.INBOUND, Direction.OUTBOUND
ALL = [
    Recording,
    RecordingBatches,
    Obeying,
    NotStarting,
    NotMade,
    NotReadable,
    NotStopping,
    Blocking,
    FailingToTellWhy,
    Hoarding,
]


@pytest.fixture(params=["thread", "process"])
def isolation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Isolation:
    for hook in ALL:
        monkeypatch.setattr(hook, "isolation", request.param)
    where: Isolation = request.param
    return where


@pytest.fixture(params=[uvloop.run, asyncio.run], ids=["uvloop", "asyncio"])
def run(isolation: Isolation, request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    del isolation
    runs: Callable[[Coroutine[Any, Any, None]], None] = request.param
    return runs


@asynccontextmanager
async def running(hook: type[PacketHook[Any]], settings: Any = None) -> AsyncIterator[Runner]:
    runner = make_runner(hook, NoSettings() if settings is None else settings)
    runner.start()
    try:
        yield runner
    finally:
        await runner.stop(PATIENCE)
    assert_all_is_counted(runner)


def assert_all_is_counted(runner: Runner) -> None:
    for tally in (runner.counters.inbound, runner.counters.outbound):
        assert (tally.queued, tally.queued_bytes) == (0, 0)


def counts(tally: Tally) -> tuple[int, int, int]:
    return tally.seen, tally.delivered, tally.dropped


def test_events_come_in_order_with_offsets_and_times(
    run: Callable[[Coroutine[Any, Any, None]], None], tmp_path: Path
) -> None:
    async def session() -> None:
        async with running(RecordingBatches, At(str(tmp_path / "told"))) as runner:
            tap = RouteHooks([runner]).open(context(2**64 - 1))
            tap.packet(IN, b"hello")
            tap.packet(OUT, b"")
            tap.packet(OUT, bytes(200_000))
            tap.packet(IN, b"!")
            tap.end(IN)
            tap.packet(OUT, b"bye")
            tap.end(OUT)
            tap.close("closed")

    run(session())
    start, opened, *told, closed, stop = read(tmp_path / "told")
    assert [(t.what, t.direction, len(t.data), t.offset) for t in told] == [
        ("packet", IN, 5, 0),
        ("packet", OUT, 0, 0),
        ("packet", OUT, 200_000, 0),
        ("packet", IN, 1, 5),
        ("end", IN, 0, 6),
        ("packet", OUT, 3, 200_000),
        ("end", OUT, 0, 200_003),
    ]
    assert (start.what, opened.what, closed.what, stop.what) == ("start", "open", "close", "stop")
    assert opened.metadata == {"host": "example.com", "alpn": ["h2", "http/1.1"], "secure": False}
    assert (closed.ended, closed.inbound, closed.outbound) == ("closed", 6, 200_003)
    times = [t.time for t in (opened, *told, closed)]
    assert times == sorted(times)
    assert abs(times[0] / 1e9 - time.time()) < 60
    assert {t.session for t in (opened, *told, closed)} == {2**64 - 1}


def test_single_events_go_to_their_methods(
    run: Callable[[Coroutine[Any, Any, None]], None], tmp_path: Path
) -> None:
    async def session() -> None:
        async with running(Recording, At(str(tmp_path / "told"))) as runner:
            tap = RouteHooks([runner]).open(context(7))
            tap.packet(IN, b"a")
            tap.end(IN)
            tap.close("idle")
            tap.packet(IN, b"too late")
            tap.close("again")
            await until(lambda: runner.counters.inbound.delivered)
            assert counts(runner.counters.inbound) == (1, 1, 0)

    run(session())
    told = read(tmp_path / "told")
    assert [(t.what, t.data, t.ended) for t in told] == [
        ("start", b"", ""),
        ("open", b"", ""),
        ("packet", b"a", ""),
        ("close", b"", "idle"),
        ("stop", b"", ""),
    ]


def test_an_exception_of_any_kind_is_counted_and_logged(
    run: Callable[[Coroutine[Any, Any, None]], None],
    isolation: Isolation,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    async def session() -> None:
        async with running(Obeying, At(str(tmp_path / "told"))) as runner:
            tap = RouteHooks([runner]).open(context())
            for word in (b"raise", b"exit", b"interrupt", b"fine") * 5:
                tap.packet(IN, word)
            await until(lambda: runner.counters.inbound.delivered == 20)
            assert (runner.counters.failures, runner.state) == (15, RunnerState.RUNNING)
            tap.close("closed")

    run(session())
    assert [t.what for t in read(tmp_path / "told")][-2:] == ["close", "stop"]
    lines = caplog.messages if isolation == "thread" else capfd.readouterr().err.splitlines()
    (line,) = [line for line in lines if "failed" in line]
    assert "hook obeying failed: ValueError: as told (" in line
    assert "support/hooks.py:" in line


def test_ten_failures_in_a_row_detach_a_hook(
    run: Callable[[Coroutine[Any, Any, None]], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def session() -> None:
        async with running(Obeying, At(str(tmp_path / "told"))) as runner:
            route_hooks = RouteHooks([runner])
            tap = route_hooks.open(context(1))
            for word in [b"raise"] * 9 + [b"fine"] + [b"raise"] * 10 + [b"too late"] * 3:
                tap.packet(IN, word)
            tap.close("closed")
            await until(lambda: runner.state is RunnerState.DETACHED)
            assert counts(runner.counters.inbound) == (23, 20, 3)
            assert runner.counters.failures == 19
            assert "10 times in a row: ValueError: as told" in runner.reason
            tap = route_hooks.open(context(2))
            tap.packet(OUT, b"nobody")
            tap.close("closed")
            assert counts(runner.counters.outbound) == (1, 0, 1)

    run(session())
    assert [t.what for t in read(tmp_path / "told")] == ["start", "open"] + ["packet"] * 20 + ["stop"]
    assert [r.levelno for r in caplog.records].count(logging.ERROR) == 1


def test_an_inherited_empty_method_is_not_a_success_between_failures(
    run: Callable[[Coroutine[Any, Any, None]], None],
) -> None:
    async def sessions() -> None:
        async with running(FailingToTellWhy) as runner:
            route_hooks = RouteHooks([runner])
            for number in range(10):
                tap = route_hooks.open(context(number))
                tap.packet(IN, b"one each")
                tap.close("closed")
            await until(lambda: runner.state is RunnerState.DETACHED)
            assert "_WithoutText" in runner.reason

    run(sessions())


@pytest.mark.parametrize(
    ("hook", "reason"),
    [(NotStarting, "Permission denied"), (NotMade, "SystemExit: 3"), (NotReadable, "SystemExit: 4")],
)
def test_a_hook_that_does_not_start_is_detached(
    run: Callable[[Coroutine[Any, Any, None]], None],
    hook: type[PacketHook[Any]],
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def session() -> None:
        async with running(hook) as runner:
            tap = RouteHooks([runner]).open(context())
            tap.packet(IN, b"early")
            await until(lambda: runner.state is RunnerState.DETACHED)
            tap.packet(IN, b"late")
            tap.close("closed")
            assert counts(runner.counters.inbound) == (2, 0, 2)
            assert reason in runner.reason

    run(session())
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "cannot be started" in line


@pytest.mark.parametrize("hook", [Blocking, NotStopping])
def test_a_hook_that_blocks_does_not_delay_the_stop(
    run: Callable[[Coroutine[Any, Any, None]], None],
    isolation: Isolation,
    hook: type[PacketHook[Any]],
    tmp_path: Path,
) -> None:
    async def session() -> None:
        settings = At(str(tmp_path / "told")) if hook is NotStopping else NoSettings()
        runner = make_runner(hook, settings)
        runner.start()
        tap = RouteHooks([runner]).open(context())
        for _ in range(100):
            tap.packet(IN, b"x" * 10)
        tap.close("closed")
        if hook is NotStopping:
            await until(lambda: runner.counters.inbound.delivered == 100)
        elif isolation == "thread":
            await until(lambda: runner.counters.inbound.delivered)
        began = time.monotonic()
        await runner.stop(0.2)
        assert time.monotonic() - began < 6
        assert_all_is_counted(runner)
        tally = runner.counters.inbound
        assert tally.seen == 100
        if isolation == "thread":
            assert tally.delivered == (1 if hook is Blocking else 100)

    run(session())


def test_events_left_at_the_time_limit_are_dropped_and_the_hook_is_stopped(
    run: Callable[[Coroutine[Any, Any, None]], None], tmp_path: Path
) -> None:
    path = tmp_path / "told"

    async def session() -> None:
        runner = make_runner(Obeying, At(str(path)))
        runner.start()
        tap = RouteHooks([runner]).open(context())
        for _ in range(200):
            tap.packet(OUT, b"nap")
        tap.close("closed")
        await until(lambda: len(read(path)) > 3)
        await runner.stop(0.3)
        assert_all_is_counted(runner)
        tally = runner.counters.outbound
        assert tally.delivered + tally.dropped == 200
        told = [t.what for t in read(path)]
        assert told.count("packet") == tally.delivered < 200
        assert told[-1] == "stop"

    run(session())


def test_a_slow_hook_receives_all_events_if_the_stop_has_time(
    run: Callable[[Coroutine[Any, Any, None]], None], tmp_path: Path
) -> None:
    async def session() -> None:
        async with running(Obeying, At(str(tmp_path / "told"))) as runner:
            tap = RouteHooks([runner]).open(context())
            for _ in range(30):
                tap.packet(OUT, b"nap")
            tap.close("closed")
        assert counts(runner.counters.outbound) == (30, 30, 0)

    run(session())
    assert [t.what for t in read(tmp_path / "told")] == ["start", "open", *["packet"] * 30, "close", "stop"]


def test_packets_that_do_not_fit_are_dropped_and_later_ones_delivered(
    run: Callable[[Coroutine[Any, Any, None]], None], tmp_path: Path
) -> None:
    async def session() -> None:
        async with running(Obeying, At(str(tmp_path / "told"))) as runner:
            tap = RouteHooks([runner]).open(context())
            tap.packet(IN, b"first")
            # While the hook starts, the queue may accept everything that comes at once.
            await until(lambda: runner.counters.inbound.delivered == 1)
            tap.packet(IN, bytes(40_000))
            tap.packet(IN, bytes(40_000))
            tap.packet(IN, b"small")
            await until(
                lambda: runner.counters.inbound.delivered == 3 and runner.put_bytes == runner.taken_bytes
            )
            tap.packet(IN, bytes(40_000))
            tap.close("closed")
        assert counts(runner.counters.inbound) == (5, 4, 1)
        assert runner.counters.inbound.dropped_bytes == 40_000

    run(session())
    told = read(tmp_path / "told")
    assert [len(t.data) for t in told if t.what == "packet"] == [5, 40_000, 5, 40_000]
    assert [t.inbound for t in told if t.what == "close"] == [120_010]


def test_drop_session_leaves_streams_without_holes(
    run: Callable[[Coroutine[Any, Any, None]], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(RecordingBatches, "overflow", "drop_session")
    monkeypatch.setattr(RecordingBatches, "queue_bytes", 65_536)

    async def session() -> None:
        async with running(RecordingBatches, At(str(tmp_path / "told"))) as runner:
            route_hooks = RouteHooks([runner])
            tap, other = route_hooks.open(context(1)), route_hooks.open(context(2))
            tap.packet(IN, b"first")
            await until(lambda: runner.counters.inbound.delivered == 1)  # as in the test before
            tap.packet(IN, bytes(40_000))
            tap.packet(IN, bytes(40_000))
            tap.packet(IN, b"would fit")
            tap.end(IN)
            other.packet(IN, b"fits")
            other.end(IN)
            tap.close("closed")
            other.close("closed")
        assert counts(runner.counters.inbound) == (5, 3, 2)

    run(session())
    told = read(tmp_path / "told")
    of_session = {number: [t.what for t in told if t.session == number] for number in (1, 2)}
    assert of_session == {1: ["open", "packet", "packet", "close"], 2: ["open", "packet", "end", "close"]}


def test_a_session_whose_open_event_does_not_fit_is_dropped_entirely(
    run: Callable[[Coroutine[Any, Any, None]], None], isolation: Isolation, tmp_path: Path
) -> None:
    async def session() -> None:
        async with running(Obeying, At(str(tmp_path / "told"))) as runner:
            route_hooks = RouteHooks([runner])
            filling = route_hooks.open(context(1))
            if isolation == "thread":  # a thread would go on taking events meanwhile
                filling.packet(IN, b"block")
                await until(lambda: runner.counters.inbound.delivered == 1)
            while runner.put_bytes - runner.taken_bytes + 256 <= runner.queue_bytes:
                filling.packet(IN, b"")
            unseen = route_hooks.open(context(2))
            unseen.packet(OUT, b"lost")
            RELEASE.set()
            await until(lambda: runner.counters.inbound.queued == 0)
            unseen.packet(OUT, b"lost too")
            unseen.end(OUT)
            unseen.close("closed")
            filling.close("closed")
        assert counts(runner.counters.outbound) == (2, 0, 2)

    run(session())
    told = read(tmp_path / "told")
    assert {t.session for t in told if t.what not in {"start", "stop"}} == {1}


def test_a_blocked_hook_costs_bounded_memory_and_harms_no_other_hook(
    run: Callable[[Coroutine[Any, Any, None]], None], tmp_path: Path
) -> None:
    async def sessions() -> None:
        async with running(Recording, At(str(tmp_path / "told"))) as healthy:
            dead = make_runner(Blocking, NoSettings())
            dead.start()
            route_hooks = RouteHooks([dead, healthy])
            tracemalloc.start()
            for number in range(1000):
                tap = route_hooks.open(context(number))
                for _ in range(20):
                    tap.packet(IN, bytes(1000))
                tap.close("closed")
                if number % 50 == 0:
                    await until(lambda: not healthy.counters.inbound.queued)
            await until(lambda: healthy.counters.inbound.delivered == 20_000)
            grown, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert grown < 3 * Blocking.queue_bytes
            assert dead.counters.inbound.dropped > 10_000
            await dead.stop(0.1)
            assert_all_is_counted(dead)
            assert dead.counters.inbound.seen == 20_000

    run(sessions())
    kinds = Counter(t.what for t in read(tmp_path / "told"))
    assert kinds == {"start": 1, "open": 1000, "packet": 20_000, "close": 1000, "stop": 1}


def test_a_hook_without_traffic_uses_no_processor_time(
    run: Callable[[Coroutine[Any, Any, None]], None],
) -> None:
    async def session() -> None:
        async with running(Recording, At("/dev/null")) as runner:
            tap = RouteHooks([runner]).open(context())
            tap.packet(IN, b"x")
            await until(lambda: runner.counters.inbound.delivered)
            ours = time.process_time()
            childs = cpu_seconds(runner)
            await asyncio.sleep(0.5)
            assert time.process_time() - ours < 0.1
            assert cpu_seconds(runner) - childs < 0.1
            tap.close("closed")

    run(session())


def cpu_seconds(runner: Runner) -> float:
    if not isinstance(runner, ProcessRunner):
        return 0.0
    assert runner._child is not None
    with open(f"/proc/{runner._child.pid}/stat") as file:  # noqa: PTH123 - a file of proc(5)
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_packets_that_a_hook_keeps_do_not_count_as_queued(
    run: Callable[[Coroutine[Any, Any, None]], None],
) -> None:
    async def session() -> None:
        async with running(Hoarding) as runner:
            tap = RouteHooks([runner]).open(context())
            for _ in range(10):
                tap.packet(IN, bytes(60_000))
                await until(lambda: runner.counters.inbound.queued == 0)
                await until(lambda: runner.put_bytes == runner.taken_bytes)
            tap.close("closed")
        assert counts(runner.counters.inbound) == (10, 10, 0)

    run(session())


@pytest.mark.parametrize("isolation", ["thread"], indirect=True)
def test_a_hook_that_computes_lets_the_data_path_run(isolation: Isolation) -> None:
    """A thread that kept every turn offered by a system call would let only a thousand packets pass in this
    second."""

    async def session() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            client = socket.create_connection(server.getsockname())
            accepted, _ = server.accept()
        with client, accepted:
            async with running(Computing) as runner:
                tap = RouteHooks([runner]).open(context())
                passed, end = 0, time.process_time() + 1
                while time.process_time() < end:
                    client.send(b"x" * 100)
                    tap.packet(IN, accepted.recv(100))
                    passed += 1
                    await asyncio.sleep(0)
                tap.close("closed")
                assert runner.counters.inbound.delivered > 10
                # Measuring coverage halves the speed.
                assert passed > (5000 if sys.gettrace() is None else 2000)

    del isolation
    uvloop.run(session())


@pytest.mark.parametrize("isolation", ["thread"], indirect=True)
def test_a_runner_that_was_never_started_can_be_stopped(isolation: Isolation) -> None:
    async def session() -> None:
        for hook in (Ignoring, Obeying):
            await make_runner(hook, NoSettings()).stop(5)

    del isolation
    uvloop.run(session())


steps = st.lists(
    st.tuples(
        st.sampled_from(["open", IN, OUT, "end", "close", "turn", "wait"]),
        st.integers(0, 2),
        st.sampled_from([0, 1, 900, 30_000, 70_000]),
    ),
    max_size=40,
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps, words=st.lists(st.sampled_from([b"raise", b"exit", b"nap", b"fine"]), max_size=12))
def test_any_schedule_is_counted_exactly(
    isolation: Isolation,
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[str, int, int]],
    words: list[bytes],
) -> None:
    del isolation
    path = tmp_path_factory.mktemp("schedule") / "told"

    async def schedule() -> tuple[Runner, int]:
        async with running(Obeying, At(str(path))) as runner:
            opened = await follow(steps, iter(words), RouteHooks([runner]))
        return runner, opened

    runner, opened = uvloop.run(schedule())
    told = read(path)
    sent = Counter(step for step, _, _ in steps)
    for direction, tally in ((IN, runner.counters.inbound), (OUT, runner.counters.outbound)):
        packets = [t for t in told if t.direction == direction and t.what == "packet"]
        assert tally.seen <= sent[direction]
        assert tally.delivered + tally.dropped == tally.seen
        assert tally.delivered == len(packets)
        assert tally.delivered_bytes == sum(len(t.data) for t in packets)
    for number in range(1, opened + 1):
        kinds = [t.what for t in told if t.session == number]
        if kinds and runner.state is not RunnerState.DETACHED:
            assert (kinds[0], kinds[-1]) == ("open", "close")
            assert kinds.count("open") == kinds.count("close") == 1


async def follow(steps: list[tuple[str, int, int]], words: Iterator[bytes], route_hooks: RouteHooks) -> int:
    """Run the steps of a schedule, and return the number of sessions that it opened."""
    tap_of: dict[int, Tap] = {}
    opened = 0
    for step, slot, size in steps:
        tap = tap_of.get(slot)
        if step == "turn":
            await asyncio.sleep(0)
        elif step == "wait":
            await asyncio.sleep(0.003)
        elif tap is None:
            opened += 1
            tap_of[slot] = route_hooks.open(context(opened))
        elif step == "end":
            tap.end(OUT)
        elif step in {"open", "close"}:
            tap_of.pop(slot).close("closed")
        else:
            tap.packet(Direction(step), next(words, bytes(size)))
    for tap in tap_of.values():
        tap.close("closed")
    return opened


@pytest.mark.parametrize("isolation", ["process"], indirect=True)
def test_signals_to_all_processes_do_not_end_the_child(isolation: Isolation, tmp_path: Path) -> None:
    async def session() -> None:
        async with running(Recording, At(str(tmp_path / "told"))) as runner:
            assert isinstance(runner, ProcessRunner)
            tap = RouteHooks([runner]).open(context())
            tap.packet(IN, b"before")
            await until(lambda: runner.counters.inbound.delivered)
            assert runner._child is not None
            os.kill(runner._child.pid, signal.SIGINT)
            os.kill(runner._child.pid, signal.SIGTERM)
            tap.packet(IN, b"after")
            tap.close("closed")
        assert counts(runner.counters.inbound) == (2, 2, 0)

    del isolation
    uvloop.run(session())
    assert [t.what for t in read(tmp_path / "told")] == ["start", "open", "packet", "packet", "close", "stop"]
