"""How logs look: rich on a terminal, plain lines for files and journals, JSON for machines."""

from __future__ import annotations

import dataclasses
import logging
import sys
from datetime import UTC, datetime
from typing import Any

import msgspec


def configure(style: str | None, *, debug: bool) -> None:
    """Send all logs to stderr.

    Args:
        style: ``rich``, ``plain``, ``json``; None takes rich on a terminal, else plain.
        debug: whether to show what only developers want to know.
    """
    # A full disk or a closed stderr costs log lines, never a connection.
    logging.raiseExceptions = False
    handler: logging.Handler
    if (style or ("rich" if sys.stderr.isatty() else "plain")) == "rich":
        from rich.logging import RichHandler  # noqa: PLC0415 - only where it is used

        from refractium.cli.render import console  # noqa: PLC0415

        handler = RichHandler(
            console=console(stderr=True), show_path=False, markup=False, omit_repeated_times=False
        )
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(_Json() if style == "json" else _Plain())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.getLogger("watchfiles").setLevel(logging.WARNING)
    logging.getLogger("refractium").setLevel(logging.DEBUG if debug else logging.INFO)


def _time(record: logging.LogRecord) -> str:
    at = datetime.fromtimestamp(record.created, UTC)
    return at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03}Z"


class _Plain(logging.Formatter):
    """``TIME LEVEL MESSAGE``."""

    def format(self, record: logging.LogRecord) -> str:
        text = f"{_time(record)} {record.levelname.lower()} {record.getMessage()}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


class _Json(logging.Formatter):
    """One object a line; a connection's line has its fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (summary := getattr(record, "connection", None)) is not None:
            line["connection"] = {
                **{one.name: getattr(summary, one.name) for one in dataclasses.fields(summary)},
                "metadata": dict(summary.metadata),
            }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()
