"""Log lines, which have the same form in every process of the program, and their output to stderr.

This package imports no large modules, because the process of a hook imports this package, too.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from refractium.logs.forms import form_of
from refractium.logs.lines import GATHER, LineWriter

if TYPE_CHECKING:
    from collections.abc import Callable

    from refractium.logs.forms import Form

STDERR: Final = 2
_PATIENCE: Final = 1.0
"""Longest time (s) for writing the last lines when the handler is closed."""


class LineHandler(logging.Handler):
    """A handler that writes records to stderr in one form.

    Args:
        form: form of the lines.
        gather: seconds for which the writer gathers lines before a write.

    Attributes:
        form: form of the lines.
        writer: writer of the lines.
        before: function that the handler calls before each line; this function may write earlier lines.
        before_end: function that the handler calls before it closes; this function may write the last lines.
    """

    def __init__(self, form: Form, gather: float = GATHER) -> None:
        super().__init__()
        self.setFormatter(form)
        self.form = form
        self.writer = LineWriter(STDERR, self._lost, gather)
        self.before: Callable[[], None] = _nothing
        self.before_end: Callable[[], None] = _nothing

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the line of a record for the writer."""
        self.before()
        try:
            text = self.form.format(record) + "\n"
        except Exception:  # noqa: BLE001 - a plugin that logs with wrong arguments loses its line
            self.writer.lose(1)
        else:
            self.writer.write(text)

    def close(self) -> None:
        """Write the remaining lines, as far as stderr accepts these lines."""
        self.before_end()
        self.writer.close(_PATIENCE)
        super().close()

    def _lost(self, count: int) -> str:
        return self.form.note(
            logging.WARNING, "refractium", "%d lines of the log were lost: stderr did not take them", count
        )


def _nothing() -> None:
    """Write no lines."""


def install(style: str, gather: float = GATHER) -> LineHandler:
    """Send the records of all loggers to stderr.

    Args:
        style: style of the lines, one of `refractium.logs.forms.FORMS`.
        gather: seconds for which the writer gathers lines before a write.
    """
    # A full disk or a closed stderr costs log lines, never a connection.
    logging.raiseExceptions = False
    handler = LineHandler(form_of(style), gather)
    logging.getLogger().handlers[:] = [handler]
    return handler


def style_in_use() -> str:
    """Return the style of log lines in this process: the style passed to `install`, or else plain."""
    styles = [one.form.style for one in logging.getLogger().handlers if isinstance(one, LineHandler)]
    return styles[0] if styles else "plain"
