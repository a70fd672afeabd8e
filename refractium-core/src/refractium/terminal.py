"""Output on a terminal: a console that prints text without markup, and tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from refractium.wire.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raise the error again, so that the caller can catch it. Rich would end the program."""
        raise  # noqa: PLE0704 - rich calls this while it handles the error


def console(*, stderr: bool = False) -> Console:
    """Return a rich console that prints every text literally: no markup, no highlighting, no emoji codes.

    Args:
        stderr: whether the console prints to stderr instead of stdout.
    """
    return _Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def table(title: str | None, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table to stdout. On a terminal that is too narrow, the text of a cell fills several lines.

    Args:
        title: the line above the table; None for no title.
        columns: the heading of each column.
        rows: the texts of the cells, one for each column; `printable` escapes each text.
    """
    drawn = Table(*columns, title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in drawn.columns:
        column.overflow = "fold"
    for row in rows:
        drawn.add_row(*map(printable, row))
    out = console()
    if not out.is_terminal:
        out.width = 200  # rich would fold lines at 80 characters, which files and pipes do not need
    out.print(drawn)
