from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from refractium.contract import NEED_MORE, NO, Protocol, ProtocolMatch, Strength, Transport
from refractium.identify.patterns import Hex, Pattern, Regex, Text, compile_patterns
from refractium.testing import assert_identifies, assert_lawful, assert_rejects
from refractium.wire.text import text_bytes

SIZE = 32
LETTERS = st.binary(max_size=SIZE + 8).map(lambda data: bytes(b"abAB10\n "[byte % 8] for byte in data))


def compiled(*patterns: Pattern, size: int = SIZE) -> dict[Strength, Protocol]:
    return {one.strength: one for one in compile_patterns("mine", Transport.TCP, patterns, size)}


def refused(*patterns: Pattern) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is tested below
        compile_patterns("mine", Transport.TCP, patterns, SIZE)
    return str(caught.value)


def test_each_character_is_the_byte_of_its_number() -> None:
    assert text_bytes("MY\x01\xff") == b"MY\x01\xff"


def test_escapes_of_a_literal_string_are_bytes() -> None:
    assert text_bytes(r"\x01\xFF\xe9") == b"\x01\xff\xe9"
    assert text_bytes(r"\\x01") == rb"\x01"
    assert text_bytes(r"a\b\\") == b"a\\b\\"


@pytest.mark.parametrize(("text", "message"), [("€", "as hex"), (r"\x1", "two hex digits")])
def test_text_beyond_u_00ff_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        text_bytes(text)


def test_a_text_matches_anywhere_and_is_stronger_at_the_start() -> None:
    protocols = compiled(Text(b"KNOCK"))
    assert set(protocols) == {Strength.EXACT, Strength.WEAK}
    assert_identifies(protocols[Strength.EXACT], b"KNOCK and more")
    assert_rejects(protocols[Strength.EXACT], b"a KNOCK")
    assert protocols[Strength.EXACT].prefixes == (b"KNOCK",)
    assert protocols[Strength.EXACT].max_bytes == 5
    assert_identifies(protocols[Strength.WEAK], b"a KNOCK")
    assert protocols[Strength.WEAK].identify(b"a KNO") is NEED_MORE
    assert_rejects(protocols[Strength.WEAK], b"." * (SIZE - 4) + b"KNOCK")


def test_a_short_text_is_weak_even_at_the_start() -> None:
    assert set(compiled(Text(b"AB"))) == {Strength.WEAK}


def test_hex_matches_only_at_its_offset() -> None:
    (protocol,) = compiled(Hex(b"\xff\x00\xff", 4)).values()
    assert protocol.strength is Strength.EXACT
    assert protocol.prefixes == ()
    assert protocol.max_bytes == 7
    assert_identifies(protocol, b"....\xff\x00\xff")
    assert_rejects(protocol, b"\xff\x00\xff\xff\x00\x00")


def test_short_hex_is_weak_and_still_decides_at_its_offset() -> None:
    (protocol,) = compiled(Hex(b"\x05")).values()
    assert (protocol.strength, protocol.prefixes, protocol.max_bytes) == (Strength.WEAK, (b"\x05",), 1)
    assert_identifies(protocol, b"\x05\x01")
    assert_rejects(protocol, b"\x04\x05")


def test_an_anchored_regex_answers_no_at_the_first_byte_that_cannot_fit() -> None:
    (protocol,) = compiled(Regex("^HELLO [0-9]+")).values()
    assert protocol.strength is Strength.STRUCTURED
    assert_identifies(protocol, b"HELLO 12")
    assert protocol.identify(b"HELLO ") is NEED_MORE
    assert protocol.identify(b"HELP") is NO
    assert_rejects(protocol, b"HELLO x")


def test_a_regex_without_an_anchor_is_searched() -> None:
    for source in ("b+1", "^a|b", "(?:^b)?1"):
        (protocol,) = compiled(Regex(source)).values()
        assert protocol.strength is Strength.WEAK
        assert_identifies(protocol, b"xxabb1")


def test_a_regex_matches_bytes_and_not_text() -> None:
    (protocol,) = compiled(Regex(r"^\xff[\x80-\x8f]é")).values()
    assert_identifies(protocol, b"\xff\x81\xe9")
    assert_rejects(protocol, "ÿ\x81é".encode())


