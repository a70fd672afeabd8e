"""Text that is safe to print on a terminal or in a log."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refractium.wire.text import ROOM, brief, brief_word, escape, printable

ANY = st.text(st.characters(exclude_categories=()), max_size=40)
"""Any text, with lone surrogates too, which stand for bytes that are not UTF-8."""


@given(ANY)
def test_a_word_is_printable_ascii_without_a_space(text: str) -> None:
    word = escape(text)
    assert word.isascii()
    assert word.isprintable()
    assert " " not in word


@given(ANY)
def test_escaped_text_is_printable_and_can_be_encoded(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    shown.encode()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("caf\u00e9 \u6771\u4eac", "caf\u00e9 \u6771\u4eac"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\x9b31mred", "\\x9b31mred"),
        ("a\r\nb\0", "a\\r\\nb\\x00"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\udc80", "\\udc80"),
    ],
)
def test_characters_that_could_move_the_cursor_or_reverse_a_line_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters(exclude_categories=()), max_size=2 * ROOM))
def test_a_text_is_cut_between_characters_and_never_in_an_escape(text: str) -> None:
    for cut, whole in ((brief, printable), (brief_word, escape)):
        shown = cut(text)
        if len(whole(text)) <= ROOM:
            assert shown == whole(text)
        else:
            kept = shown.removesuffix("...")
            assert ROOM - len("\\U00000000") < len(kept) <= ROOM
            assert any(whole(text[:end]) == kept for end in range(len(text)))


def test_a_cut_text_ends_with_dots() -> None:
    assert brief("x" * 257) == "x" * 256 + "..."
    assert brief_word("x" * 256) == "x" * 256
    assert brief("abcdef", 3) == "abc..."
