"""Text from wires, plugins and other programs, made fit for a terminal or a log."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

ROOM: Final = 256
"""Characters that a text from the wire may take in a line of the log, with its escapes.

A server name has at most 253 (RFC 1035 section 2.3.4), an ALPN protocol 255 bytes (RFC 7301 section 3.1).
"""
CUT: Final = "..."
"""Stands where a text was cut."""

_WORD: Final = re.compile(r"[!-\[\]-~]*").fullmatch
"""Printable ASCII, without a space and a backslash."""
_BRIEF_WORD: Final = re.compile(rf"[!-\[\]-~]{{0,{ROOM}}}").fullmatch


def escape(value: object) -> str:
    """Return a value as one word of printable ASCII, whatever it holds."""
    text = str(value)
    if _WORD(text):  # as nearly always
        return text
    return text.encode("unicode_escape").decode("ascii").replace(" ", "\\x20")


def printable(text: str) -> str:
    """Return a text with everything escaped that a terminal could take for more than text.

    These are control characters (C0, C1, ESC), directional ones (bidi) and lone surrogates; line ends too.
    """
    if text.isprintable():
        return text
    return "".join(map(_printable, text))


def brief_word(value: object) -> str:
    """Return a value as `escape` does, but cut where it would take more than `ROOM` characters."""
    text = str(value)
    if _BRIEF_WORD(text):  # as nearly always
        return text
    return _cut(text, ROOM, escape)


def brief(text: str, room: int = ROOM) -> str:
    """Return a text as `printable` does, but cut where it would take more than `room` characters."""
    if len(text) <= room and text.isprintable():  # as nearly always
        return text
    return _cut(text, room, _printable)


def _printable(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")


def _cut(text: str, room: int, show: Callable[[str], str]) -> str:
    """Show as many characters as there is room for; none is shown in part."""
    shown = []
    for character in text:
        word = show(character)
        room -= len(word)
        if room < 0:
            shown.append(CUT)
            break
        shown.append(word)
    return "".join(shown)
