"""What is drawn on a terminal: a console that shows names as they are, and tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from refractium.wire.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the caller whether the program ends because nobody reads; rich would end it."""
        raise  # noqa: PLE0704 - rich calls this while it handles the error


def console(*, stderr: bool = False) -> Console:
    """Return a rich console that shows names from files and wires as they are, not as markup.

    Args:
        stderr: whether it prints to stderr instead of stdout.
    """
    return _Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def table(title: str | None, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table to stdout. On a terminal that is too narrow for it, the text of cells is folded.

    Args:
        title: the line above the table; None for no such line.
        columns: the heading of each column.
        rows: the text of each cell, shown as `printable` returns it; one cell for each column.
    """
    drawn = Table(*columns, title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in drawn.columns:
        column.overflow = "fold"
    for row in rows:
        drawn.add_row(*map(printable, row))
    out = console()
    if not out.is_terminal:
        out.width = 200  # into a file or a pipe, where no line needs to end at 80
    out.print(drawn)
