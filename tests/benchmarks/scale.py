"""The growth of costs with open connections, names, patterns, the size of messages, and workers."""

from __future__ import annotations

import functools
import socket
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec import Struct
from rich.table import Table

from benchmarks.clients import REQUEST, WEB, hello, open_keep_alive, open_stream
from benchmarks.peers import DIRECT, OWN, PEERS, Peer, Place, running_backends, running_subjects
from benchmarks.programs import Missing
from benchmarks.report import machine, now, number
from benchmarks.streams import NAME, PIECE
from benchmarks.work import counting_cost, settle
from support.process import PROGRAM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from benchmarks.peers import Ports, Running, Subject

CONNECTIONS: Final = (1, 10, 100, 1_000, 10_000)
NAMES: Final = (1, 10, 100, 1_000)
PATTERNS: Final = (1, 10, 100)
WORKERS: Final = (1, 2)
_CLIENTS: Final = 32
"""Clients of `with_workers`. Chance gives connections to workers: few clients often leave a worker idle."""
_COSTLY: Final = 1_000
"""Regexes of a protocol whose identification takes milliseconds: each regex takes 3 µs for 1 KiB."""
SIZES: Final = tuple(64 * 4**power for power in range(11))
"""Bytes of messages: 64 B to 64 MiB."""


class Curve(Struct, kw_only=True):
    """The values of one figure over a growing quantity.

    Attributes:
        work: ``connections``, ``names``, ``patterns``, ``sizes`` or ``workers``.
        label: the figure in words.
        unit: the unit of the figure.
        grows: the growing quantity, with its unit.
        points: pairs of the quantity and the median of the figures, by the name of the subject.
    """

    work: str
    label: str
    unit: str
    grows: str
    points: dict[str, list[tuple[float, float]]]


class Growth(Struct, kw_only=True):
    """The results of one run, with curves instead of the measures of `benchmarks.report.Report`."""

    made: str
    machine: dict[str, str]
    rounds: int
    seconds: float
    notes: list[str]
    curves: list[Curve]

    @property
    def subjects(self) -> list[str]:
        """The names of subjects with figures, Refractium first."""
        names = dict.fromkeys([OWN, DIRECT, *(name for curve in self.curves for name in curve.points)])
        return [name for name in names if any(name in curve.points for curve in self.curves)]


class Figure(NamedTuple):
    """One point of one round."""

    work: str
    grows: str
    subject: str
    x: int
    label: str
    unit: str
    y: float


class Stage(NamedTuple):
    """The programs and limits of a measurement.

    Attributes:
        place: the folder and the limits of the started programs.
        backends: the ports of the backends.
        subjects: the measured subjects for TCP.
        seconds: seconds for each figure.
        note: called with remarks about missing or doubtful figures.
    """

    place: Place
    backends: Ports
    subjects: Sequence[Subject]
    seconds: float
    note: Callable[[str], object]


def with_connections(stage: Stage) -> Iterator[Figure]:
    """Measure with many open connections, of which none or one is used."""
    for subject in stage.subjects:
        if subject.start is not None:
            try:
                with subject.start() as running:
                    yield from _with_connections_of(subject, running, stage)
            except (Missing, OSError) as error:
                stage.note(f"connections, {subject.name}: {error}")


def _with_connections_of(subject: Subject, running: Running, stage: Stage) -> Iterator[Figure]:
    most = subject.most_connections
    if most < CONNECTIONS[-1]:
        stage.note(f"connections, {subject.name}: at most {most:,}, limited by descriptors")
    settle(running)
    with ExitStack() as stack:
        socks: list[socket.socket] = []
        for wanted in sorted({min(wanted, most) for wanted in CONNECTIONS}):
            while len(socks) < wanted:
                socks.append(stack.enter_context(open_keep_alive(running.ports["http"])))
            about = ("connections", "open connections", subject.name, wanted)
            with counting_cost(running) as per:
                time.sleep(stage.seconds)
            yield Figure(*about, "CPU while all are idle", "ms/s", per(stage.seconds / 1e3)["cpu"])
            with counting_cost(running) as per:
                times = list(_times(functools.partial(_ask, socks[0]), stage.seconds))
            yield Figure(*about, "CPU per request on one", "µs", per(len(times) / 1e6)["cpu"])
            yield Figure(*about, "latency of one, p50", "µs", statistics.median(times) * 1e6)


