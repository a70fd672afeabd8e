"""The kinds of work: each is done through one subject at a time, and gives some figures."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import socket
import subprocess
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from benchmarks.clients import open_keep_alive, open_stream
from benchmarks.pacer import pace
from benchmarks.programs import Cost, Missing, find_program
from benchmarks.streams import receive_all_the_time, send_all_the_time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from benchmarks.peers import Running, Subject

CONNECTIONS: Final = 32
"""Connections of wrk, enough to keep the proxy busy all the time."""
DNS_CLIENTS: Final = 16
IDLE_CONNECTIONS: Final = 10_000
_WRK_SCRIPT: Final = Path(__file__).with_name("wrk.lua")
_QUERIES: Final = Path(__file__).with_name("queries.txt")
_FILLING: Final = 0.1
"""The part of the seconds in which buffers fill, before bytes count."""
_QUIET, _SETTLING = 0.2, 5.0
"""Seconds without work after which a proxy counts as idle, and seconds after which the wait for that ends."""


class Metric(NamedTuple):
    """The meaning of a figure.

    Attributes:
        label: the meaning in words.
        unit: the unit of the figure.
        more_is_better: whether larger figures are better.
    """

    label: str
    unit: str
    more_is_better: bool = False


Figures: TypeAlias = "dict[str, float]"
"""Figures by the name of the metric; metrics that do not apply are left out."""


class Job(NamedTuple):
    """The parameters of work.

    Attributes:
        seconds: the duration (s) of timed work; counted work ignores it.
        rate: requests per second of paced work.
        note: called with remarks about missing or doubtful figures.
    """

    seconds: float
    rate: float
    note: Callable[[str], object]


@dataclass(frozen=True)
class Work:
    """One kind of work.

    Attributes:
        name: the name for ``--only``.
        transport: ``tcp`` or ``udp``.
        metrics: the metrics, by their names in the figures.
        do: the function that does the work and returns the figures.
        tools: the programs that the work needs.
        paced: whether the work has the rate `Job.rate`.
    """

    name: str
    transport: str
    metrics: Mapping[str, Metric]
    do: Callable[[Subject, Job], Figures]
    tools: tuple[str, ...] = ()
    paced: bool = False


def cost_metrics(thing: str, unit: str = "µs") -> dict[str, Metric]:
    return {
        "cpu": Metric(f"CPU per {thing}", unit),
        "cpu_user": Metric(f"CPU per {thing}, user", unit),
        "cpu_system": Metric(f"CPU per {thing}, system", unit),
    }


@contextlib.contextmanager
def counting_cost(running: Running) -> Iterator[Callable[[float], Figures]]:
    """Count the processor time that a proxy uses in the block.

    Yields:
        A function for use after the block, which returns the figures of `cost_metrics` for a number of
        things.
    """
    program = running.program
    before = program.cost() if program else Cost(0, 0)
    used = before

    def per_thing(count: float) -> Figures:
        if program is None:
            return {}
        user, system = used.user / count, used.system / count
        return {"cpu": user + system, "cpu_user": user, "cpu_system": system}

    yield per_thing
    if program:
        used = program.cost().since(before)


def settle(running: Running) -> None:
    """Wait until a proxy is idle, because it starts some parts late."""
    end = time.perf_counter() + _SETTLING
    while time.perf_counter() < end:
        with counting_cost(running) as per:
            time.sleep(_QUIET)
        if not sum(per(1).values()):
            return


# HTTP


class Loaded(NamedTuple):
    """The output of wrk: requests, their duration (s), latencies (ms), and failed requests."""

    requests: int
    seconds: float
    p50: float
    p99: float
    failed: int


def wrk(port: int, seconds: float, *headers: str) -> Loaded:
    """Send requests to the web server as quickly as it answers.

    Args:
        port: the port of the proxy.
        seconds: the duration (s), which is rounded, to one second at the least.
        headers: the headers of each request.
    """
    whole = max(1, round(seconds))
    done = subprocess.run(
        [
            *(find_program("wrk"), "-t1", f"-c{CONNECTIONS}", f"-d{whole}s", "-s", str(_WRK_SCRIPT)),
            *(part for header in headers for part in ("-H", header)),
            f"http://127.0.0.1:{port}/",
        ],
        capture_output=True,
        text=True,
        timeout=whole + 60,
        check=True,
    )
    said = json.loads(done.stdout.splitlines()[-1])
    return Loaded(
        said["requests"], said["microseconds"] / 1e6, said["p50"] / 1e3, said["p99"] / 1e3, said["errors"]
    )


def ask_by_wrk(subject: Subject, job: Job, headers: tuple[str, ...] = ()) -> Figures:
    with counting_cost(subject.running) as per:
        done = wrk(subject.running.ports["http"], job.seconds, *headers)
    if done.failed:
        job.note(f"{done.failed:,} of {done.requests:,} requests failed")
    return {
        "rate": done.requests / done.seconds,
        "p50": done.p50,
        "p99": done.p99,
        **per(done.requests / 1e6),
    }


def half_of_full_load(own: Subject, seconds: float) -> float:
    """Return half of the requests per second of a full load, for paced work."""
    done = wrk(own.running.ports["http"], seconds)
    return done.requests / done.seconds / 2


def ask_at_rate(subject: Subject, job: Job) -> Figures:
    with counting_cost(subject.running) as per:
        done = pace(subject.running.ports["http"], job.rate, job.seconds)
    if done.rate < 0.95 * job.rate:
        job.note(f"reached {done.rate:,.0f} of {job.rate:,.0f} requests/s")
    return {
        "p50": done.percentile(50) * 1e3,
        "p99": done.percentile(99) * 1e3,
        **per(len(done.latencies) / 1e6),
    }


# Bulk


def move(subject: Subject, job: Job, *, letter: bytes, streams: int) -> Figures:
    """Move bytes over some streams for some seconds, after their buffers have filled."""
    tasks = {b"D": [receive_all_the_time], b"U": [send_all_the_time]}
    moved: list[Counter] = []
    with ExitStack() as stack:
        port = subject.running.ports["streams"]
        socks = [stack.enter_context(open_stream(port, letter)) for _ in range(streams)]
        for sock in socks:
            sock.settimeout(None)  # a timeout costs a further system call for each call
            for task in tasks.get(letter, [receive_all_the_time, send_all_the_time]):
                moved.append(Counter())
                thread = threading.Thread(target=task, args=(sock, moved[-1].add))
                thread.start()
                stack.callback(thread.join)
        for sock in socks:
            stack.callback(sock.shutdown, socket.SHUT_RDWR)  # ends the threads
        time.sleep(job.seconds * _FILLING)
        with counting_cost(subject.running) as per:
            before, began = sum(counter.total for counter in moved), time.perf_counter()
            time.sleep(job.seconds)
            gone, ended = sum(counter.total for counter in moved) - before, time.perf_counter()
    if not gone:
        raise Missing("no byte has passed the proxy")
    return {"rate": gone / (ended - began) / 1e9, **per(gone / 1e12)}


class Counter:
    """A counter of the bytes that one thread has moved."""

    def __init__(self) -> None:
        self.total = 0

    def add(self, count: int) -> None:
        self.total += count


# UDP


def ask_by_dnsperf(subject: Subject, job: Job) -> Figures:
    whole = max(1, round(job.seconds))
    with counting_cost(subject.running) as per:
        done = subprocess.run(
            [
                *(find_program("dnsperf"), "-s", "127.0.0.1", "-p", str(subject.running.ports["dns"])),
                *("-d", str(_QUERIES), "-c", str(DNS_CLIENTS), "-l", str(whole)),
            ],
            capture_output=True,
            text=True,
            timeout=whole + 60,
            check=True,
        )
    completed, rate, lost = (
        float(re.findall(pattern, done.stdout)[0])
        for pattern in (
            r"Queries completed: +(\d+)",
            r"Queries per second: +([\d.]+)",
            r"Queries lost: +(\d+)",
        )
    )
    if lost:
        job.note(f"{lost:,.0f} queries were lost, {completed:,.0f} queries were answered")
    return {"rate": rate, **per(completed / 1e6)}


# Memory and start


def hold(subject: Subject, job: Job) -> Figures:
    """Open connections, use each once, and leave them open."""
    if subject.start is None:
        return {}
    count = min(IDLE_CONNECTIONS, subject.most_connections)
    if count < IDLE_CONNECTIONS:
        job.note(f"{count:,} idle connections, limited by descriptors")
    with subject.start() as running, ExitStack() as stack:
        program = running.program
        assert program is not None
        open_keep_alive(
            running.ports["http"]
        ).close()  # memory that the first request takes belongs to the base
        settle(running)
        base = program.memory()
        for _ in range(count):
            stack.enter_context(open_keep_alive(running.ports["http"]))
        return {"base": base / 2**20, "each": (program.memory() - base) / count / 1024}


def start(subject: Subject, _: Job) -> Figures:
    if subject.start is None:
        return {}
    with subject.start() as running:
        assert running.program is not None
        return {"started": running.program.started * 1e3}


_WRK: Final = ("wrk",)
_HTTP: Final = {
    "rate": Metric("requests", "1/s", more_is_better=True),
    "p50": Metric("latency, p50", "ms"),
    "p99": Metric("latency, p99", "ms"),
    **cost_metrics("request"),
}
_PACED: Final = {
    **{name: metric for name, metric in _HTTP.items() if name != "rate"},
    "p50_added": Metric("added latency, p50", "ms"),
    "p99_added": Metric("added latency, p99", "ms"),
}
"""The added latency is the latency minus the latency of ``direct``, see `benchmarks.compare.add_latency`."""
_BULK: Final = {
    "rate": Metric("bytes", "GB/s", more_is_better=True),
    **cost_metrics("GB", "ms"),
}

WORK: Final = (
    Work("keep-alive", "tcp", _HTTP, ask_by_wrk, _WRK),
    Work(
        "connections",
        "tcp",
        {
            "rate": Metric("connections", "1/s", more_is_better=True),
            **cost_metrics("connection"),
        },
        functools.partial(ask_by_wrk, headers=("Connection: close",)),
        _WRK,
    ),
    Work("latency", "tcp", _PACED, ask_at_rate, _WRK, paced=True),
    *(
        Work(
            f"bulk-{way}-{streams}",
            "tcp",
            _BULK,
            functools.partial(move, letter=letter, streams=streams),
        )
        for way, letter in (("down", b"D"), ("up", b"U"), ("both", b"B"))
        for streams in (1, 2)
    ),
    Work(
        "dns",
        "udp",
        {"rate": Metric("queries", "1/s", more_is_better=True), **cost_metrics("query")},
        ask_by_dnsperf,
        ("dnsperf",),
    ),
    Work(
        "memory",
        "tcp",
        {"base": Metric("resident, none open", "MiB"), "each": Metric("per idle connection", "KiB")},
        hold,
    ),
    Work("start", "tcp", {"started": Metric("until it listens", "ms")}, start),
)
