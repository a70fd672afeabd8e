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


def text_bytes(text: str) -> bytes:
    r"""The bytes that a string stands for: each character is the byte of its number.

    The four characters ``\xHH``, which a TOML literal string keeps, are the byte HH, and ``\\`` is one
    backslash. Any other backslash is itself.

    Raises:
        ValueError: a character above U+00FF, or ``\x`` without two hex digits.
    """
    return _ESCAPE.sub(_unescape, latin(text, "write its bytes as hex: { hex = 'e2 82 ac' }"))


_ESCAPE: Final = re.compile(rb"\\(\\|x[0-9A-Fa-f]{2}|x)")


def _unescape(escape: re.Match[bytes]) -> bytes:
    if escape[1] == b"x":
        raise ValueError(r"\x needs two hex digits; write \\ for a backslash")
    return b"\\" if escape[1] == b"\\" else bytes((int(escape[1][1:], 16),))


def latin(text: str, hint: str) -> bytes:
    """Return the bytes that characters up to U+00FF stand for.

    Raises:
        ValueError: another character; the message says what to write instead (`hint`).
    """
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError as error:
        raise ValueError(f"{text[error.start]!r} is not one byte: {hint}") from None