def with_names(stage: Stage) -> Iterator[Figure]:
    """Measure with routes for many names of TLS servers; clients ask for the last name."""
    for count in NAMES:
        routes = (
            f'[[protocols]]\nname = "https"\nsni = "n{number}.example"\n'
            f'forward_to = "127.0.0.1:{stage.backends["streams"]}"\n'
            for number in range(count)
        )
        cost = _cost_per_connection(stage, "\n".join(routes), hello(f"n{count - 1}.example"))
        yield Figure("names", "routes by SNI", OWN, count, "CPU per connection", "µs", cost)


def with_patterns(stage: Stage) -> Iterator[Figure]:
    """Measure with many protocols made of a pattern; clients send the last pattern."""
    for count in PATTERNS:
        routes = (
            f'[[protocols]]\nname = "pattern-{number}"\npatterns = ["PATTERN-{number:03}"]\n'
            f'transport = "tcp"\nforward_to = "127.0.0.1:{stage.backends["streams"]}"\n'
            for number in range(count)
        )
        cost = _cost_per_connection(stage, "\n".join(routes), b"PATTERN-%03d" % (count - 1))
        yield Figure("patterns", "protocols by pattern", OWN, count, "CPU per connection", "µs", cost)


def with_sizes(stage: Stage) -> Iterator[Figure]:
    """Measure with messages of one size, one after the other over one connection."""
    for size in SIZES:
        for subject in stage.subjects:
            try:
                with open_stream(subject.running.ports["streams"], b"M") as sock:
                    times = list(_times(functools.partial(_fetch, sock, size), stage.seconds))
            except OSError as error:
                stage.note(f"sizes, {subject.name}: {error}")
                continue
            speed = size * len(times) / sum(times) / 1e9
            yield Figure("sizes", "bytes of a message", subject.name, size, "throughput", "GB/s", speed)


def with_workers(stage: Stage) -> Iterator[Figure]:
    """Measure workers with connections whose identification takes milliseconds.

    Clients and backends then have little to do.
    """
    # Each regex of the first route reads all letters before it fails.
    costly = ", ".join(f'{{ regex = "[a-z]+{number}" }}' for number in range(_COSTLY))
    routes = "".join(
        f'[[protocols]]\nname = "{name}"\npatterns = [{patterns}]\ntransport = "tcp"\n'
        f'forward_to = "127.0.0.1:{stage.backends["streams"]}"\n'
        for name, patterns in (("costly", costly), ("other", '{ regex = "!" }'))
    )
    opening = b"!".rjust(1024, b"x")
    for count in WORKERS:
        peer = Peer(OWN, "tcp", (PROGRAM,), "refractium.toml", ("tcp", "-c", "{}", "--workers", str(count)))
        with peer.start(stage.place, stage.backends, routes) as running:
            port, done = running.ports["streams"], [0] * _CLIENTS

            def ask(client: int, until: float, port: int = port, done: list[int] = done) -> None:
                done[client] = sum(1 for _ in _times(functools.partial(_name, port, opening), until))

            began = time.perf_counter()
            with counting_cost(running) as per:
                threads = [
                    threading.Thread(target=ask, args=(client, stage.seconds)) for client in range(_CLIENTS)
                ]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            taken = time.perf_counter() - began
            about = ("workers", "worker processes", OWN, count)
            yield Figure(*about, "costly connections", "1/s", sum(done) / taken)
            yield Figure(*about, "CPU per costly connection", "µs", per(sum(done) / 1e6)["cpu"])


GROWING: Final = {
    "connections": with_connections,
    "names": with_names,
    "patterns": with_patterns,
    "sizes": with_sizes,
    "workers": with_workers,
}


