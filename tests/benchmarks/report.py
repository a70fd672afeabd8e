"""Results of measurements: saved as JSON, and shown as a table in the terminal or in Markdown."""

from __future__ import annotations

import datetime as dt
import os
import platform
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct, json
from rich.table import Table

from benchmarks.peers import DIRECT, OWN

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.work import Metric


class Spread(Struct, frozen=True):
    """The median, the least and the largest of the figures of several rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread:
        return cls(statistics.median(figures), min(figures), max(figures))


class Measure(Struct, kw_only=True):
    """One metric of one kind of work.

    Attributes:
        work: the name of the work.
        metric: the name of the metric among the metrics of the work.
        label: the metric in words.
        unit: the unit of the figures.
        more_is_better: whether larger figures are better.
        figures: one figure for each round, by the name of the subject.
        ratios: the figures of Refractium divided by the figures of a peer in the same round, by the name of
            the peer; none for a peer if any figure is 0 or less.
    """

    work: str
    metric: str
    label: str
    unit: str
    more_is_better: bool
    figures: dict[str, list[float]]
    ratios: dict[str, Spread]

    @property
    def title(self) -> str:
        return f"{self.label}, {self.unit} {'↑' if self.more_is_better else '↓'}"

    @property
    def is_part(self) -> bool:
        """Whether another measure is a sum that includes this one."""
        return self.metric.startswith("cpu_")


class Report(Struct, kw_only=True):
    """The results of one run.

    Attributes:
        made: the time of the run (ISO 8601).
        machine: the machine and the versions that the figures depend on.
        rounds: the number of rounds.
        seconds: seconds of each kind of work in a round.
        paced: requests per second of the paced work; None if there was no paced work.
        notes: remarks about missing or doubtful figures.
        measures: the measures in the order of the table.
    """

    made: str
    machine: dict[str, str]
    rounds: int
    seconds: float
    paced: float | None
    notes: list[str]
    measures: list[Measure]

    @property
    def subjects(self) -> list[str]:
        """The names of subjects with figures, Refractium first."""
        names = dict.fromkeys([OWN, DIRECT, *(name for measure in self.measures for name in measure.figures)])
        return [name for name in names if any(name in measure.figures for measure in self.measures)]


def measure_of(work: str, name: str, metric: Metric, figures: dict[str, list[float]]) -> Measure:
    """Return a measure from the figures of all rounds."""
    own = figures.get(OWN, [])
    ratios = {
        peer: Spread.of([one / other for one, other in zip(own, others, strict=True)])
        for peer, others in figures.items()
        if own and peer != OWN and min(*own, *others, 1) > 0
    }
    return Measure(
        work=work,
        metric=name,
        label=metric.label,
        unit=metric.unit,
        more_is_better=metric.more_is_better,
        figures=figures,
        ratios=ratios,
    )


def machine() -> dict[str, str]:
    """Return the machine and the versions that the figures depend on."""
    model = Path("/proc/cpuinfo").read_text().partition("model name\t: ")[2].partition("\n")[0]
    return {
        "processor": model or platform.machine(),
        "cores": str(os.cpu_count()),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def save(report: object, path: Path) -> None:
    path.write_bytes(json.format(json.encode(report), indent=2) + b"\n")


def load(path: Path) -> Report:
    return json.decode(path.read_bytes(), type=Report)


def number(figure: float) -> str:
    """Return a figure with three digits, or with all digits before the decimal point."""
    return f"{figure:,.0f}" if abs(figure) >= 100 else f"{figure:.3g}"


def _ratio(spread: Spread) -> str:
    return f"{spread.median:.2f}x ({spread.low:.2f} to {spread.high:.2f})"


def _cell(measure: Measure, subject: str, separator: str) -> str:
    """Return the figure with its spread, and for a peer also the ratio with its spread."""
    if subject not in measure.figures:
        return ""
    spread = Spread.of(measure.figures[subject])
    figure = f"{number(spread.median)} ({number(spread.low)} to {number(spread.high)})"
    ratio = measure.ratios.get(subject)
    return figure if ratio is None else f"{figure}{separator}{_ratio(ratio)}"


CAPTION: Final = (
    "Medians of all rounds, with the least and the largest figure. Below the figure of a peer: the figure of"
    " Refractium divided by it. Arrows show the better direction."
)


def terminal_table(report: Report) -> Table:
    """Return the table for a terminal, without the parts of sums."""
    table = Table(caption=CAPTION)
    for column in ("work", "measure", *report.subjects):
        table.add_column(column, no_wrap=True)
    previous = ""
    for measure in report.measures:
        if measure.is_part:
            continue
        if measure.work != previous:
            table.add_section()
        table.add_row(
            measure.work if measure.work != previous else "",
            measure.title,
            *(_cell(measure, subject, "\n") for subject in report.subjects),
        )
        previous = measure.work
    return table


def markdown_table(report: Report) -> Iterator[str]:
    """Yield the lines of the table for docs/explanation/performance.md."""
    told = ", ".join(f"{key} {value}" for key, value in report.machine.items())
    paced = f", paced work at {report.paced:,.0f} requests/s" if report.paced else ""
    yield f"{report.made[:10]}: {told}; {report.rounds} rounds of {number(report.seconds)} s{paced}."
    yield CAPTION
    yield ""
    yield f"| work | measure | {' | '.join(report.subjects)} |"
    yield "|---" * (2 + len(report.subjects)) + "|"
    for measure in report.measures:
        cells = (_cell(measure, subject, "<br>") for subject in report.subjects)
        yield f"| {measure.work} | {measure.title} | {' | '.join(cells)} |"
    if report.notes:
        yield ""
    for note in report.notes:
        yield f"- {note}"
