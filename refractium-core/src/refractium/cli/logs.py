"""How logs look: rich on a terminal, plain lines for files and journals, JSON for machines."""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from refractium.access import AccessLog, line_of
from refractium.cli.lines import LineWriter
from refractium.net.report import Ended, Reporter

if TYPE_CHECKING:
    from refractium.net.report import Summary

_PATIENCE: Final = 1.0
"""Seconds that the last lines have at the end."""


def configure(style: str | None, *, debug: bool) -> Reporter:
    """Send all logs to stderr.

    Args:
        style: ``rich``, ``plain``, ``json``; None takes rich on a terminal, else plain.
        debug: whether to show what only developers want to know.

    Returns:
        The access log.
    """
    # A full disk or a closed stderr costs log lines, never a connection.
    logging.raiseExceptions = False
    handler: logging.Handler
    access: Reporter = AccessLog()
    if (style or ("rich" if sys.stderr.isatty() else "plain")) == "rich":
        from rich.logging import RichHandler  # noqa: PLC0415 - only where it is used

        from refractium.cli.render import console  # noqa: PLC0415

        handler = RichHandler(
            console=console(stderr=True), show_path=False, markup=False, omit_repeated_times=False
        )
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        form = _Json() if style == "json" else _Plain()
        handler = _Handler(form)
        access = _Access(handler.writer, form, debug=debug)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.getLogger("watchfiles").setLevel(logging.WARNING)
    logging.getLogger("refractium").setLevel(logging.DEBUG if debug else logging.INFO)
    return access


class _Handler(logging.Handler):
    """Hands lines to a writer of its own."""

    def __init__(self, form: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(form)
        self.writer = LineWriter(2)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.writer.write(self.format(record) + "\n")
        except Exception:  # noqa: BLE001 - as logging's own handlers do it
            self.handleError(record)

    def close(self) -> None:
        self.writer.close(_PATIENCE)
        super().close()


class _Access:
    """The access log without the detour of log records, which cost as much as half a connection.

    The text is made by the writer's thread, for many connections at a time: one by one, between all else that
    is done for a connection, that takes twice as long.
    """

    def __init__(self, writer: LineWriter, form: _Plain | _Json, *, debug: bool) -> None:
        self._write_later = writer.write_later
        self._line = form.access
        self._is_debugging = debug

    def is_wanted(self) -> bool:
        return True

    def write(self, summary: Summary) -> None:
        if summary.ended is not Ended.CLIENT_LEFT or self._is_debugging:
            self._write_later(self._line, (time.time(), summary))


class _Clock:
    """Times as ``2026-11-24T05:00:00.000Z``; the second is written once, not for every line."""

    def __init__(self) -> None:
        self._second = 0
        self._text = ""

    def text(self, at: float) -> str:
        """A time since the epoch (s)."""
        second = int(at)
        if second != self._second:
            self._second, self._text = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._text}.{int((at - second) * 1000):03}Z"


class _Plain(logging.Formatter):
    """``TIME LEVEL MESSAGE``."""

    def __init__(self) -> None:
        super().__init__()
        self._clock = _Clock()

    def access(self, ended: tuple[float, Summary]) -> str:
        """The line of a connection, with the time (s since the epoch) of its end."""
        at, summary = ended
        return f"{self._clock.text(at)} info {line_of(summary)}\n"

    def format(self, record: logging.LogRecord) -> str:
        text = f"{self._clock.text(record.created)} {record.levelname.lower()} {record.getMessage()}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


class _Json(logging.Formatter):
    """One object a line; a connection's line has its fields."""

    def __init__(self) -> None:
        super().__init__()
        self._clock = _Clock()

    def access(self, ended: tuple[float, Summary]) -> str:
        """The line of a connection, with the time (s since the epoch) of its end."""
        at, summary = ended
        line = {
            "time": self._clock.text(at),
            "level": "info",
            "logger": "refractium.access",
            "message": line_of(summary),
            "connection": summary.as_dict(),
        }
        return msgspec.json.encode(line).decode() + "\n"

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": self._clock.text(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()
