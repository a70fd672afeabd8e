"""The cost of packet hooks: proxies with and without hooks, on the same work, in alternation.

uv run python tests/benchmarks/hooks.py [--rounds N] [--seconds S] [--out DIR]

``thread`` and ``process`` are hooks that do nothing; ``pcap`` mirrors everything to files. Without hooks,
bulk goes through pipes and never enters the memory of the proxy; with hooks, it must. So there is ``copy``,
which has neither hooks nor pipes. A ratio compares two rates of one round. Dropped bytes are bytes that the
hook did not get because it was too slow. The processor time is the sum for all processes of the proxy.

``bulk-half`` is bulk that the client takes at half of the rate of ``copy`` in the same round.

This module is also the plugin with the hooks that do nothing: `install_plugin` makes a distribution of it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.console import Console
from rich.table import Table

from benchmarks import copying
from benchmarks.clients import open_stream
from benchmarks.peers import Place, Running, Subject, check, running_backends
from benchmarks.programs import Missing, Program, find_program
from benchmarks.report import machine, number
from benchmarks.streams import receive_all_the_time
from benchmarks.work import WORK, Counter, Job, counting_cost
from refractium.contract import Direction, HookContext, NoSettings, PacketHook, hookimpl
from refractium.observe.control import ask, decode, file_name
from support.process import PROGRAM, RUNTIME, TIMEOUT, free_port, is_listening

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from benchmarks.peers import Ports
    from benchmarks.work import Work


class InThread(PacketHook[NoSettings]):
    """A hook that gets everything and does nothing."""

    name = "thread"

    def on_packet(self, context: HookContext, direction: Direction, data: bytes) -> None: ...


class InProcess(InThread):
    """A hook in a process that gets everything and does nothing."""

    name = "process"
    isolation = "process"


@hookimpl
def refractium_hooks() -> list[type[PacketHook[Any]]]:
    """Return both hooks."""
    return [InThread, InProcess]


NONE: Final = "none"
COPY: Final = "copy"
PCAP: Final = "pcap"
HOOKS: Final = (NONE, COPY, "thread", "process", PCAP)
"""The compared proxies; the first two have no hooks."""
_FILE_BYTES: Final = 1 << 28
_FILES: Final = 4
"""The largest number of files of a capture, each of `_FILE_BYTES`."""


class Paced(Counter):
    """A counter of the bytes that one thread has moved, which slows the thread to `rate` bytes per second."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self._rate = rate
        self._began = time.perf_counter()

    def add(self, count: int) -> None:
        super().add(count)
        time.sleep(max(0.0, self._began + self.total / self._rate - time.perf_counter()))


def take_at_rate(subject: Subject, job: Job) -> dict[str, float]:
    """Receive the bytes of one stream, at most `Job.rate` bytes per second."""
    with open_stream(subject.running.ports["streams"], b"D") as sock:
        sock.settimeout(None)
        taken = Paced(job.rate)
        thread = threading.Thread(target=receive_all_the_time, args=(sock, taken.add))
        with counting_cost(subject.running) as per:
            thread.start()
            began = time.perf_counter()
            time.sleep(job.seconds)
            total, ended = taken.total, time.perf_counter()
        sock.shutdown(socket.SHUT_RDWR)
        thread.join()
    return {"rate": total / (ended - began) / 1e9, **per(total / 1e12)}


KEEP_ALIVE: Final = next(work for work in WORK if work.name == "keep-alive")
BULK: Final = next(work for work in WORK if work.name == "bulk-down-1")
HALF: Final = replace(BULK, name="bulk-half", do=take_at_rate, paced=True)
WORKS: Final = (KEEP_ALIVE, BULK, HALF)


class Figures(NamedTuple):
    """The figures of one kind of work in one round.

    Attributes:
        rate: the rate of requests or bytes, in the unit of the work.
        cpu: the processor time for a request or for bytes, in the unit of the work.
        dropped: the share of all bytes that the hook did not get.
    """

    rate: float
    cpu: float
    dropped: float


def measure(
    rounds: int, seconds: float, folder: Path, say: Callable[[str], object]
) -> dict[str, dict[str, list[Figures]]]:
    """Measure, and return the figures of all rounds, by work and hook.

    Args:
        rounds: the number of rounds.
        seconds: seconds of each kind of work, in each round, with each hook.
        folder: the folder for captures.
        say: called with a line about the progress.

    Raises:
        Missing: a program that is needed is not installed, or a proxy does not serve.
    """
    found: dict[str, dict[str, list[Figures]]] = {one.name: {hook: [] for hook in HOOKS} for one in WORKS}
    find_program("wrk")
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as place, ExitStack() as stack:
        install_plugin(Path(place))
        backends = stack.enter_context(running_backends(Place(Path(place))))
        proxies = {
            hook: stack.enter_context(running_proxy(hook, Place(Path(place)), backends, folder))
            for hook in HOOKS
        }
        warm_up(folder)
        for turn in range(rounds):
            for work in WORKS:
                copied = found[BULK.name][COPY]
                job = Job(seconds, copied[-1].rate * 1e9 / 2 if copied else 0.0, say)
                # The first hook changes, so that no hook always follows the same other hook.
                for hook in HOOKS[turn % len(HOOKS) :] + HOOKS[: turn % len(HOOKS)]:
                    say(f"round {turn + 1} of {rounds}: {work.name}, {hook}")
                    found[work.name][hook].append(done(work, proxies[hook], job))
    return found