def scale(chosen: Sequence[str], rounds: int, seconds: float, say: Callable[[str], object]) -> Growth:
    """Measure the chosen growing work; arguments and errors as in `benchmarks.compare.compare`."""
    notes: list[str] = []
    growing = {name: do for name, do in GROWING.items() if not chosen or name.startswith(tuple(chosen))}
    if not growing:
        raise Missing(f"the work is one of {', '.join(GROWING)}")
    figures = defaultdict[tuple[str, ...], dict[str, dict[int, list[float]]]](
        lambda: defaultdict(lambda: defaultdict(list))
    )
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
        place = Place(Path(folder))
        with running_backends(place) as backends, running_subjects(place, backends, notes.append) as subjects:
            over_tcp = [subject for subject in subjects if subject.transport == "tcp"]
            stage = Stage(place, backends, over_tcp, seconds, notes.append)
            for round_number in range(1, rounds + 1):
                for do in growing.values():
                    for figure in do(stage):
                        say(
                            f"round {round_number} of {rounds}: {figure.work}, {figure.subject}, {figure.x:,}"
                        )
                        key = (figure.work, figure.label, figure.unit, figure.grows)
                        figures[key][figure.subject][figure.x].append(figure.y)
    curves = [
        Curve(
            work=work,
            label=label,
            unit=unit,
            grows=grows,
            points={
                subject: [(x, statistics.median(by_x[x])) for x in sorted(by_x)]
                for subject, by_x in by_subject.items()
            },
        )
        for (work, label, unit, grows), by_subject in figures.items()
    ]
    return Growth(
        made=now(),
        machine=machine(),
        rounds=rounds,
        seconds=seconds,
        notes=list(dict.fromkeys(notes)),
        curves=curves,
    )


def _times(act: Callable[[], object], seconds: float) -> Iterator[float]:
    """Repeat an act for `seconds`, at least once, and yield the seconds of each repetition."""
    end = time.perf_counter() + seconds
    while True:
        began = time.perf_counter()
        act()
        now_ = time.perf_counter()
        yield now_ - began
        if now_ >= end:
            return


def _ask(sock: socket.socket) -> None:
    sock.sendall(REQUEST)
    if not sock.recv(4096).endswith(WEB):
        raise ConnectionError("the web server does not answer")


def _name(port: int, opening: bytes) -> None:
    with open_stream(port, b"N", opening) as sock:
        if sock.recv(len(NAME), socket.MSG_WAITALL) != NAME:
            raise ConnectionError("the streams server does not answer")


def _fetch(sock: socket.socket, size: int) -> None:
    sock.sendall(size.to_bytes(8))
    buffer = memoryview(_BUFFER)
    while size:
        count = sock.recv_into(buffer[: min(size, PIECE)])
        if not count:
            raise ConnectionError("the streams server has ended its answer too soon")
        size -= count


_BUFFER: Final = bytearray(PIECE)


def _cost_per_connection(stage: Stage, routes: str, opening: bytes) -> float:
    """Return the processor time of Refractium (µs) per connection.

    Args:
        stage: the programs and limits of the measurement.
        routes: routes to add to the configuration.
        opening: the first bytes of each connection.
    """
    own = next(peer for peer in PEERS if (peer.name, peer.transport) == (OWN, "tcp"))

    with own.start(stage.place, stage.backends, routes) as running:
        ask = functools.partial(_name, running.ports["streams"], opening)
        with counting_cost(running) as per:
            count = len(list(_times(ask, stage.seconds)))
        return per(count / 1e6)["cpu"]


def scale_table(growth: Growth) -> Table:
    """Return the table for a terminal."""
    table = Table()
    for column in ("", "", *growth.subjects):
        table.add_column(column, justify="right" if column else "left")
    for curve in growth.curves:
        table.add_section()
        table.add_row(f"[bold]{curve.label} ({curve.unit})", curve.grows)
        for x in sorted({x for line in curve.points.values() for x, _ in line}):
            by_subject = {name: dict(line).get(x) for name, line in curve.points.items()}
            cells = (by_subject.get(name) for name in growth.subjects)
            table.add_row("", f"{x:,}", *("" if cell is None else number(cell) for cell in cells))
    return table
