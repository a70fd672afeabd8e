"""Displays of sessions: a live table, a table at the end, and lines of JSON."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from heapq import nlargest
from itertools import compress
from typing import Any, Final

import click
import msgspec
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from refractium.kit import console, table
from refractium_hooks_pcap.capture.sessions import Session, Sessions, SessionState

_SECOND: Final = 1_000_000_000
_KILO: Final = 1_000
_REFRESH: Final = 0.25
"""The shortest time (seconds) between two updates of the live table."""
_STYLES: Final = {SessionState.OPEN: "", SessionState.CLOSED: "dim", SessionState.RESET: "red"}
_OTHER_LINES: Final = 3
"""Lines of the screen that show no session: the summary, the heading, and the line of the cursor."""
_WHO: Final = ("session", "protocol", "name", "client", "backend")
_WANTS: Final = {"began": 140, "session": 120, "backend": 100}
"""Columns for wide terminals, each with the smallest terminal width (characters) that shows the column."""


class Display:
    """A display that shows nothing, because the command writes the packets to stdout."""

    def shown(self, source: str, sessions: Sessions) -> AbstractContextManager[object]:
        """Return a context manager for the time in which the display may show the sessions of a source."""
        del source, sessions
        return nullcontext()

    def refresh(self) -> None:
        """Show the current state, after new packets or after some time without packets."""

    def ended(self, session: Session) -> None:
        """Show a session that has ended."""

    def finish(self, sessions: Sessions) -> None:
        """Show the sessions at the end of the capture."""


class JsonLines(Display):
    """A display of JSON: one line when a session ends, and at the end one line for each open session."""

    def ended(self, session: Session) -> None:
        click.echo(msgspec.json.encode(as_dict(session)).decode())

    def finish(self, sessions: Sessions) -> None:
        for session in sessions.open:
            self.ended(session)


class FinalTable(Display):
    """A display that prints a table of the remembered sessions at the end of the capture."""

    def finish(self, sessions: Sessions) -> None:
        kept = sorted(sessions, key=lambda session: session.started)
        columns = (*_WHO, "in", "out", "state", "began", "took")
        out = console()
        # If stdout is a file or a pipe, the table contains all columns.
        is_shown = [not out.is_terminal or out.width >= _WANTS.get(column, 0) for column in columns]
        rows = [
            (
                *_who(session),
                _short(session.inbound.bytes),
                _short(session.outbound.bytes),
                session.state,
                f"{_time(session.started):%Y-%m-%d %H:%M:%S} UTC",
                f"{session.seconds:.3f} s",
            )
            for session in kept
        ]
        if earlier := sessions.count - len(kept):
            click.echo(f"{earlier} earlier sessions are left out.")
        table(None, [*compress(columns, is_shown)], [[*compress(row, is_shown)] for row in rows])


class LiveTable(FinalTable):
    """A live table of all sessions that fit on the terminal; the session with the latest packet is first."""

    def __init__(self) -> None:
        self._console = console()
        self._live = Live(console=self._console, screen=True, auto_refresh=False)
        self._drawn = float("-inf")

    def shown(self, source: str, sessions: Sessions) -> AbstractContextManager[object]:
        self._source = source
        self._sessions = sessions
        return self._live

    def refresh(self) -> None:
        if time.monotonic() >= self._drawn + _REFRESH:
            self._live.update(self._picture(), refresh=True)
            self._drawn = time.monotonic()

    def _picture(self) -> Group:
        sessions, now = self._sessions, self._sessions.now
        width, height = self._console.size
        drawn = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
        is_shown = [width >= _WANTS.get(column, 0) for column in _WHO]
        for column in compress(_WHO, is_shown):
            drawn.add_column(column)
        for column in ("state", "in", "out", "in/s", "out/s", "age"):
            drawn.add_column(column, no_wrap=True, justify="left" if column == "state" else "right")
        for session in nlargest(height - _OTHER_LINES, sessions, key=lambda one: one.latest):
            drawn.add_row(
                *map(_fitting, compress(_who(session), is_shown)),
                session.state,
                _short(session.inbound.bytes),
                _short(session.outbound.bytes),
                _short(session.inbound.rate(now)),
                _short(session.outbound.rate(now)),
                _age(max(0, now - session.started) // _SECOND),
                style=_STYLES[session.state],
            )
        summary = f"{self._source}: {len(sessions.open)} open of {sessions.count} sessions"
        return Group(_fitting(summary, style="bold"), drawn)


def as_dict(session: Session) -> dict[str, Any]:
    """Return a session as the fields of a line of JSON."""
    return {
        "session": session.id,
        "transport": session.transport,
        "protocol": session.protocol,
        "route": session.route,
        "metadata": session.metadata,
        "client": session.client,
        "backend": session.backend,
        "bytes_in": session.inbound.bytes,
        "bytes_out": session.outbound.bytes,
        "state": session.state,
        "started": _time(session.started),
        "seconds": session.seconds,
    }


def _who(session: Session) -> tuple[str, str, str, str, str]:
    """Return the cells of the columns `_WHO`. A session without a protocol shows its route in parentheses."""
    protocol = session.protocol or (f"({session.route})" if session.route else "?")
    return session.id or "", protocol, session.name or "", session.client, session.backend


def _time(at: int) -> datetime:
    """Return the date of a time (ns since the epoch), or the latest possible date for a time out of range."""
    try:
        return datetime.fromtimestamp(at / _SECOND, UTC)
    except (OverflowError, ValueError, OSError):
        return datetime.max.replace(tzinfo=UTC)


def _fitting(text: str, style: str = "") -> Text:
    """Return text that stays in one line: a narrow terminal cuts the text off with an ellipsis."""
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _short(count: float) -> str:
    """Return a number of bytes in at most six characters: 999, 1.5k, 20.0M."""
    unit = ""
    for larger in "kMGT":
        if count < _KILO:
            break
        count, unit = count / _KILO, larger
    return f"{count:.1f}{unit}" if unit else f"{count:.0f}"


def _age(seconds: int) -> str:
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{seconds:02}"
    return f"{minutes}:{seconds:02}"
