"""Measurements of the whole proxy: beside its peers, and with growing work.

uv run python tests/benchmarks compare [--rounds N] [--seconds S] [--only NAME] [--out DIR]

uv run python tests/benchmarks scale [--rounds N] [--seconds S] [--only NAME] [--out DIR]

uv run python tests/benchmarks table RESULT.json
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.console import Console

from benchmarks import chart
from benchmarks.compare import compare
from benchmarks.programs import Missing
from benchmarks.report import Report, Spread, load, markdown_table, save, terminal_table
from benchmarks.scale import Growth, scale, scale_table


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks", description="Measure the whole proxy.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, told, rounds, seconds in (
        ("compare", "with peers, on the same work", 5, 3.0),
        ("scale", "as connections, names, patterns and messages grow", 3, 1.0),
    ):
        command = commands.add_parser(name, help=told, description=f"Measure {told}.")
        command.add_argument(
            "--rounds",
            type=int,
            default=rounds,
            metavar="N",
            help=f"how often to measure each figure [{rounds}]",
        )
        command.add_argument(
            "--seconds", type=float, default=seconds, metavar="S", help=f"seconds per figure [{seconds:g}]"
        )
        command.add_argument(
            "--only",
            action="append",
            default=[],
            metavar="NAME",
            help="only work whose name begins with NAME; repeatable",
        )
        command.add_argument(
            "--out", type=Path, default=Path("build"), metavar="DIR", help="folder for JSON and SVG [build]"
        )
    command = commands.add_parser("table", help="print the table of a comparison in Markdown")
    command.add_argument("result", type=Path, metavar="RESULT.json")
    options = parser.parse_args()
    if options.command == "table":
        print(*markdown_table(load(options.result)), sep="\n")  # noqa: T201 - for a page
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the started programs end too
    with Console(stderr=True).status("starting") as status:
        arguments = (options.only, options.rounds, options.seconds, status.update)
        try:
            measured = compare(*arguments) if options.command == "compare" else scale(*arguments)
        except Missing as reason:
            sys.exit(f"error: {reason}")
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{options.command}.json"
    save(measured, path)
    draw(measured, path.with_suffix(".svg"))
    out = Console() if sys.stdout.isatty() else Console(width=200)
    out.print(terminal_table(measured) if isinstance(measured, Report) else scale_table(measured))
    out.print(
        *(f"- {note}" for note in measured.notes), f"In {path} and {path.with_suffix('.svg')}", sep="\n"
    )


def draw(measured: Report | Growth, path: Path) -> None:
    """Draw a picture for each figure, except for parts of a sum."""
    colours = chart.colours_of(measured.subjects)
    if isinstance(measured, Report):
        panels = [
            chart.bars(
                f"{measure.work}: {measure.title}",
                {name: Spread.of(measure.figures[name]) for name in colours if name in measure.figures},
                colours,
            )
            for measure in measured.measures
            if measure.figures and not measure.is_part
        ]
    else:
        panels = [
            chart.lines(f"{curve.label} ({curve.unit}), {curve.grows}", curve.points, colours)
            for curve in measured.curves
        ]
    chart.draw(panels, colours, path)


if __name__ == "__main__":
    main()
