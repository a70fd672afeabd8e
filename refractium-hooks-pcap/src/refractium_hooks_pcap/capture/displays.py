"""How sessions are shown: as a table that lives, as one at the end, or as lines of JSON."""

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
from refractium_hooks_pcap.capture.sessions import Session, Sessions, State

_SECOND: Final = 1_000_000_000
_KILO: Final = 1_000
_REFRESH: Final = 0.25
"""Seconds between pictures, at the least."""
_STYLES: Final = {State.OPEN: "", State.CLOSED: "dim", State.RESET: "red"}
_OTHER_LINES: Final = 3
"""Those of the screen that are not sessions: the summary, the heading, and the one of the cursor."""
_WHO: Final = ("session", "protocol", "name", "client", "backend")
_WANTS: Final = {"began": 140, "session": 120, "backend": 100}
"""How wide a terminal must be to show these (characters)."""


class Display:
    """Shows nothing: for when stdout belongs to the packets."""

    def shown(self, source: str, sessions: Sessions) -> AbstractContextManager[object]:
        """Within the block, it may show sessions of a source as they are."""
        del source, sessions
        return nullcontext()

    def refresh(self) -> None:
        """Something may have changed, or time has passed."""

    def ended(self, session: Session) -> None:
        """A session has ended."""

    def finish(self, sessions: Sessions) -> None:
        """Nothing more comes."""


class JsonLines(Display):
    """One line for each session, when it has ended; at last those of the others."""

    def ended(self, session: Session) -> None:
        click.echo(msgspec.json.encode(as_dict(session)).decode())

    def finish(self, sessions: Sessions) -> None:
        for session in sessions.open:
            self.ended(session)


class FinalTable(Display):
    """One table at the end, of the sessions that are remembered."""

    def finish(self, sessions: Sessions) -> None:
        kept = sorted(sessions, key=lambda session: session.started)
        columns = (*_WHO, "in", "out", "state", "began", "took")
        out = console()
        # Into a file or a pipe goes all of it.
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
    """As many sessions as the terminal has room for, those first where something happened last."""

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
    """What is told of a session, for JSON."""
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
    """What `_WHO` names. Without a protocol, the route in parentheses will do."""
    protocol = session.protocol or (f"({session.route})" if session.route else "?")
    return session.id or "", protocol, session.name or "", session.client, session.backend


def _time(at: int) -> datetime:
    """From ns since the epoch; what no calendar has is taken to be its end."""
    try:
        return datetime.fromtimestamp(at / _SECOND, UTC)
    except (OverflowError, ValueError, OSError):
        return datetime.max.replace(tzinfo=UTC)


def _fitting(text: str, style: str = "") -> Text:
    """Text in one line, which ends in an ellipsis where there is too little room."""
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _short(count: float) -> str:
    """Bytes in at most six characters: 999, 1.5k, 20.0M."""
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
