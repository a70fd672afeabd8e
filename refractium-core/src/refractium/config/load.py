"""The text of a configuration (`Source`) and its decoded content (`Loaded`)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from refractium.config.lines import Lines
from refractium.config.model import FALLBACKS, Config, Routes
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
        name: the path of the file, as the operator wrote it.
    """

    text: str
    name: str

    @cached_property
    def lines(self) -> Lines:
        return Lines(self.text)


@dataclass(frozen=True)
class Loaded:
    """The decoded content of a source.

    Attributes:
        source: the text that was decoded.
        config: the valid part of the content. A route with a valid name is kept; it may then have no
            backend, and an empty ``patterns`` if its patterns are not valid.
        routes: the routes of ``config.protocols``, each with its key path, such as ``protocols[1]``.
        sound_routes: the routes without any invalid key, which `refractium.assembly.check` can judge
            without guessing.
        problems: the problems that make the configuration unusable. The caller may find more and raise a
            `ConfigError` with all of them.
        warnings: the settings that are allowed and probably not meant; empty if there are problems.
    """

    source: Source
    config: Config
    routes: Routes
    sound_routes: Routes
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]

    def locate(self, where: str) -> int | None:
        """Return the line of a key path, or of the table around a missing key; None if it is unknown."""
        return _locate(self.source, where)

    def problem(self, where: str, message: str) -> Problem:
        """Return a problem, or a warning, at a key path of this source."""
        return problem_at(self.source, where, message)


def read(path: Path) -> Source:
    """Read a configuration file. A byte order mark is ignored.

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


def problem_at(source: Source, where: str, message: str) -> Problem:
    """Return a problem, or a warning, at a key path of a source."""
    return Problem(message, where, source.name, _locate(source, where))


def _locate(source: Source, where: str) -> int | None:
    outside = where.removeprefix("server.")
    if outside in FALLBACKS and outside in source.lines:
        return source.lines.find(outside)
    return source.lines.find(where)
