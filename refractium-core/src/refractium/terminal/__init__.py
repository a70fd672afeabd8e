"""Output to a terminal, a file or a pipe: a console that prints text without markup, and tables.

The library rich draws the output for terminals. Its import takes 15 ms and 2 MiB, so the output to files and
pipes does not use rich. A service mostly writes to a file or a pipe.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

from refractium.wire.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console

_GAP: Final = "  "
"""The blanks between two columns of a table in a file or a pipe."""


def console(*, stderr: bool = False) -> Console:
    """Return a rich console that prints every text literally: no markup, no highlighting, no emoji codes.

    On a terminal that is too narrow, the text fills several lines. A word, such as an address, is never
    divided.

    Args:
        stderr: whether the console prints to stderr instead of stdout.
    """
    from refractium.terminal.drawing import LiteralConsole  # noqa: PLC0415 - slow to import

    return LiteralConsole(stderr=stderr)


def heading(text: str) -> None:
    """Print a line of printable text to stdout, on a terminal in bold."""
    if _may_be_terminal():
        console().print(text, style="bold")
    else:
        _write([text])


def table(title: str | None, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table to stdout.

    On a terminal that is too narrow, the text of a cell fills several lines. A word, such as an address, is
    never divided. If the words of a row do not fit side by side, each row becomes several lines, one line
    for each cell that is not empty. In a file or a pipe, each row is one line.

    Args:
        title: the line above the table; None for no title.
        columns: the heading of each column.
        rows: the texts of the cells, one for each column; `printable` escapes each text.
    """
    cells = [tuple(map(printable, row)) for row in rows]
    if _may_be_terminal() and (out := console()).is_terminal:
        from refractium.terminal.drawing import draw  # noqa: PLC0415 - slow to import

        draw(out, title, columns, cells)
        return
    all_rows = [columns, *cells]
    widths = [max(map(_width, column)) for column in zip(*all_rows, strict=True)]
    lines = (
        _GAP.join(cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True))
        for row in all_rows
    )
    _write([*([] if title is None else [title]), *(line.rstrip() for line in lines)])


def _may_be_terminal() -> bool:
    """Return whether stdout is a terminal, or whether an environment variable could make rich assume so."""
    return sys.stdout.isatty() or "FORCE_COLOR" in os.environ or "TTY_COMPATIBLE" in os.environ


def _width(text: str) -> int:
    """Return the number of characters of a terminal that a text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len  # noqa: PLC0415 - slow to import

    return cell_len(text)


def _write(lines: Iterable[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()
