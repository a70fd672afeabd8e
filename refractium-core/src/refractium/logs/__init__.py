"""Log lines, the same in every process of the program: how they look, and how they get to stderr.

Nothing heavy is imported here, because the process of a hook needs it too.
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
"""Seconds that the last lines have at the end."""


class LineHandler(logging.Handler):
    """Writes records in one form.

    Args:
        form: how they look.
        gather: seconds for which lines are gathered before a write.

    Attributes:
        form: the same.
        writer: what writes the lines.
        before: called before each line; it may write lines that come first.
        before_end: called before the handler is closed; it may write the last lines.
    """

    def __init__(self, form: Form, gather: float = GATHER) -> None:
        super().__init__()
        self.setFormatter(form)
        self.form = form
        self.writer = LineWriter(STDERR, self._lost, gather)
        self.before: Callable[[], None] = _nothing
        self.before_end: Callable[[], None] = _nothing

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record soon."""
        self.before()
        try:
            text = self.form.format(record) + "\n"
        except Exception:  # noqa: BLE001 - wrong arguments of a plugin cost its line
            self.writer.lose(1)
        else:
            self.writer.write(text)

    def close(self) -> None:
        """Write what is left, as far as stderr takes it."""
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
        style: how they look, one of `refractium.logs.forms.STYLES`.
        gather: seconds for which lines are gathered before a write.
    """
    # A full disk or a closed stderr costs log lines, never a connection.
    logging.raiseExceptions = False
    handler = LineHandler(form_of(style), gather)
    logging.getLogger().handlers[:] = [handler]
    return handler


def style_in_use() -> str:
    """Return the style of this process: plain, unless `install` was told another one."""
    styles = [one.form.style for one in logging.getLogger().handlers if isinstance(one, LineHandler)]
    return styles[0] if styles else "plain"
