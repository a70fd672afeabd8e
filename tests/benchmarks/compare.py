"""Measurements of Refractium and its peers in alternation, on the same work."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.peers import DIRECT, OWN, Place, running_backends, running_subjects
from benchmarks.programs import Missing, find_program
from benchmarks.report import Report, machine, measure_of, now
from benchmarks.work import WORK, Job, half_of_full_load

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.peers import Subject
    from benchmarks.work import Figures, Work


def compare(chosen: Sequence[str], rounds: int, seconds: float, say: Callable[[str], object]) -> Report:
    """Measure all subjects on the chosen work.

    Args:
        chosen: the beginnings of the names of chosen work; empty for all work.
        rounds: the number of rounds.
        seconds: seconds of each kind of work, in each round, through each subject.
        say: called with a line about the progress.

    Raises:
        Missing: there is no work, or a program that is needed is not installed.
    """
    notes: list[str] = []
    works = [work for work in WORK if not chosen or work.name.startswith(tuple(chosen))]
    works = [work for work in works if _has_tools(work, notes.append)]
    if not works:
        raise Missing("; ".join(notes) or f"the work is one of {', '.join(work.name for work in WORK)}")
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
        place = Place(Path(folder))
        with running_backends(place) as backends, running_subjects(place, backends, notes.append) as subjects:
            figures: dict[str, list[dict[str, Figures]]] = {work.name: [] for work in works}
            job = Job(seconds, _rate(works, subjects, seconds), notes.append)
            for number in range(rounds):
                for work in works:
                    taking_part = [one for one in subjects if one.transport == work.transport]
                    figures[work.name].append({})
                    # The first subject changes, so that no subject always follows the same other subject.
                    for subject in (
                        taking_part[number % len(taking_part) :] + taking_part[: number % len(taking_part)]
                    ):
                        say(f"round {number + 1} of {rounds}: {work.name}, {subject.name}")
                        figures[work.name][-1][subject.name] = _done(work, subject, job)
                    if work.paced:
                        add_latency(figures[work.name][-1])
            names = [subject.name for subject in subjects]
    measures = [
        measure_of(work.name, name, metric, _by_subject(figures[work.name], name, names))
        for work in works
        for name, metric in work.metrics.items()
    ]
    return Report(
        made=now(),
        machine=machine(),
        rounds=rounds,
        seconds=seconds,
        paced=job.rate or None,
        notes=list(dict.fromkeys(notes)),
        measures=measures,
    )


def _done(work: Work, subject: Subject, job: Job) -> Figures:
    """Do work through a subject, and return the figures; if it fails, note the reason and return none."""

    def note(text: str) -> None:
        job.note(f"{work.name}, {subject.name}: {text}")

    try:
        return work.do(subject, job._replace(note=note))
    except (Missing, OSError, subprocess.SubprocessError) as error:
        note(str(error))
        return {}


def _has_tools(work: Work, note: Callable[[str], object]) -> bool:
    try:
        for tool in work.tools:
            find_program(tool)
    except Missing as reason:
        note(f"{work.name} is left out: {reason}")
        return False
    return True


def _rate(works: Sequence[Work], subjects: Sequence[Subject], seconds: float) -> float:
    """Return the requests per second of paced work, for all subjects: half of the full load of Refractium."""
    if not any(work.paced for work in works):
        return 0.0
    own = next(one for one in subjects if (one.name, one.transport) == (OWN, "tcp"))
    return half_of_full_load(own, seconds)


def add_latency(figures: dict[str, Figures]) -> None:
    """Add to the figures of a round the latency that each proxy adds to the latency without a proxy."""
    direct = figures.get(DIRECT, {})
    for name, of_subject in figures.items():
        if name != DIRECT and of_subject and direct:
            of_subject |= {f"{key}_added": of_subject[key] - direct[key] for key in ("p50", "p99")}


def _by_subject(
    rounds: Sequence[dict[str, Figures]], metric: str, names: Sequence[str]
) -> dict[str, list[float]]:
    return {
        name: [one[name][metric] for one in rounds]
        for name in dict.fromkeys(names)
        if all(metric in one.get(name, {}) for one in rounds)
    }
