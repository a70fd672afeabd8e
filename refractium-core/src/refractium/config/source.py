"""The text of a configuration, and the lines of its keys."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from refractium.config.lines import Lines
from refractium.config.model import FALLBACKS
from refractium.errors import ConfigError
from refractium.problems import Problem
from refractium.system.files import NotAFileError, read_regular

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Source:
    """The text of a configuration and its name in messages.

    Attributes:
        text: the text, in TOML 1.1.
        name: the path of the file, as the operator wrote it; empty if there is no file.
    """

    text: str
    name: str

    @cached_property
    def lines(self) -> Lines:
        return Lines(self.text)

    def problem(self, where: str, message: str, code: str | None = None) -> Problem:
        """Return a problem, or a warning with its code, at a key path of this text."""
        return Problem(message, where, self.name, self._line_of(where), code)

    def _line_of(self, where: str) -> int | None:
        """Return the line of a key path, or of the table around a missing key; None if no line is known."""
        outside = where.removeprefix("server.")
        if outside in FALLBACKS and outside in self.lines:
            return self.lines.find(outside)
        return self.lines.find(where)


def read(path: Path) -> Source:
    """Read a configuration file, without its byte order mark.

    Raises:
        ConfigError: the file does not exist, is not regular, is too large (`refractium.system.files`), cannot
            be read, or is not UTF-8.
    """
    try:
        raw = read_regular(path)
    except NotAFileError as error:
        raise _unreadable(path, str(error)) from None
    except FileNotFoundError:
        raise _unreadable(path, "no such file; `refractium init` writes one") from None
    except (OSError, ValueError) as error:  # ValueError: NUL in the path
        raise _unreadable(path, getattr(error, "strerror", None) or str(error)) from error
    try:
        return Source(raw.decode("utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise _unreadable(path, f"byte 0x{raw[error.start]:02x} is not UTF-8", line) from None


def _unreadable(path: Path, message: str, line: int | None = None) -> ConfigError:
    return ConfigError([Problem(message, source=str(path), line=line)])
