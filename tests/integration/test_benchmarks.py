"""The benchmarks produce figures; people judge whether the figures are good."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from support.process import environment
from support.programs import require_program

if TYPE_CHECKING:
    from collections.abc import Iterator

BENCHMARKS: Final = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def what_they_need() -> None:
    for program in ("nginx", "dnsmasq"):
        require_program(program)


def benchmarks(*arguments: object) -> str:
    """Run the benchmarks, and return their output."""
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS), *map(str, arguments)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def figures(report: dict[str, Any], work: str) -> Iterator[float]:
    """Return our figures for the metrics that are never 0."""
    for measure in report["measures"]:
        if measure["work"] == work and not measure["metric"].startswith("cpu"):
            yield from measure["figures"]["refractium"]


@pytest.mark.slow
def test_a_comparison_saves_figures_a_picture_and_a_table(tmp_path: Path) -> None:
    require_program("wrk")
    shown = benchmarks(
        *("compare", "--only", "keep-alive", "--only", "bulk-both-1", "--rounds", 1, "--seconds", 0.2),
        *("--out", tmp_path),
    )
    assert "refractium" in shown
    report = json.loads((tmp_path / "compare.json").read_text())
    assert len([figure for figure in figures(report, "keep-alive") if figure > 0]) == 3
    assert len([figure for figure in figures(report, "bulk-both-1") if figure > 0]) == 1
    assert all(measure["ratios"]["direct"]["median"] > 0 for measure in report["measures"][:3])
    assert (tmp_path / "compare.svg").read_text().startswith("<svg ")
    table = benchmarks("table", tmp_path / "compare.json")
    assert "\n| keep-alive | requests, 1/s ↑ |" in table


@pytest.mark.slow
def test_growth_saves_figures_and_a_picture(tmp_path: Path) -> None:
    benchmarks("scale", "--only", "patterns", "--rounds", 1, "--seconds", 0.1, "--out", tmp_path)
    (curve,) = json.loads((tmp_path / "scale.json").read_text())["curves"]
    assert [x for x, _ in curve["points"]["refractium"]] == [1, 10, 100]
    assert (tmp_path / "scale.svg").read_text().startswith("<svg ")


def test_an_unknown_kind_of_work_is_named(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS), "compare", "--only", "nothing", "--out", str(tmp_path)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 1
    assert "keep-alive" in done.stderr