def test_patterns_of_one_strength_are_one_protocol_and_any_of_them_matches() -> None:
    protocols = compiled(Hex(b"\x01\x02\x03"), Text(b"ABC"), Regex("^x1"), Regex("^y2"), Hex(b"\x09"))
    assert list(protocols) == [Strength.EXACT, Strength.STRUCTURED, Strength.WEAK]
    assert protocols[Strength.EXACT].prefixes == (b"\x01\x02\x03", b"ABC")
    for data in (b"x1", b"y2"):
        assert_identifies(protocols[Strength.STRUCTURED], data)
    for data in (b"\x09", b"..ABC"):
        assert_identifies(protocols[Strength.WEAK], data)


def test_a_datagram_is_recognised() -> None:
    exact, weak = compile_patterns("mine", Transport.UDP, (Text(b"ABC"),), SIZE)
    assert exact.transport is Transport.UDP
    assert isinstance(exact.identify(b"ABC"), ProtocolMatch)
    assert isinstance(weak.identify(b"..ABC"), ProtocolMatch)
    assert_lawful(weak, b"")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (Text(b""), "empty"),
        (Hex(b""), "empty"),
        (Hex(b"a", -1), "negative"),
        (Hex(b"ab", SIZE - 1), f"ends at byte {SIZE + 1}"),
        (Text(b"a" * (SIZE + 1)), "peek_buffer_size"),
        (Regex(""), "matches no bytes"),
        (Regex("^"), "matches no bytes"),
        (Regex("a*"), "matches no bytes"),
        (Regex("a("), "not a valid regex"),
        (Regex("[a"), "not a valid regex"),
        (Regex("a\\"), "not a valid regex"),
        (Regex("€"), "not one byte"),
    ],
)
def test_patterns_that_cannot_work_are_refused(pattern: Pattern, message: str) -> None:
    assert message in refused(pattern)


def test_an_empty_list_of_patterns_is_refused() -> None:
    assert refused() == "no pattern"


@pytest.mark.parametrize(
    "source",
    [
        "^a$", r"a\Z", r"a\b", r"a\B", "a(?=b)", "a(?!b)", "(?<=a)b", "(?>a|ab)c", "a++b", "a{1,2}+b", "a?+b",
        r"(a)\1", "(?:ab){e<=1}", "(?r)ab", "(*FAIL)a", r"\X", r"\R", "(?R)", "(?m)^a", "(?#no)a",
    ],
)  # fmt: skip
def test_regexes_whose_match_later_bytes_could_undo_are_refused(source: str) -> None:
    assert "is not supported: a match must not depend on the bytes after it" in refused(Regex(source))


@pytest.mark.parametrize(
    "source", [r"a\$", "[$]a", "a{2}", "a{1,}?", "(?P<x>a)b", "(?i:A)b", "[]$]a", r"\{a"]
)
def test_regexes_that_only_resemble_unsupported_syntax_are_accepted(source: str) -> None:
    assert compiled(Regex(source))


PIECES = st.one_of(
    st.builds(Text, LETTERS.filter(bool).map(lambda data: data[:5])),
    st.builds(Hex, LETTERS.filter(bool).map(lambda data: data[:5]), st.integers(0, SIZE - 5)),
)


@given(st.lists(PIECES, min_size=1, max_size=4), LETTERS)
def test_texts_and_hex_keep_the_laws(patterns: list[Pattern], data: bytes) -> None:
    for protocol in compile_patterns("mine", Transport.TCP, patterns, SIZE):
        assert_lawful(protocol, data)


SOURCES = st.recursive(
    st.sampled_from(["a", "b", "A", r"\d", ".", "[ab]", "[^a]", r"\s", "1", r"\x41"]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda two: f"(?:{two[0]}|{two[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "*?", "+?", "{,2}?"])).map(
            lambda two: f"({two[0]}){two[1]}"
        ),
        inner.map(lambda one: f"(?i:{one})"),
    ),
    max_leaves=6,
)


@given(st.sampled_from(["", "^", r"\A"]), SOURCES, LETTERS)
@example("^", "a{2}", b"aa")
def test_regexes_keep_the_laws(anchor: str, source: str, data: bytes) -> None:
    try:
        (protocol,) = compile_patterns("mine", Transport.TCP, [Regex(anchor + source)], SIZE)
    except ValueError as error:
        assert "matches no bytes" in str(error)  # noqa: PT017 - the only allowed reason
        return
    assert_lawful(protocol, data)
