"""The cost of a packet hook for the data path, in microseconds per packet.

uv run python tests/benchmarks/hooks_queue.py [--json PATH]

The loop sends each packet over loopback, receives it, and gives it to a hook that does nothing. ``call`` is
the time until `Tap.packet` has returned. ``processor`` is the processor time of the loop's thread, minus its
processor time without a hook. It includes the work after the call: waking a thread, and writing to a pipe.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import socket
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import uvloop

sys.path.insert(0, str(Path(__file__).parents[1]))

from refractium.contract import Direction, NoSettings
from refractium.hooks.tap import RouteHooks, make_runner
from support.hooks import Ignoring, IgnoringApart, context, until

if TYPE_CHECKING:
    from typing import Self

    from refractium.hooks.tap import Tap

ROUNDS: Final = 7
SECONDS: Final = 0.5


class Subject(NamedTuple):
    """A case that is measured: a hook, the size of packets (bytes), and packets in each turn of the loop."""

    hook: type[Ignoring]
    size: int
    packets: int

    def __str__(self) -> str:
        return f"{self.hook.isolation}, {self.packets} x {self.size} bytes a turn"


SUBJECTS: Final = [
    Subject(hook, size, packets)
    for hook in (Ignoring, IgnoringApart)
    for size, packets in ((100, 1), (100, 50), (1400, 50), (65_536, 1), (65_536, 8))
]


class Figures(NamedTuple):
    """Microseconds per packet, and dropped packets per thousand."""

    call: float
    processor: float
    dropped: float


class Loopback(NamedTuple):
    """Both ends of a connection."""

    near: socket.socket
    far: socket.socket

    @classmethod
    def connect(cls) -> Self:
        with socket.create_server(("127.0.0.1", 0)) as server:
            near = socket.create_connection(server.getsockname())
            return cls(near, server.accept()[0])

    def pass_through(self, data: bytes) -> bytes:
        """Send bytes from one end, and return the bytes that arrive at the other end."""
        self.near.sendall(data)
        return self.far.recv(len(data), socket.MSG_WAITALL)


async def measure(subject: Subject) -> Figures:
    """Measure one round, with and without the hook."""
    runner = make_runner(subject.hook, NoSettings())
    runner.start()
    tap = RouteHooks([runner]).open(context())
    tap.packet(Direction.INBOUND, b"")
    await until(lambda: runner.counters.inbound.delivered)
    _, without = await move(subject, RouteHooks([]).open(context()))
    call, processor = await move(subject, tap)
    tap.close("closed")
    await runner.stop(10)
    tally = runner.counters.inbound
    assert tally.queued == 0
    return Figures(call, processor - without, tally.dropped / tally.seen * 1000)


async def move(subject: Subject, tap: Tap) -> tuple[float, float]:
    """Move packets for some time.

    Returns:
        Microseconds per packet in the call, and microseconds of processor time per packet in all.
    """
    loopback = Loopback.connect()
    data = bytes(subject.size)
    calls, packets = 0.0, 0
    processor, end = time.thread_time(), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        for _ in range(subject.packets):
            arrived = loopback.pass_through(data)
            began = time.perf_counter()
            tap.packet(Direction.INBOUND, arrived)
            calls += time.perf_counter() - began
        packets += subject.packets
        await asyncio.sleep(0)
    processor = time.thread_time() - processor
    for sock in loopback:
        sock.close()
    return calls / packets * 1e6, processor / packets * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the cost of a hook, in microseconds per packet.")
    parser.add_argument("--json", type=Path, metavar="PATH", help="save the figures to PATH")
    options = parser.parse_args()
    rounds: dict[Subject, list[Figures]] = {subject: [] for subject in SUBJECTS}
    for _ in range(ROUNDS):
        for subject, figures in rounds.items():
            figures.append(uvloop.run(measure(subject)))
    out = sys.stdout.write
    out(f"{'us for a packet':36}{'call':>10}{'processor':>12}{'dropped':>12}\n")
    results = {}
    for subject, figures in rounds.items():
        call, processor, dropped = (statistics.median(column) for column in zip(*figures, strict=True))
        out(f"{subject!s:36}{call:>10.2f}{processor:>12.2f}{dropped:>10.1f} ‰\n")
        results[str(subject)] = {"call": call, "processor": processor, "dropped of 1000": dropped}
    if options.json:
        report = {
            "unit": "us",
            "rounds": ROUNDS,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "results": results,
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
