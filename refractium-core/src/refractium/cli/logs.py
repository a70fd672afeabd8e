"""How logs look: rich on a terminal, plain lines for files and journals, JSON for machines."""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import sys
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from refractium.access import AccessLog, line_of
from refractium.logs.lines import LineWriter
from refractium.net.report import Ended, Reporter

if TYPE_CHECKING:
    from refractium.net.report import Summary

_STDERR: Final = 2
_GATHER: Final = 0.02
"""Seconds for which ended connections are gathered, until their lines are made."""
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
        access = _Access(form, debug=debug)
        handler = _Handler(form, access)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.getLogger("watchfiles").setLevel(logging.WARNING)
    logging.getLogger("refractium").setLevel(logging.DEBUG if debug else logging.INFO)
    return access


class _Access:
    """The access log without the detour of log records, which cost as much as half a connection.

    The lines of many connections are made together: one by one, between all else that is done for a
    connection, that takes twice as long. In another thread it would take less of this one's time, were it not
    that both need the interpreter. Where stderr leads nowhere no line is made.
    """

    def __init__(self, form: _Plain | _Json, *, debug: bool) -> None:
        self.writer = LineWriter(_STDERR, partial(_lost, form))
        self._is_read = not _leads_nowhere(_STDERR)
        self._line = form.access
        self._is_debugging = debug
        self._ended: deque[tuple[float, Summary]] = deque()

    def is_wanted(self) -> bool:
        return self._is_read

    def write(self, summary: Summary) -> None:
        if summary.ended is not Ended.CLIENT_LEFT or self._is_debugging:
            if not self._ended:
                asyncio.get_running_loop().call_later(_GATHER, self.flush)
            self._ended.append((time.time(), summary))

    def flush(self) -> None:
        """Make the lines of what has ended; in any thread."""
        made = []
        while self._ended:
            at, summary = self._ended.popleft()
            try:
                made.append(self._line(at, summary))
            except Exception:  # noqa: BLE001 - one line is not worth the log
                self.writer.lose(1)
        if made:
            self.writer.write("".join(made))


class _Handler(logging.Handler):
    """Hands lines to the writer, behind those of the access log."""

    def __init__(self, form: logging.Formatter, access: _Access) -> None:
        super().__init__()
        self.setFormatter(form)
        self._access = access
        self._writer = access.writer

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record) + "\n"
        except Exception:  # noqa: BLE001 - as logging's own handlers do it
            self.handleError(record)
        else:
            self._access.flush()
            self._writer.write(text)

    def close(self) -> None:
        self._access.flush()
        self._writer.close(_PATIENCE)
        super().close()


def _lost(form: logging.Formatter, count: int) -> str:
    """The line that says how many lines were lost."""
    text = "%d lines of the log were lost: stderr did not take them"
    return form.format(logging.LogRecord("refractium", logging.WARNING, "", 0, text, (count,), None)) + "\n"


def _leads_nowhere(fd: int) -> bool:
    """Whether it is closed, or the null device."""
    try:
        told = os.fstat(fd)
    except OSError:
        return True
    return stat.S_ISCHR(told.st_mode) and told.st_rdev == os.stat(os.devnull).st_rdev  # noqa: PTH116 - no path


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

    def access(self, at: float, summary: Summary) -> str:
        """The line of a connection that has ended at some time (s since the epoch)."""
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

    def access(self, at: float, summary: Summary) -> str:
        """The line of a connection that has ended at some time (s since the epoch)."""
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
