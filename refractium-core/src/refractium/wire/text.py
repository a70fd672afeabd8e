"""Text from the wire, from plugins and from other programs, made safe for a terminal or a log."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

ROOM: Final = 256
"""Maximum number of characters, including escapes, of a text from the wire in a log line.

A server name has at most 253 characters (RFC 1035 section 2.3.4). An ALPN name has at most 255 bytes (RFC
7301 section 3.1).
"""
CUT: Final = "..."
"""The mark at the end of a text that was cut."""

_WORD: Final = re.compile(r"[!-\[\]-~]*").fullmatch
"""A function that matches printable ASCII without spaces or backslashes."""
_BRIEF_WORD: Final = re.compile(rf"[!-\[\]-~]{{0,{ROOM}}}").fullmatch


def escape(value: object) -> str:
    """Return any value as one word of printable ASCII: names separated by commas, ``true`` or ``false``."""
    text = value if isinstance(value, str) else _text(value)
    if _WORD(text):  # the usual case
        return text
    return text.encode("unicode_escape").decode("ascii").replace(" ", "\\x20")


def printable(text: str) -> str:
    """Return a text with escapes for all characters that a terminal would not show as text.

    Examples are control characters (C0, C1, ESC), bidirectional controls, lone surrogates and line ends (see
    `str.isprintable`).
    """
    if text.isprintable():
        return text
    return "".join(map(_printable, text))


def brief_word(value: object) -> str:
    """Return a value as `escape` does, cut after at most `ROOM` characters."""
    text = value if isinstance(value, str) else _text(value)
    if _BRIEF_WORD(text):  # the usual case
        return text
    return _cut(text, ROOM, escape)


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def brief(text: str, room: int = ROOM) -> str:
    """Return a text as `printable` does, cut after at most `room` characters."""
    if len(text) <= room and text.isprintable():  # the usual case
        return text
    return _cut(text, room, _printable)


def _printable(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")


def _cut(text: str, room: int, show: Callable[[str], str]) -> str:
    """Return the shown forms of as many whole characters as fit, and `CUT` if not all characters fit."""
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
    r"""Return the bytes that a string stands for: each character means the byte of its number.

    The four characters ``\xHH``, which a TOML literal string does not change, mean the byte HH. ``\\`` means
    one backslash. Any other backslash means itself.

    Raises:
        ValueError: a character is above U+00FF, or ``\x`` is not followed by two hex digits.
    """
    return _ESCAPE.sub(_unescape, latin(text, "write its bytes as hex: { hex = 'e2 82 ac' }"))


_ESCAPE: Final = re.compile(rb"\\(\\|x[0-9A-Fa-f]{2}|x)")


def _unescape(escape: re.Match[bytes]) -> bytes:
    if escape[1] == b"x":
        raise ValueError(r"\x needs two hex digits; write \\ for a backslash")
    return b"\\" if escape[1] == b"\\" else bytes((int(escape[1][1:], 16),))


def hex_bytes(digits: str) -> bytes:
    """Return the bytes that pairs of hex digits stand for. Blanks between the pairs are ignored.

    Raises:
        ValueError: `digits` contains anything else.
    """
    try:
        return bytes.fromhex(digits)
    except ValueError:
        raise ValueError("hex is pairs of hex digits: 'ff 00'") from None


def latin(text: str, hint: str) -> bytes:
    """Return the bytes that a text stands for: each character up to U+00FF means the byte of its number.

    Raises:
        ValueError: a character is above U+00FF. The message ends with `hint`, which says what to write.
    """
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError as error:
        raise ValueError(f'"{printable(text[error.start])}" is not one byte: {hint}') from None
