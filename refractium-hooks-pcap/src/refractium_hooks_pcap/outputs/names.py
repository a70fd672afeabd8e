"""Names of capture files: a path with fields in braces, whose values come from sessions and packet times."""

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
"""Pieces of text, each with the field that follows the piece; None where no field follows."""

SESSION_FIELDS: Final = ("protocol", "route", "transport")
"""Fields that distinguish the files of different sessions."""
FILE_FIELDS: Final = ("date", "time", "number")
"""Fields that distinguish the consecutive files of one series."""
_FIELDS: Final = (*SESSION_FIELDS, *FILE_FIELDS)

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]|^\.")
"""Matches what `_safe` replaces in a value: such as ``/``, and a leading dot, which hides a file."""
_MAX_VALUE: Final = 64
_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class FileNames:
    """The names of the files of one series, which sessions with equal `SESSION_FIELDS` share.

    Attributes:
        folder: the folder of the files.
        parts: the text and the fields of the name.
    """

    folder: Path
    parts: _Parts

    @classmethod
    def parse(cls, path: str, *, numbered: bool) -> FileNames:
        """Parse a path.

        Args:
            path: a path such as ``/var/lib/refractium/{protocol}.pcapng``. Only the file's name may
                contain fields.
            numbered: whether the hook rotates the files. If so, a path without ``{number}`` and ``{time}``
                gets the number before the suffix.

        Raises:
            ValueError: `path` cannot be the name of a file; the message gives the reason.
        """
        if "\0" in path:
            raise ValueError("a path cannot contain NUL")
        folder, slash, name = path.rpartition("/")
        if any(field is not None for _, field in _parse(folder)):
            raise ValueError("fields in braces belong in the name of the file, not in the name of its folder")
        if name in {"", ".", ".."}:
            raise ValueError("the name of a file is missing: add it after the folder")
        parts = _parse(name)
        if numbered and not {"number", "time"} & {field for _, field in parts}:
            stem, suffix = Path(name).stem, Path(name).suffix
            parts = _parse(f"{stem}_{{number}}{suffix}")
        return cls(Path("".join(text for text, _ in _parse(folder + slash)) or "."), parts)

    @property
    def is_numbered(self) -> bool:
        """Whether every file has a number, and so a unique name."""
        return any(field == "number" for _, field in self.parts)

    @property
    def only_path(self) -> Path | None:
        """The path of the file; None if the name contains fields, because then several paths are possible."""
        if any(field for _, field in self.parts):
            return None
        return self.folder / "".join(text for text, _ in self.parts)

    def of(self, context: HookContext) -> FileNames:
        """Return the names for a session. Sessions with the same files have equal names."""
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
        """Yield paths for a file: first the regular path, then other paths in case the regular path is taken.

        Args:
            when: time of the first packet in the file (ns since the epoch).
            number: the number of the file.
        """
        if self.is_numbered:
            yield from (self.folder / self._name(when, str(one).zfill(5)) for one in count(number))
        first = self.folder / self._name(when, "")
        yield first
        yield from (first.with_name(f"{first.stem}_{one}{first.suffix}") for one in count(2))

    def next_number(self, when: int) -> int:
        """Return the number after the highest number of the existing files; 1 if there are no files.

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
        raise ValueError("a brace has no partner: write {{ and }} for braces themselves") from None
    for _, field, form, conversion in pieces:
        if field is not None and (field not in _FIELDS or form or conversion):
            written = field + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
            known = ", ".join(f"{{{one}}}" for one in _FIELDS)
            raise ValueError(f"the field {{{written}}} is unknown: there are {known}")
    return tuple((literal, field) for literal, field, _, _ in pieces)


def _safe(value: str) -> str:
    return _UNSAFE.sub("_", value[:_MAX_VALUE]) or "_"
