"""Output to a terminal by the library Rich: a console that prints text without markup, and tables."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_WORD: Final = re.compile(r"\s*\S+\s*")
_GAPS: Final = 2, 1
"""Blanks between two columns of a table; the second number is for narrow terminals."""


class LiteralConsole(Console):
    """A console that prints every text literally: see `refractium.terminal.console`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, highlight=False, emoji=False, **options)

    def on_broken_pipe(self) -> None:
        """Raise the error again, so that the caller can catch it. Rich would end the program."""
        raise  # noqa: PLE0704 - rich calls this while it handles the error

    def print(self, *objects: Any, **options: Any) -> None:
        """Print objects. Divide a text at the edge of the terminal between two words only."""
        if all(isinstance(one, str | Text) for one in objects):
            texts = (Text(one) if isinstance(one, str) else one for one in objects)
            objects = tuple(folded(self, Text(), text) for text in texts)
            options = {"soft_wrap": True, **options}
        super().print(*objects, **options)


def draw(out: Console, title: str | None, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table for `refractium.terminal.table`.

    Args:
        out: the console.
        title: the line above the table; None for no title.
        columns: the heading of each column.
        rows: the texts of the cells, one for each column.
    """
    fitting = ((gap, _widths([columns, *rows], out.width, gap)) for gap in _GAPS)
    gap, widths = next(((gap, widths) for gap, widths in fitting if widths), (0, None))
    if widths is None:
        _print_as_records(out, title, columns, rows)
        return
    padding = (0, gap, 0, 0)
    drawn = Table(title=title, title_justify="left", title_style="bold", box=None, padding=padding)
    drawn.pad_edge = False
    for name, width in zip(columns, widths, strict=True):
        drawn.add_column(name, width=width)
    for row in rows:
        drawn.add_row(*row)
    out.width = max(out.width, sum(widths) + gap * len(widths))
    out.print(drawn)


def _widths(rows: Sequence[Sequence[str]], room: int, gap: int) -> list[int] | None:
    """Return the width of each column, so that no word is divided; None if the room does not suffice.

    Args:
        rows: the headings and the rows.
        room: the number of characters of a line.
        gap: the number of blanks between two columns.
    """
    by_column = list(zip(*rows, strict=True))
    natural = [max(map(cell_len, column)) for column in by_column]
    room -= gap * (len(natural) - 1)
    widths = [max(cell_len(word) for cell in column for word in cell.split() or [""]) for column in by_column]
    spare = room - sum(widths)
    if spare < 0:
        return None
    for left, at in enumerate(sorted(range(len(widths)), key=lambda at: natural[at] - widths[at])):
        share = min(natural[at] - widths[at], spare // (len(widths) - left))
        widths[at] += share
        spare -= share
    return widths


def _print_as_records(
    out: Console, title: str | None, columns: Sequence[str], rows: Iterable[Sequence[str]]
) -> None:
    if title is not None:
        out.print(title, style="bold")
    indent = max(map(cell_len, columns)) + _GAPS[0]
    for number, row in enumerate(rows):
        if number:
            out.print()
        for name, cell in zip(columns, row, strict=True):
            if cell:
                head = Text.assemble((name, "bold"), " " * (indent - cell_len(name)))
                out.print(folded(out, head, Text(cell)), soft_wrap=True)


def folded(out: Console, head: Text, text: Text) -> Text:
    """Return `head` and `text` as lines that end between two words.

    Args:
        out: the console, whose width limits the lines.
        head: the beginning of the first line. The other lines begin with as many blanks. If a word of the
            text is so long that it needs more room, the text begins below the head, with fewer blanks.
        text: the text.
    """
    longest = max((cell_len(word) for word in text.plain.split()), default=0)
    indent = max(0, min(head.cell_len, out.width - longest))
    result = head.copy()
    for number, line in enumerate(_lines(text, out.width - indent)):
        if number or indent < head.cell_len:
            result.append("\n" + " " * indent)
        line.rstrip()
        result.append_text(line)
    return result


def _lines(text: Text, width: int) -> Iterator[Text]:
    """Yield the lines of a text, each divided between two words into lines of at most this width."""
    for line in text.split("\n", allow_blank=True):
        ends, used = [], 0
        for word in _WORD.finditer(line.plain):
            if used and used + cell_len(word[0].rstrip()) > width:
                ends.append(word.start())
                used = 0
            used += cell_len(word[0])
        yield from line.divide(ends)
