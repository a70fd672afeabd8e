"""The forms of a log line: plain for files and journals, JSON for machines, rich on a terminal.

Every line is safe text for a terminal, whatever a message, a name or an exception contains. The forms escape
control characters (C0, C1, ESC), bidirectional controls, lone surrogates and line ends. In JSON, every
record is one line. In the other forms, a traceback has several lines, and `Rich` folds long messages.
"""

from __future__ import annotations

import logging
import sys
import time
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Final

import msgspec

from refractium.wire.text import brief, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

_encode: Final = msgspec.json.Encoder().encode
_MAX_MESSAGE: Final = 4096
"""Maximum number of characters of a message; the rest is cut off. An exception of a plugin may contain all
bytes of a client."""


class Form(logging.Formatter):
    """A formatter that makes lines without their line ends.

    Attributes:
        style: name of the form, one of `FORMS`.
        has_fields: whether a line has fields in addition to its message.
    """

    style: str
    has_fields = False

    def __init__(self) -> None:
        super().__init__()
        self._clock = _Clock()

    @abstractmethod
    def line(
        self, at: float, level: str, logger: str, message: str, fields: Mapping[str, Any] | None = None
    ) -> str:
        """Make a line of printable text.

        Args:
            at: time of the event (s since the epoch).
            level: level in lower case.
            logger: name of the logger.
            message: printable text.
            fields: fields of printable text, for forms that have fields.
        """

    def format(self, record: logging.LogRecord) -> str:
        """Make the line of a record, whatever the message and the exception contain."""
        message = brief(record.getMessage(), _MAX_MESSAGE)
        traceback = ""
        if record.exc_info:
            traceback = "\n".join(map(printable, self.formatException(record.exc_info).split("\n")))
        return self._with_traceback(
            record.created, record.levelname.lower(), printable(record.name), message, traceback
        )

    def note(self, level: int, logger: str, message: str, *args: object) -> str:
        """Return a line, including its line end, for a message that was not logged through `logging`."""
        return self.format(logging.LogRecord(logger, level, "", 0, message, args, None)) + "\n"

    def _with_traceback(self, at: float, level: str, logger: str, message: str, traceback: str) -> str:
        # Indent the traceback, so that no line of an exception's text can look like a line of the log.
        rest = "\n  " + traceback.replace("\n", "\n  ") if traceback else ""
        return self.line(at, level, logger, message) + rest


class Plain(Form):
    """The plain form: ``TIME LEVEL MESSAGE``."""

    style = "plain"

    def line(
        self,
        at: float,
        level: str,
        logger: str,  # noqa: ARG002 - readers do not need it
        message: str,
        fields: Mapping[str, Any] | None = None,  # noqa: ARG002 - the message has the important fields
    ) -> str:
        return f"{self._clock.text(at)} {level} {message}"


class Json(Form):
    """The form for machines: one JSON object in each line."""

    style = "json"
    has_fields = True

    def line(
        self, at: float, level: str, logger: str, message: str, fields: Mapping[str, Any] | None = None
    ) -> str:
        line: dict[str, Any] = {
            "time": self._clock.text(at),
            "level": level,
            "logger": logger,
            "message": message,
        }
        if fields:
            line.update(fields)
        return _encode(line).decode()

    def _with_traceback(self, at: float, level: str, logger: str, message: str, traceback: str) -> str:
        return self.line(at, level, logger, message, {"exception": traceback} if traceback else None)


class Rich(Form):
    """The form for terminals: coloured, and folded at the edge of the terminal."""

    style = "rich"

    def __init__(self) -> None:
        from rich.highlighter import ReprHighlighter  # noqa: PLC0415 - slow to import; only this form needs it

        from refractium.terminal import console  # noqa: PLC0415

        super().__init__()
        # In the process of a hook, `sys.stderr` becomes a stream whose lines are logged (`logs.prints`). If
        # this console flushed that stream, a print would wait for itself, or for the thread of the log.
        self._console = console(stderr=True)
        self._console.file = sys.stderr
        self._highlight = ReprHighlighter()

    def line(
        self,
        at: float,
        level: str,
        logger: str,  # noqa: ARG002 - readers do not need it
        message: str,
        fields: Mapping[str, Any] | None = None,  # noqa: ARG002 - the message has the important fields
    ) -> str:
        from rich.text import Text  # noqa: PLC0415

        from refractium.terminal.drawing import folded  # noqa: PLC0415

        head = Text.assemble(
            (time.strftime("[%x %X]", time.localtime(at)), "log.time"),
            " ",
            (level.upper().ljust(8), f"logging.level.{level}"),
            " ",
        )
        text = Text(message)
        self._highlight.highlight(text)
        with self._console.capture() as drawn:
            self._console.print(folded(self._console, head, text), soft_wrap=True)
        return drawn.get().rstrip("\n")


FORMS: Final[Mapping[str, type[Form]]] = {form.style: form for form in (Plain, Json, Rich)}
"""The class of each form, by its style."""


def form_of(style: str) -> Form:
    """Make the form of a style.

    Args:
        style: one of `FORMS`.
    """
    return FORMS[style]()


class _Clock:
    """Formatter of times as ``2026-11-24T05:00:00.000Z``. It formats each second only once."""

    def __init__(self) -> None:
        self._second = 0
        self._text = ""

    def text(self, at: float) -> str:
        """Return the text of a time.

        Args:
            at: time since the epoch (s).
        """
        second = int(at)
        if second != self._second:
            self._second, self._text = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._text}.{int((at - second) * 1000):03}Z"
