"""Properties of a hook in a process of its own, such as its death, its priority and its signals."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import deque
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from refractium.contract import Direction, EventKind, NoSettings, PacketHook, SessionStats
from refractium.hooks import process_runner
from refractium.hooks import runner as runner_module
from refractium.hooks.frames import HEADER, START, Frames, Start, encode
from refractium.hooks.memory import keep_freed_memory
from refractium.hooks.process_runner import ProcessRunner
from refractium.hooks.runner import RunnerState
from refractium.hooks.tap import RouteHooks, make_runner
from support.hooks import (
    PATIENCE,
    At,
    Blocking,
    Ignoring,
    IgnoringApart,
    Obeying,
    context,
    read,
    until,
)
from support.process import TESTS, able_to_import_tests
from support.proxy import eventually

if TYPE_CHECKING:
    from refractium.hooks.delivery import Item

IN, OUT = Direction.INBOUND, Direction.OUTBOUND


@pytest.fixture
def _apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Obeying, "isolation", "process")
    monkeypatch.setattr(Blocking, "isolation", "process")


def child_of(runner: ProcessRunner) -> int:
    assert runner._child is not None
    return runner._child.pid


@pytest.mark.usefixtures("_apart")
@pytest.mark.parametrize("word", [b"kill", b"die"])
def test_a_child_that_dies_loses_only_the_sessions_it_knew(
    word: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def sessions() -> None:
        runner = ProcessRunner(Obeying, At(str(tmp_path / "told")))
        runner.start()
        route_hooks = RouteHooks([runner])
        old = route_hooks.open(context(1))
        old.packet(IN, b"first")
        await until(lambda: runner.counters.inbound.delivered == 1)
        old.packet(IN, word)
        await until(lambda: any("its process" in line for line in caplog.messages))
        tally = runner.counters.inbound
        assert (tally.seen, tally.delivered, tally.dropped) == (2, 1, 1)
        await until(lambda: runner._is_accepting)
        new = route_hooks.open(context(2))
        old.packet(IN, b"not told")
        new.packet(IN, b"second")
        old.close("closed")
        new.close("closed")
        await until(lambda: tally.delivered == 2)
        assert (tally.seen, tally.dropped, runner.state) == (4, 2, RunnerState.RUNNING)
        await runner.stop(PATIENCE)

    uvloop.run(sessions())
    told = [(t.what, t.session, t.data) for t in read(tmp_path / "told")]
    assert told == [
        ("start", 0, b""),
        ("open", 1, b""),
        ("packet", 1, b"first"),
        ("packet", 1, word),
        ("start", 0, b""),
        ("open", 2, b""),
        ("packet", 2, b"second"),
        ("close", 2, b""),
        ("stop", 0, b""),
    ]
    (line,) = caplog.messages
    assert line == "hook obeying: its process {}; a new one in 0.1 s".format(
        "was killed by signal 9" if word == b"kill" else "has exited with 7"
    )


@pytest.mark.usefixtures("_apart")
def test_a_child_that_dies_again_and_again_is_given_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refractium.hooks.process_runner._FIRST_PAUSE", 0.001)

    async def sessions() -> None:
        runner = ProcessRunner(Obeying, At(str(tmp_path / "told")))
        runner.start()
        route_hooks = RouteHooks([runner])
        for number in range(6):
            await until(lambda: runner._is_accepting)
            tap = route_hooks.open(context(number))
            tap.packet(IN, b"die")
            await until(lambda: not runner._is_accepting or runner.counters.inbound.queued == 0)
            tap.close("closed")
        await until(lambda: runner.state is RunnerState.DETACHED)
        assert runner.reason == "its process has exited with 7, for the 6th time"
        assert (runner.counters.inbound.seen, runner.counters.inbound.dropped) == (6, 6)
        await runner.stop(PATIENCE)

    uvloop.run(sessions())
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 5 + ["ERROR"]


_PROXY = """
import asyncio, os, sys
from refractium.contract import Direction, NoSettings
from refractium.hooks.tap import RouteHooks, make_runner
from support import hooks

