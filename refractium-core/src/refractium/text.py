"""Text from wires, plugins and other programs, made fit for a terminal or a log."""

from __future__ import annotations

import re
from typing import Final

_WORD: Final = re.compile(r"[!-\[\]-~]*").fullmatch
"""Printable ASCII, without a space and a backslash."""


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
    return "".join(one if one.isprintable() else _escaped(one) for one in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
