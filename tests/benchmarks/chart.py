"""Pictures of figures, as SVG."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Final, NamedTuple

from benchmarks.report import Spread, number

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_COLOURS: Final = ("#7048e8", "#868e96", "#f08c00", "#2f9e44", "#1c7ed6", "#e03131")
"""The colours of subjects, in the order of the subjects."""
_WIDTH: Final = 340
_MARGIN: Final = 20
_BAR: Final = 18
_NAMES: Final = 80
"""Pixels for the names of subjects beside bars."""
_FIGURES: Final = 60
"""Pixels for the figures to the right of bars, or to the left of lines."""
_PLOT: Final = 170
"""Pixels of the height of a plot with lines."""
_WIDE: Final = 100
"""The ratio of the largest to the least figure above which an axis is logarithmic; other axes begin at 0."""


class Panel(NamedTuple):
    """A small picture: its parts and its height (pixels)."""

    parts: list[str]
    height: float


def bars(title: str, spreads: Mapping[str, Spread], colours: Mapping[str, str]) -> Panel:
    """Return a panel with a bar for each subject, and a line from its least to its largest figure."""
    parts = [_text(0, 0, title, weight="bold")]
    scale = (_WIDTH - _NAMES - _FIGURES) / (max(spread.high for spread in spreads.values()) or 1)
    for row, (name, spread) in enumerate(spreads.items()):
        y = 10 + row * (_BAR + 4)
        middle = y + _BAR / 2
        length, low, high = (max(0.0, value) * scale for value in (spread.median, spread.low, spread.high))
        parts += [
            _text(_NAMES - 6, middle + 4, name, anchor="end"),
            f'<rect x="{_NAMES}" y="{y}" width="{length:.1f}" height="{_BAR}" fill="{colours[name]}"/>',
            _line(_NAMES + low, middle, _NAMES + high, middle, "#212529"),
            _text(_NAMES + high + 5, middle + 4, number(spread.median)),
        ]
    return Panel(parts, 10 + len(spreads) * (_BAR + 4))


def lines(
    title: str, points: Mapping[str, Sequence[tuple[float, float]]], colours: Mapping[str, str]
) -> Panel:
    """Return a panel with a line for each subject over a logarithmic x axis.

    The y axis is logarithmic, too, if the figures differ by a large factor.
    """
    xs = [x for line in points.values() for x, _ in line]
    ys = [y for line in points.values() for _, y in line]
    logarithmic = max(ys) > _WIDE * min(ys) > 0
    low, high = (math.log10(min(ys)), math.log10(max(ys))) if logarithmic else (0.0, max(ys))
    bottom = 15 + _PLOT

    def x_of(x: float) -> float:
        whole = math.log10(max(xs) / min(xs)) or 1
        return _FIGURES + math.log10(x / min(xs)) / whole * (_WIDTH - _FIGURES - 20)

    def y_of(y: float) -> float:
        value = math.log10(y) if logarithmic else y
        return bottom - (value - low) / ((high - low) or 1) * _PLOT

    parts = [_text(0, 0, title, weight="bold"), _line(_FIGURES, bottom, _WIDTH, bottom, "#adb5bd")]
    parts += [_text(_FIGURES - 6, y_of(y) + 4, number(y), anchor="end") for y in {min(ys), max(ys)}]
    parts += [_text(x_of(x), bottom + 16, number(x), anchor="middle") for x in {min(xs), max(xs)}]
    for name, line in points.items():
        way = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in line)
        parts.append(f'<polyline points="{way}" fill="none" stroke="{colours[name]}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3" fill="{colours[name]}"/>' for x, y in line
        ]
    return Panel(parts, bottom + 25)


def colours_of(subjects: Sequence[str]) -> dict[str, str]:
    return {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(subjects)}


def draw(panels: Sequence[Panel], colours: Mapping[str, str], path: Path, columns: int = 3) -> None:
    """Write panels in columns, below a legend, to a file."""
    legend = [
        part
        for index, (name, colour) in enumerate(colours.items())
        for part in (
            f'<rect x="{_MARGIN + index * 110}" y="10" width="12" height="12" fill="{colour}"/>',
            _text(_MARGIN + index * 110 + 18, 20, name),
        )
    ]
    body, y = legend, 55.0
    for first in range(0, len(panels), columns):
        row = panels[first : first + columns]
        for column, panel in enumerate(row):
            x = _MARGIN + column * (_WIDTH + _MARGIN)
            body.append(f'<g transform="translate({x},{y:.0f})">{"".join(panel.parts)}</g>')
        y += max(panel.height for panel in row) + 30
    width = _MARGIN + columns * (_WIDTH + _MARGIN)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y:.0f}" font-family="sans-serif"'
        f' font-size="12"><rect width="100%" height="100%" fill="#fff"/>{"".join(body)}</svg>\n'
    )


def _text(x: float, y: float, text: str, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">{escape(text)}</text>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'