async def main():
    hook = getattr(hooks, sys.argv[1])
    hook.isolation = sys.argv[2]
    settings = hooks.At(sys.argv[3]) if hook.settings_type is hooks.At else NoSettings()
    runner = make_runner(hook, settings)
    runner.start()
    tap = RouteHooks([runner]).open(hooks.context())
    for word in sys.argv[5:]:
        tap.packet(Direction.INBOUND, word.encode())
    while runner.counters.inbound.delivered < 1 and sys.argv[1] != "Blocking":
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    print("ready", flush=True)
    if sys.argv[4] == "wait":
        await asyncio.sleep(60)
    tap.close("closed")
    await runner.stop(0.1 if sys.argv[1] == "Blocking" else 20)

asyncio.run(main())
"""


def proxy(hook: str, isolation: str, path: Path, how: str, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", _PROXY, hook, isolation, str(path), how, *words],
        env=able_to_import_tests(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_the_child_of_a_killed_proxy_processes_all_sent_events_and_ends(tmp_path: Path) -> None:
    path = tmp_path / "told"
    with proxy("Obeying", "process", path, "wait", *["nap"] * 30, "last") as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == b"ready\n"
        killed.kill()
        killed.wait(PATIENCE)
        killed.stdout.read()  # the child holds the write end too, so this read ends with the child
    told = [(t.what, t.data) for t in read(path)]
    assert told == [
        ("start", b""),
        ("open", b""),
        *[("packet", b"nap")] * 30,
        ("packet", b"last"),
        ("stop", b""),
    ]


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_hook_that_blocks_does_not_keep_the_interpreter_from_exiting(
    isolation: str, tmp_path: Path
) -> None:
    with proxy("Blocking", isolation, tmp_path / "told", "stop", "x") as stopped:
        began = time.monotonic()
        out, _ = stopped.communicate(timeout=PATIENCE)
        assert time.monotonic() - began < 10
        assert stopped.returncode == 0
        assert b"ready\n" in out


def test_a_hook_in_a_process_prints_where_the_proxy_does(tmp_path: Path) -> None:
    with proxy("Obeying", "process", tmp_path / "told", "stop", "print") as printing:
        out, _ = printing.communicate(timeout=PATIENCE)
    assert out.splitlines() == [b"printed by the hook", b"ready"]


def test_the_child_has_the_lowest_priority(tmp_path: Path) -> None:
    async def session() -> None:
        runner = ProcessRunner(Obeying, At(str(tmp_path / "told")))
        runner.start()
        tap = RouteHooks([runner]).open(context(1))
        tap.packet(IN, b"first")
        await until(lambda: runner.counters.inbound.delivered == 1)
        assert runner._child is not None
        assert os.getpriority(os.PRIO_PROCESS, runner._child.pid) == 19
        tap.close("closed")
        await runner.stop(PATIENCE)

    uvloop.run(session())


def test_a_child_that_waits_for_a_processor_gets_more_time_to_stop(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = 0.2
    for module in (process_runner, runner_module):
        monkeypatch.setattr(module, "STOP_SECONDS", seconds)
    monkeypatch.setattr(runner_module, "EXTRA_SECONDS", PATIENCE)
    used = [0.0]
    monkeypatch.setattr(process_runner, "_usage", lambda _: ("R", used[0]))

    async def session() -> None:
        runner = ProcessRunner(IgnoringApart, NoSettings())
        runner.start()
        tap = RouteHooks([runner]).open(context(1))
        tap.packet(IN, b"first")
        await until(lambda: runner.counters.inbound.delivered == 1)
        assert runner._child is not None
        tap.close("closed")
        os.kill(runner._child.pid, signal.SIGSTOP)  # in the place of programs that keep all processors busy
        stopping = asyncio.create_task(runner.stop(seconds))
        await asyncio.sleep(2 * seconds)
        used[0] = 2 * seconds  # it has had its share for the queue, and gets another one for its stop
        await asyncio.sleep(4 * seconds)
        assert not stopping.done()
        os.kill(runner._child.pid, signal.SIGCONT)
        await stopping

    uvloop.run(session())
    assert not caplog.records


@pytest.mark.parametrize(("code", "state"), [("while True: pass", "R"), ("input()", "S")])
def test_a_process_that_computes_is_told_from_one_that_sleeps(code: str, state: str) -> None:
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as program:
        eventually(lambda: process_runner._usage(program.pid)[0] == state, "its state")
        used = process_runner._usage(program.pid)[1]
        if state == "R":
            eventually(lambda: process_runner._usage(program.pid)[1] > used, "it uses processor time")
        program.kill()
    assert process_runner._usage(program.pid) == ("", 0.0)


def test_without_ctypes_the_setting_for_freed_memory_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ctypes", None)
    keep_freed_memory.__wrapped__()


def test_a_malloc_setting_in_the_environment_is_not_overridden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "ctypes.CDLL", lambda _name: pytest.fail("the setting of the environment was overridden")
    )
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    keep_freed_memory.__wrapped__()


def test_sigint_to_the_whole_process_group_loses_no_event(tmp_path: Path) -> None:
    path = tmp_path / "told"
    interrupted = subprocess.Popen(
        [sys.executable, "-c", _PROXY, "Obeying", "process", str(path), "wait", *["nap"] * 20],
        env=able_to_import_tests(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        process_group=0,
    )
    with interrupted:
        assert interrupted.stdout is not None
        assert interrupted.stdout.readline() == b"ready\n"
        os.killpg(interrupted.pid, signal.SIGINT)
        interrupted.wait(PATIENCE)
        interrupted.stdout.read()
    assert [t.what for t in read(path)] == ["start", "open", *["packet"] * 20, "stop"]


@pytest.mark.usefixtures("_apart")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_a_service_manager_sends_to_all_processes_leaves_the_child_alone(
    number: signal.Signals, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def session() -> None:
        runner = ProcessRunner(Obeying, At(str(tmp_path / "told")))
        runner.start()
        tap = RouteHooks([runner]).open(context())
        tap.packet(IN, b"before")
        await until(lambda: runner.counters.inbound.delivered == 1)
        os.kill(child_of(runner), number)
        tap.packet(IN, b"after")
        tap.close("closed")
        await runner.stop(PATIENCE)

    uvloop.run(session())
    assert [t.data for t in read(tmp_path / "told") if t.what == "packet"] == [b"before", b"after"]
    assert not caplog.messages


@pytest.mark.parametrize("where", ["<locals>", "__main__", "a module that is not loaded"])
def test_a_class_that_a_process_cannot_import_is_refused_with_the_remedy(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Local(Ignoring):
        isolation = "process"

    if where != "<locals>":
        Local.__qualname__ = "Local"
        Local.__module__ = "__main__" if where == "__main__" else "nowhere.at_all"
        monkeypatch.setattr(sys.modules["__main__"], "Local", Local, raising=False)
    with pytest.raises(ValueError, match=r"define the class at the top of a module .* in a thread"):
        make_runner(Local, NoSettings())


class Untellable(Struct, frozen=True, forbid_unknown_fields=True):
    what: Any = None


class Untold(PacketHook[Untellable]):
    name = "untold"
    isolation = "process"
    settings_type = Untellable


def test_settings_that_cannot_be_sent_to_a_process_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refractium.hooks.process_runner._require_importable", lambda _hook: None)
    with pytest.raises(ValueError, match=r"hook untold .*Untellable cannot be sent"):
        make_runner(Untold, Untellable(what=object()))


def test_a_hook_whose_module_the_child_cannot_import_is_detached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if Path(entry) != TESTS])

    async def session() -> None:
        runner = make_runner(IgnoringApart, NoSettings())
        runner.start()
        tap = RouteHooks([runner]).open(context())
        tap.packet(OUT, b"x")
        await until(lambda: runner.state is RunnerState.DETACHED)
        tap.close("closed")
        assert "cannot import the hook: ModuleNotFoundError" in runner.reason
        assert (runner.counters.outbound.seen, runner.counters.outbound.dropped) == (1, 1)
        await runner.stop(PATIENCE)

    uvloop.run(session())


@pytest.mark.usefixtures("_apart")
def test_a_session_that_cannot_be_sent_to_the_child_is_dropped_without_an_exception(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def session() -> None:
        runner = make_runner(Obeying, At(str(tmp_path / "told")))
        runner.start()
        for number in range(3):
            tap = RouteHooks([runner]).open(context(number, metadata={"host": "\udcff"}))
            tap.packet(IN, b"x")
            tap.close("closed")
        await runner.stop(PATIENCE)
        assert (runner.counters.inbound.seen, runner.counters.inbound.dropped) == (3, 3)

    uvloop.run(session())
    assert [t.what for t in read(tmp_path / "told")] == ["start", "stop"]
    # Clients choose what they call themselves: they must not choose how much is logged.
    assert caplog.text.count("misses a session") == 1


@pytest.mark.usefixtures("_apart")
def test_more_bytes_than_the_pipe_holds_arrive_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Obeying, "queue_bytes", 32 * 1024 * 1024)
    pieces = [os.urandom(size) for size in (1, 65_536, 3_000_000, 0, 4095, 4096, 4097)] + [
        b"nap",
        b"x" * 900_000,
    ]

    async def session() -> None:
        runner = make_runner(Obeying, At(str(tmp_path / "told")))
        runner.start()
        tap = RouteHooks([runner]).open(context())
        for piece in pieces:
            tap.packet(OUT, piece)
        for _ in range(3000):
            tap.packet(IN, b"")
        tap.close("closed")
        await runner.stop(PATIENCE)
        assert runner.counters.outbound.delivered_bytes == sum(map(len, pieces))
        assert runner.counters.inbound.delivered == 3000
        assert runner.put_bytes == runner.taken_bytes

    uvloop.run(session())
    told = read(tmp_path / "told")
    assert [t.data for t in told if t.direction == OUT] == pieces


def test_the_child_receives_events_while_the_loop_has_no_turn() -> None:
    async def one_turn() -> None:
        runner = ProcessRunner(IgnoringApart, NoSettings())
        runner.start()
        tap = RouteHooks([runner]).open(context())
        tap.packet(IN, b"")
        await until(lambda: runner.counters.inbound.delivered)
        end = time.monotonic() + PATIENCE
        while runner.taken_bytes < IgnoringApart.queue_bytes:
            assert time.monotonic() < end
            tap.packet(IN, bytes(65_536))
            # The short sleep is as long as a turn of the data path. The long one lets the child run, which
            # has the lowest priority: nothing enters a full queue, and so nothing would be written.
            is_behind = runner.put_bytes - runner.taken_bytes > IgnoringApart.queue_bytes // 2
            time.sleep(0.05 if is_behind else 0.0001)  # noqa: ASYNC251
        tap.close("closed")
        await runner.stop(PATIENCE)

    uvloop.run(one_turn())


@given(cuts=st.lists(st.integers(0, 900), max_size=12))
def test_frames_cut_anywhere_give_the_same_events(cuts: list[int]) -> None:
    opened, closed = context(5), SessionStats(1.5, 3, 0, "closed")

    def frame(kind: int, body: bytes, *, outbound: bool = False, offset: int = 0) -> bytes:
        return HEADER.pack(kind, outbound, len(body), 5, 1000, offset) + body

    start = Start("module", "Hook", b"settings", ["/path"], {"root": 30}, "plain", None)
    stream = b"".join(
        [
            frame(START, encode(start)),
            frame(EventKind.OPEN, encode(opened)),
            frame(EventKind.PACKET, b"abc"),
            frame(EventKind.PACKET, b"", outbound=True, offset=9),
            frame(EventKind.END, b"", offset=3),
            frame(EventKind.CLOSE, encode(closed)),
        ]
    )
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    frames, found = Frames(), None
    events: deque[Item] = deque()
    for begin, end in pairwise(edges):
        piece = stream[begin:end]
        if found is None:
            found = frames.start(piece)
        else:
            frames.feed(piece, events)
    frames.feed(b"", events)
    assert found == start
    assert list(events) == [
        (EventKind.OPEN, 1000, opened, IN, b"", 0, None),
        (EventKind.PACKET, 1000, opened, IN, b"abc", 0, None),
        (EventKind.PACKET, 1000, opened, OUT, b"", 9, None),
        (EventKind.END, 1000, opened, IN, b"", 3, None),
        (EventKind.CLOSE, 1000, opened, IN, b"", 0, closed),
    ]
    assert not frames.contexts
    assert msgspec.msgpack.decode(encode(opened), type=type(opened)) == opened


def test_a_child_that_waits_for_a_processor_gets_more_time_to_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_runner, "STOP_SECONDS", 0.1)
    monkeypatch.setattr(process_runner, "EXTRA_SECONDS", PATIENCE)
    monkeypatch.setattr(process_runner, "_usage", lambda _: ("R", 0.0))
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.5)"]) as child:
        assert process_runner._reap(child) == 0


def test_a_child_that_sleeps_instead_of_exiting_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_runner, "STOP_SECONDS", 0.1)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        eventually(lambda: process_runner._usage(child.pid)[0] == "S", "the child sleeps")
        assert process_runner._reap(child) == -signal.SIGKILL