def warm_up(folder: Path) -> None:
    """Write files once, so that the kernel has the memory that they need.

    A virtual machine may get this memory from its host only when it is first used, which takes time.
    """
    path = folder / "warm"
    with path.open("wb") as file:
        for _ in range(_FILES + 1):
            file.write(bytes(_FILE_BYTES))
    path.unlink()


def install_plugin(folder: Path) -> None:
    """Make a distribution of this module, and let all started programs find it."""
    information = folder / "refractium_benchmark_hooks-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: refractium-benchmark-hooks\nVersion: 1\n"
    )
    (information / "entry_points.txt").write_text("[refractium]\nidle = benchmarks.hooks\n")
    paths = (folder, Path(__file__).parents[1], os.environ.get("PYTHONPATH", ""))
    os.environ["PYTHONPATH"] = os.pathsep.join(str(path) for path in paths if path)


@contextlib.contextmanager
def running_proxy(hook: str, place: Place, backends: Ports, captures: Path) -> Iterator[Subject]:
    """Run a proxy with a hook on all routes.

    Raises:
        Missing: the proxy does not serve, or requests do not reach the right backends.
    """
    port = free_port()
    path = Path(place.configure("refractium.toml", port, backends))
    used = "" if hook in (NONE, COPY) else f'hooks = ["{hook}"]'
    program = [sys.executable, copying.__file__] if hook == COPY else [PROGRAM]
    capture = captures / "hooks-{number}.pcapng"
    plugin = f'[plugins.pcap]\npath = "{capture}"\nmax_bytes = {_FILE_BYTES}\nmax_files = {_FILES}\n'
    text = path.read_text().replace("[server]\n", f"[server]\nhot_reload = false\n{used}\n")
    path.write_text(text + (plugin if hook == PCAP else ""))
    try:
        with Program([*program, "tcp", "-c", str(path)], lambda: is_listening(port)) as started:
            running = Running(dict.fromkeys(backends, port), started)
            check(running, "tcp")
            yield Subject(hook, "tcp", running, None, place.connections)
    finally:
        for file in captures.glob(capture.name.format(number="*")):
            file.unlink()


def done(work: Work, subject: Subject, job: Job) -> Figures:
    """Do work, wait until the queue of the hook is empty, and return the figures."""
    before = told(subject)
    figures = work.do(subject, job)
    end = time.perf_counter() + TIMEOUT
    while (after := told(subject)).queued:
        if time.perf_counter() > end:
            raise Missing(f"the queue of hook {subject.name} does not become empty")
        time.sleep(0.05)
    os.sync()  # so that the next proxy does not wait for the writes of this one
    seen = after.seen - before.seen
    return Figures(figures["rate"], figures["cpu"], (after.dropped - before.dropped) / seen if seen else 0.0)


class Told(NamedTuple):
    """Numbers of bytes that have passed, that were dropped, and that are in the queue of the hook."""

    seen: int
    dropped: int
    queued: int


def told(subject: Subject) -> Told:
    """Return the numbers of bytes for the hook of a proxy so far."""
    status = decode(ask([Path(RUNTIME.name, file_name(subject.running.ports["http"]))]))
    tallies = [one for hook in status.hooks for one in (hook.inbound, hook.outbound)]
    seen, dropped = sum(one.seen_bytes for one in tallies), sum(one.dropped_bytes for one in tallies)
    return Told(seen, dropped, seen - dropped - sum(one.delivered_bytes for one in tallies))


COLUMNS: Final = ("work", "hook", "rate", "ratio to none", "ratio to copy", "CPU", "dropped")


def rows(found: dict[str, dict[str, list[Figures]]]) -> Iterator[tuple[str, ...]]:
    """Yield the rows of the table, with the cells of `COLUMNS`."""
    for work in WORKS:
        by_hook = found[work.name]
        rate_metric, cpu_metric = work.metrics["rate"], work.metrics["cpu"]
        unit = f"{rate_metric.label}/s" if rate_metric.unit == "1/s" else rate_metric.unit
        for hook, rounds in by_hook.items():
            rate, cpu, dropped = (statistics.median(column) for column in zip(*rounds, strict=True))
            yield (
                work.name,
                hook,
                f"{number(rate)} {unit}",
                ratio(rounds, by_hook[NONE]),
                ratio(rounds, by_hook[COPY]),
                f"{number(cpu)} {cpu_metric.unit} {cpu_metric.label.removeprefix('CPU ')}",
                f"{dropped:.1%}",
            )


def ratio(rounds: Sequence[Figures], others: Sequence[Figures]) -> str:
    """Return the median, the least and the largest of the ratios of two rates in the same round."""
    ratios = [one.rate / other.rate for one, other in zip(rounds, others, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def markdown(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="hooks.py", description="Measure the cost of packet hooks.")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="how often to measure [5]")
    parser.add_argument("--seconds", type=float, default=3.0, metavar="S", help="seconds for each figure [3]")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for captures, removed at the end [a temporary folder]"
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the started programs end too
    with (
        Console(stderr=True).status("starting") as status,
        tempfile.TemporaryDirectory(prefix="captures-", dir=options.out) as folder,
    ):
        try:
            found = measure(options.rounds, options.seconds, Path(folder), status.update)
        except Missing as reason:
            sys.exit(f"error: {reason}")
    table = Table(*COLUMNS)
    for row in rows(found):
        table.add_row(*row)
    out = Console() if sys.stdout.isatty() else Console(width=200)
    told = ", ".join(f"{key} {value}" for key, value in machine().items())
    out.print(f"{told}; {options.rounds} rounds of {number(options.seconds)} s, medians", table)
    for line in (COLUMNS, ("---",) * len(COLUMNS), *rows(found)):
        out.out(markdown(line), highlight=False)


if __name__ == "__main__":
    main()
