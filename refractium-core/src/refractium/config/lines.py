"""Where in a TOML text a key stands. tomli tells the line of a syntax error, but not that of a value.

This is no parser: it runs over text that tomli has accepted and only has to know a header from a key and
where a value ends. What it cannot tell for certain (an escape in a quoted key, the inside of a value) it
leaves out, and then answers for what stands around it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Final

_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
_KEY: Final = rf"(?:{_BARE.pattern}|\"[^\"\\\n]*\"|'[^'\n]*')"
_DOTTED: Final = rf"{_KEY}(?:[ \t]*\.[ \t]*{_KEY})*"
_PART: Final = re.compile(_KEY)
_HEADER: Final = re.compile(rf"[ \t]*(?P<open>\[\[?)[ \t]*(?P<key>{_DOTTED})[ \t]*\]")
_SOME_HEADER: Final = re.compile(r"[ \t]*\[")
_ASSIGNMENT: Final = re.compile(rf"[ \t]*(?P<key>{_DOTTED})[ \t]*=")
_IN_VALUE: Final = re.compile(
    r"""
      \"{3} (?: \\. | [^\\] )*? \"{3,5}   # quotes may stand right before the closing ones
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


def join(path: str, key: str) -> str:
    """The key path of `key` in the table at `path` (empty for the whole file)."""
    name = key if _BARE.fullmatch(key) else json.dumps(key)
    return f"{path}.{name}" if path else name


class Lines:
    """The lines (from 1) of the keys and tables of a text."""

    def __init__(self, text: str) -> None:
        self._lines: dict[str, int] = {}
        self._tables: Counter[str] = Counter()
        self._scan(text)

    def __contains__(self, path: str) -> bool:
        return path in self._lines

    def find(self, path: str) -> int | None:
        """The line of a key path such as ``protocols[1].forward_to[0]``, or of what stands around it."""
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
        """Note a header; return the key path of its table, with the index of each array on the way."""
        path = ""
        *outer, last = _parts(key)
        for part in outer:
            path = self._newest(join(path, part))
        path = join(path, last)
        if is_array:
            self._tables[path] += 1
            path = self._newest(path)
        self._lines.setdefault(path, line)
        return path

    def _newest(self, path: str) -> str:
        return f"{path}[{self._tables[path] - 1}]" if path in self._tables else path


_PARENT: Final = re.compile(r"(?:\[\d+\]|\.?[A-Za-z0-9_-]+|\.?\"(?:\\.|[^\"\\])*\"|.)\Z", re.DOTALL)


def _parts(dotted: str) -> list[str]:
    return [part.strip("\"'") if part[0] in "\"'" else part for part in _PART.findall(dotted)]


def _path(table: str, dotted: str) -> str:
    for part in _parts(dotted):
        table = join(table, part)
    return table


def _end_of_statement(text: str, position: int) -> int:
    """The position after the newline that ends a statement; one inside of brackets or a string does not."""
    depth = 0
    for token in _IN_VALUE.finditer(text, position):
        depth += (token["open"] is not None) - (token["close"] is not None)
        if token["end"] and depth <= 0:
            return token.end()
    return len(text)
