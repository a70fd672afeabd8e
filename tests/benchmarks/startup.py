"""The cost of a start: milliseconds until a command has ended, or until the program listens.

uv run python tests/benchmarks/startup.py [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.process import PROGRAM, TIMEOUT, environment, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ROUNDS: Final = 15
FORWARDS: Final = [
    part for name in ("http", "https", "ssh", "dns", "ftp") for part in ("-f", f"{name}=127.0.0.1:9")
]


def end_of(*command: str) -> float:
    """Return the milliseconds until a command has ended."""
    began = time.perf_counter()
    subprocess.run(command, env=environment(), stdout=subprocess.DEVNULL, timeout=TIMEOUT, check=True)
    return (time.perf_counter() - began) * 1000


def listening() -> float:
    """Return the milliseconds until the program listens, with a route for every protocol."""
    began = time.perf_counter()
    with serving("tcp", "-b", "127.0.0.1", "-p", 0, *FORWARDS):
        return (time.perf_counter() - began) * 1000


SUBJECTS: Final[Mapping[str, Callable[[], float]]] = {
    "python, nothing else": lambda: end_of(sys.executable, "-c", ""),
    "refractium --version": lambda: end_of(PROGRAM, "--version"),
    "refractium plugins list": lambda: end_of(PROGRAM, "plugins", "list"),
    "refractium tcp, listening": listening,
}


def measure() -> dict[str, list[float]]:
    """Return the figures of all rounds, by subject.

    The subjects take turns, so that a slow moment of the machine does not affect only one subject.
    """
    figures: dict[str, list[float]] = {name: [] for name in SUBJECTS}
    for subject in SUBJECTS.values():
        subject()  # so that the files are in memory
    for _ in range(ROUNDS):
        for name, subject in SUBJECTS.items():
            figures[name].append(subject())
    return figures


def summary(figures: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
    """Return the figures of the table; ``over python`` is the median of the differences within each round."""
    baseline = next(iter(figures.values()))
    return {
        name: {
            "median": round(statistics.median(rounds), 1),
            "min": round(min(rounds), 1),
            "max": round(max(rounds), 1),
            "over python": round(
                statistics.median(one - base for one, base in zip(rounds, baseline, strict=True)), 1
            ),
        }
        for name, rounds in figures.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure milliseconds until a command has ended or listens.")
    parser.add_argument("--json", type=Path, metavar="PATH", help="save the figures to PATH")
    options = parser.parse_args()
    results = summary(measure())
    out = sys.stdout.write
    out(f"{'ms':28}{'median':>12}{'min':>12}{'max':>12}{'over python':>14}\n")
    for name, result in results.items():
        *figures, over = result.values()
        out(f"{name:28}" + "".join(f"{figure:>12.1f}" for figure in figures) + f"{over:>14.1f}\n")
    if options.json:
        report = {
            "unit": "ms",
            "rounds": ROUNDS,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "results": results,
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
