"""What the files are called: a path with fields in braces, which sessions and the clock fill in."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refractium.contract import HookContext

_Parts: TypeAlias = "tuple[tuple[str, str | None], ...]"
"""Pieces of text, each with the field that follows it."""

SESSION_FIELDS: Final = ("protocol", "route", "transport")
"""What sets the files of one session apart from those of another."""
FILE_FIELDS: Final = ("date", "time", "number")
"""What sets the files of the same sessions apart."""
_FIELDS: Final = (*SESSION_FIELDS, *FILE_FIELDS)

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]|^\.")
"""What a value must not bring into a name: ``/`` above all, and the dot that hides a file."""
_MAX_VALUE: Final = 64
_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class FileNames:
    """The names of the files that the same sessions go to, one after the other.

    Attributes:
        folder: where they are.
        parts: of the name.
    """

    folder: Path
    parts: _Parts

    @classmethod
    def parse(cls, path: str, *, numbered: bool) -> FileNames:
        """Read a path.

        Args:
            path: such as ``/var/lib/refractium/{protocol}.pcapng``; fields stand in the file's name only.
            numbered: whether there will be several files, so that without ``{number}`` or ``{time}`` the
                number is put in front of the suffix.

        Raises:
            ValueError: no file can have that name; the message says why.
        """
        if "\0" in path:
            raise ValueError("a path cannot contain NUL")
        folder, slash, name = path.rpartition("/")
        if any(field is not None for _, field in _parse(folder)):
            raise ValueError("fields in braces belong into the name of the file, not into that of its folder")
        if name in {"", ".", ".."}:
            raise ValueError("the name of a file is missing")
        parts = _parse(name)
        if numbered and not {"number", "time"} & {field for _, field in parts}:
            stem, suffix = Path(name).stem, Path(name).suffix
            parts = _parse(f"{stem}_{{number}}{suffix}")
        return cls(Path("".join(text for text, _ in _parse(folder + slash)) or "."), parts)

    @property
    def is_numbered(self) -> bool:
        """Whether every file has a number, and so a name of its own."""
        return any(field == "number" for _, field in self.parts)

    @property
    def only_path(self) -> Path | None:
        """The one path there is, if there is one only."""
        if any(field for _, field in self.parts):
            return None
        return self.folder / "".join(text for text, _ in self.parts)

    def of(self, context: HookContext) -> FileNames:
        """Those of a session; equal to those of every other session that goes to the same files."""
        if not any(field in SESSION_FIELDS for _, field in self.parts):
            return self
        return replace(
            self,
            parts=tuple(
                (text + _safe(getattr(context, field)), None) if field in SESSION_FIELDS else (text, field)
                for text, field in self.parts
            ),
        )

    def paths(self, when: int, number: int) -> Iterator[Path]:
        """What a file may be called: the first is what it should be, the others are for when that is taken.

        Args:
            when: its first packet (ns since the epoch).
            number: its number.
        """
        if self.is_numbered:
            yield from (self.folder / self._name(when, str(one).zfill(5)) for one in count(number))
        first = self.folder / self._name(when, "")
        yield first
        yield from (first.with_name(f"{first.stem}_{one}{first.suffix}") for one in count(2))

    def next_number(self, when: int) -> int:
        """The number after those of the files that are there; 1 if there are none.

        Raises:
            OSError: the folder cannot be read.
        """
        marked = self._name(when, "\0")
        pattern = re.compile(
            "([0-9]{5,12})".join(map(re.escape, marked.split("\0", 1))).replace("\0", "[0-9]+")
        )
        found = (pattern.fullmatch(path.name) for path in self.folder.iterdir())
        return max((int(one[1]) for one in found if one), default=0) + 1

    def _name(self, when: int, number: str) -> str:
        clock = time.gmtime(when // _NS)
        values = {
            None: "",
            "date": time.strftime("%Y%m%d", clock),
            "time": time.strftime("%H%M%S", clock),
            "number": number,
        }
        return "".join(text + values[field] for text, field in self.parts)


def _parse(text: str) -> _Parts:
    try:
        pieces = list(Formatter().parse(text))
    except ValueError:
        raise ValueError("a brace has no partner; {{ and }} stand for braces themselves") from None
    for _, field, form, conversion in pieces:
        if field is not None and (field not in _FIELDS or form or conversion):
            written = field + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
            known = ", ".join(f"{{{one}}}" for one in _FIELDS)
            raise ValueError(f"{{{written}}} is not known: there are {known}")
    return tuple((literal, field) for literal, field, _, _ in pieces)


def _safe(value: str) -> str:
    return _UNSAFE.sub("_", value[:_MAX_VALUE]) or "_"
