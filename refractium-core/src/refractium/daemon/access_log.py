"""The access log of the program: a line for each connection that has ended or has been open for a second.

The logger of `refractium.observe.access_lines` is for programs that embed an engine.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from refractium.config import LogConfig
from refractium.logs import STDERR
from refractium.observe.access_lines import fields_of, message_of
from refractium.proxy.summary import Ended
from refractium.throttle import Allowance

if TYPE_CHECKING:
    from refractium.logs import LineHandler
    from refractium.logs.forms import Form
    from refractium.proxy.summary import Summary


_GATHER: Final = 0.02
"""Seconds for which the log collects ended connections before it makes their lines."""


_TELL: Final = 1.0
"""Seconds between two lines that say how many lines were left out."""


_CLIENT_LEFT: Final = Ended.CLIENT_LEFT


@dataclass(slots=True)
class _Rules:
    """The rules for all lines of this process, because all its lines go to one stderr.

    Attributes:
        allowance: the number of lines that the process may write now.
        has_open: whether open connections get lines.
    """

    allowance: Allowance
    has_open: bool


_rules: Final = _Rules(Allowance(LogConfig().max_lines_per_second), LogConfig().open_connections)


def use(config: LogConfig) -> None:
    """Write the access log of this process by the rules of a configuration from now on."""
    _rules.allowance.per_second = config.max_lines_per_second
    _rules.has_open = config.open_connections


class AccessLog:
    """The access log. It makes no log records, because a record costs half as much time as a connection.

    The log makes the lines of many connections together. It would take twice as long to make each line alone,
    between the other work for a connection. Another thread would not save time, because only one thread runs
    Python at a time. If stderr is closed or is the null device, the log makes no lines.

    Clients determine the number of connections, so the log limits the number of lines.

    Args:
        handler: the handler that writes the lines.
        debug: whether to write lines about clients that left before they were identified.
    """

    def __init__(self, handler: LineHandler, *, debug: bool) -> None:
        self._form = handler.form
        self._writer = handler.writer
        self._is_read = not _leads_nowhere(STDERR)
        self._is_debugging = debug
        self._waiting: deque[tuple[float, Summary]] = deque()
        self._left_out = 0
        self._is_turn_due = False
        self._is_telling_due = False

    def is_wanted(self) -> bool:
        return self._is_read

    def write(self, summary: Summary) -> None:
        if summary.ended is not _CLIENT_LEFT or self._is_debugging:
            if not self._is_turn_due:
                self._is_turn_due = True
                _rules.allowance.refill()
                asyncio.get_running_loop().call_later(_GATHER, self._turn)
            if _rules.allowance.take():
                self._waiting.append((time.time(), summary))
            else:
                self._left_out += 1

    def write_open(self, summary: Summary) -> None:
        if _rules.has_open:
            self.write(summary)

    def _turn(self) -> None:
        self._is_turn_due = False
        self.flush()
        if self._left_out and not self._is_telling_due:
            self._is_telling_due = True
            asyncio.get_running_loop().call_later(_TELL, self._tell)

    def _tell(self) -> None:
        self._is_telling_due = False
        left_out, self._left_out = self._left_out, 0
        text = "%d lines of the access log were left out: log.max_lines_per_second is %d"
        self._writer.write(
            self._form.note(logging.WARNING, "refractium.access", text, left_out, _rules.allowance.per_second)
        )

    def end(self) -> None:
        """Write the remaining lines when the process ends."""
        self.flush()
        if self._left_out:
            self._tell()

    def flush(self) -> None:
        """Write the lines of all waiting summaries. Outside of the main thread, do nothing.

        The metadata of a line comes from the code of a plugin, which could block the calling thread.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        made = []
        while True:
            try:
                at, summary = self._waiting.popleft()
            except IndexError:  # no summary is left
                break
            try:
                made.append(access_line(self._form, at, summary))
            except Exception:  # noqa: BLE001 - one bad line must not end the log
                self._writer.lose(1)
        if made:
            self._writer.write("".join(made))


def access_line(form: Form, at: float, summary: Summary) -> str:
    """Return the line, with line end, of a connection that ended or was open at `at` (s since the epoch)."""
    metadata = summary.metadata
    fields = {"connection": fields_of(summary, metadata)} if form.has_fields else None
    return form.line(at, "info", "refractium.access", message_of(summary, metadata), fields) + "\n"


def _leads_nowhere(fd: int) -> bool:
    """Return whether a descriptor is closed, or open on the null device."""
    try:
        told = os.fstat(fd)
    except OSError:
        return True
    return stat.S_ISCHR(told.st_mode) and told.st_rdev == os.stat(os.devnull).st_rdev  # noqa: PTH116 - no path
