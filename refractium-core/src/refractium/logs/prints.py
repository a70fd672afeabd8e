"""Prints of Python code to stderr in the process of a hook, as log lines."""

from __future__ import annotations

import io
import logging
import sys
from typing import TYPE_CHECKING, Any, Final

from refractium.logs import STDERR

if TYPE_CHECKING:
    from refractium.logs import LineHandler

_MAX_REST: Final = 65_536
"""Maximum number of bytes that wait for their line end. A longer line becomes several lines."""


def log_what_is_printed(handler: LineHandler) -> None:
    """Log each line that is printed to `sys.stderr` as a warning of ``refractium.hooks.stderr``.

    Such lines come from `print`, from Python's warnings and from threads that end with an exception. The file
    descriptor stays unchanged, so C libraries and programs that a hook starts still write directly to stderr.
    """
    sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(_PrintedLines(handler)), "utf-8", "backslashreplace", line_buffering=True
    )


class _PrintedLines(io.RawIOBase):
    def __init__(self, handler: LineHandler) -> None:
        super().__init__()
        self._handler = handler
        self._rest = b""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return STDERR

    def write(self, data: Any, /) -> int:
        written = bytes(data)
        *lines, self._rest = (self._rest + written).split(b"\n")
        if len(self._rest) > _MAX_REST:
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            self._log(line)
        return len(written)

    def close(self) -> None:
        if self._rest:
            self._log(self._rest)
            self._rest = b""
        super().close()

    def _log(self, line: bytes) -> None:
        # Pass the record to the handler directly. A logger may have another handler, which prints to
        # sys.stderr. This would cause a loop.
        text = line.decode("utf-8", "backslashreplace")
        self._handler.handle(
            logging.LogRecord("refractium.hooks.stderr", logging.WARNING, "", 0, "%s", (text,), None)
        )
