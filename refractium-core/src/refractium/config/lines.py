"""The line numbers of keys in a TOML text. tomli gives the line of a syntax error, but not of a value.

`Lines` is not a parser. It scans a text that tomli has accepted, distinguishes headers from keys, and finds
the end of each value. It skips keys whose line is not certain: quoted keys with an escape, and keys inside a
value. For such a key, `Lines.find` returns the line of the table or key around the key.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Final

from refractium.problems import BARE_KEY, key_path

_KEY: Final = rf"(?:{BARE_KEY.pattern}|\"[^\"\\\n]*\"|'[^'\n]*')"
_DOTTED: Final = rf"{_KEY}(?:[ \t]*\.[ \t]*{_KEY})*"
_PART: Final = re.compile(_KEY)
_HEADER: Final = re.compile(rf"[ \t]*(?P<open>\[\[?)[ \t]*(?P<key>{_DOTTED})[ \t]*\]")
_SOME_HEADER: Final = re.compile(r"[ \t]*\[")
_ASSIGNMENT: Final = re.compile(rf"[ \t]*(?P<key>{_DOTTED})[ \t]*=")
_IN_VALUE: Final = re.compile(
    r"""
      \"{3} (?: \\. | [^\\] )*? \"{3,5}   # one or two quotes may stand right before the closing three
    | '{3} .*? '{3,5}
    | " (?: \\. | [^"\\\n] )* "
    | ' [^'\n]* '
    | \# [^\n]*
    | (?P<open> [\[{] )
    | (?P<close> [\]}] )
    | (?P<end> \n )
    """,
    re.VERBOSE | re.DOTALL,
)


class Lines:
    """The line numbers (from 1) of the keys and tables of a TOML text."""

    def __init__(self, text: str) -> None:
        self._lines: dict[str, int] = {}
        self._tables: Counter[str] = Counter()
        self._scan(text)

    def __contains__(self, path: str) -> bool:
        return path in self._lines

    def find(self, path: str) -> int | None:
        """Return the line of a key path such as ``protocols[1].forward_to[0]``.

        If the line of the key is unknown, return the line of the nearest key or table around the key; None if
        no line is known.
        """
        while path and path not in self._lines:
            path = _PARENT.sub("", path)
        return self._lines.get(path)

    def _scan(self, text: str) -> None:
        position, line = 0, 1
        table: str | None = ""
        while position < len(text):
            if header := _HEADER.match(text, position):
                table = self._enter(header["key"], line, is_array=header["open"] == "[[")
            elif _SOME_HEADER.match(text, position):
                table = None
            elif table is not None and (key := _ASSIGNMENT.match(text, position)):
                self._lines.setdefault(_path(table, key["key"]), line)
            end = _end_of_statement(text, position)
            line += text.count("\n", position, end)
            position = end

    def _enter(self, key: str, line: int, *, is_array: bool) -> str:
        """Record the line of a header; return the key path of its table, with the index in each array."""
        path = ""
        *outer, last = _parts(key)
        for part in outer:
            path = self._newest(key_path(path, part))
        path = key_path(path, last)
        if is_array:
            self._tables[path] += 1
            path = self._newest(path)
        self._lines.setdefault(path, line)
        return path

    def _newest(self, path: str) -> str:
        return f"{path}[{self._tables[path] - 1}]" if path in self._tables else path


_PARENT: Final = re.compile(rf"(?:\[\d+\]|\.?{BARE_KEY.pattern}|\.?\"(?:\\.|[^\"\\])*\"|.)\Z", re.DOTALL)


def _parts(dotted: str) -> list[str]:
    return [part.strip("\"'") if part[0] in "\"'" else part for part in _PART.findall(dotted)]


def _path(table: str, dotted: str) -> str:
    for part in _parts(dotted):
        table = key_path(table, part)
    return table


def _end_of_statement(text: str, position: int) -> int:
    """Return the end of the statement at `position`: the position after its newline, or the end of the text.

    A newline inside brackets or inside a string does not end the statement.
    """
    depth = 0
    for token in _IN_VALUE.finditer(text, position):
        depth += (token["open"] is not None) - (token["close"] is not None)
        if token["end"] and depth <= 0:
            return token.end()
    return len(text)
