"""Regexes of a configuration: the bytes that they match, the bytes that they still could match, and their
cost."""

from __future__ import annotations

import random
import re
import sys
import time
import warnings
from types import ModuleType
from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from refractium.config import Source, decode
from refractium.contract import NEED_MORE, NO, NeedMore, Protocol, ProtocolMatch, Strength, Transport, Verdict
from refractium.identify.patterns import Regex, compile_patterns
from refractium.testing import assert_lawful

SIZE = 64
MATCH: Final = "match"
EVERY_BYTE = [bytes((byte,)) for byte in range(256)]


def regex(source: str, size: int = SIZE) -> Protocol:
    (protocol,) = compile_patterns("mine", Transport.TCP, [Regex(source)], size)
    return protocol


def refused(source: str) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is tested below
        regex(source)
    return str(caught.value)


def answer(protocol: Protocol, data: bytes) -> Verdict | str:
    found = protocol.identify(data)
    assert not isinstance(found, NeedMore)
    return MATCH if isinstance(found, ProtocolMatch) else found


# Matches


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (r"\s", b"\t\n\v\f\r "),
        (r"\d", b"0123456789"),
        ("[]a]", b"]a"),
        (r"[\]\[]", b"[]"),
        ("[a-]", b"-a"),
        ("[.$|(){}*+?]", b".$|(){}*+?"),
        (r"[\b]", b"\b"),
        (r"[\101]", b"A"),
        (r"\0", b"\0"),
        (r"\012", b"\n"),
        (r"\v", b"\v"),
        (r"\a", b"\a"),
        (r"\xE9", b"\xe9"),
        ("é", b"\xe9"),
        ("}", b"}"),
        ("]", b"]"),
        (r"\_", b"_"),
        ("(?i)k", b"Kk"),
        ("(?i:[j-k])", b"JKjk"),
        ("(?i)é", b"\xe9"),
        ("(?i)[à-ÿ]", bytes(range(0xE0, 0x100))),
        ("[^\x00-\xfe]", b"\xff"),
    ],
)
def test_a_regex_matches_exactly_these_bytes(source: str, expected: bytes) -> None:
    protocol = regex(source)
    assert b"".join(byte for byte in EVERY_BYTE if answer(protocol, byte) == MATCH) == bytes(sorted(expected))


@pytest.mark.parametrize(
    ("source", "missing"), [(".", b"\n"), ("(?s).", b""), ("(?s:.)", b""), ("[^]a]", b"]a")]
)
def test_a_regex_matches_all_bytes_except_these(source: str, missing: bytes) -> None:
    protocol = regex(source)
    assert bytes(sorted(missing)) == b"".join(byte for byte in EVERY_BYTE if answer(protocol, byte) != MATCH)


@pytest.mark.parametrize(
    ("source", "answers"),
    [
        (
            "^HELLO [0-9]+",
            {b"": NEED_MORE, b"HELLO ": NEED_MORE, b"HELLO 1x": MATCH, b"HELP": NO, b"HELLO x": NO},
        ),
        ("^(ab|ac)d", {b"a": NEED_MORE, b"ac": NEED_MORE, b"acd": MATCH, b"ad": NO, b"abcd": NO}),
        ("^a{2,3}b", {b"aaa": NEED_MORE, b"aab": MATCH, b"ab": NO, b"aaaa": NO}),
        ("^a{,2}b", {b"aa": NEED_MORE, b"b": MATCH, b"aaa": NO}),
        ("^a{,}b", {b"a" * 60: NEED_MORE, b"aaaab": MATCH, b"ac": NO}),
        ("^(?:ab){2}c", {b"aba": NEED_MORE, b"abab": NEED_MORE, b"ababc": MATCH, b"abc": NO, b"ababa": NO}),
        ("^(?:a{2}b?)+c", {b"aabaa": NEED_MORE, b"aac": MATCH, b"aaac": NO, b"aabb": NO}),
        ("^a{0}b", {b"": NEED_MORE, b"b": MATCH, b"a": NO}),
        ("^(?:ab){0}c", {b"": NEED_MORE, b"c": MATCH, b"a": NO}),
        ("^(?P<first>a|)b", {b"a": NEED_MORE, b"b": MATCH, b"aa": NO}),
        ("^.*?b", {b"a a": NEED_MORE, b"aab": MATCH, b"a\nb": NO}),
        ("(?is)^a.b", {b"A\n": NEED_MORE, b"a\nB": MATCH, b"b": NO}),
        ("^(?:^a|\\Ab)c", {b"a": NEED_MORE, b"bc": MATCH, b"ab": NO}),
        ("^(?:^a)?b", {b"a": NEED_MORE, b"b": MATCH, b"aa": NO}),
        ("(^a|b)c", {b"ac": MATCH, b"xac": NEED_MORE, b"xbc": MATCH}),
    ],
)
def test_an_answer_comes_as_soon_as_it_is_certain(source: str, answers: dict[bytes, Verdict | str]) -> None:
    protocol = regex(source)
    assert {data: answer(protocol, data) for data in answers} == answers


def test_bytes_beyond_the_maximum_are_not_inspected() -> None:
    for source in ("^a+b", "ab"):
        assert answer(regex(source, 4), b"aaab") == MATCH
        assert answer(regex(source, 4), b"aaa") is NEED_MORE
        assert answer(regex(source, 4), b"aaaa") is NO
        assert answer(regex(source, 4), b"aaaab") is NO


ATOMS = (
    *"ab1]}é", ".", "(?s:.)",
    r"\d", r"\D", r"\w", r"\W", r"\s", r"\S", r"\.", r"\$", r"\\", r"\-", r"\{", r"\_",
    r"\n", r"\r", r"\t", r"\f", r"\v", r"\a", r"\0", r"\07", r"\012", r"\x41", r"\xE9",
    "[ab]", "[^a]", "[]a]", "[^]a]", "[a-]", "[-a]", "[^-a]", "[a^]", "[a-b1]", r"[\]b]", r"[\[b]", r"[^\]]",
    r"[\d\s]", r"[^\w]", r"[\D]", r"[\W_]", r"[\b]", r"[\0]", r"[\101]", r"[\x00-\x20]", r"[\v-\r]",
    r"[\a\\]", "[$.|()*+?{}]", "[à-ÿ]", "[^à-ÿ]", "[A-b]",
    "(?i:a)", "(?i:É)", "(?i:[à-ÿ])", "(?i:[^a-b])", "(?i:[A-Z])", "(?is:.)", r"(?i:\x61)", "(?i:[k-s])",
)  # fmt: skip
"""Parts of a regex that match one byte."""
REPETITIONS = (
    "*", "+", "?", "{2}", "{0}", "{1,}", "{,2}", "{1,3}", "{0,1}", "{,}", "*?", "+?", "??", "{2}?", "{,2}?",
)  # fmt: skip
SOURCES = st.recursive(
    st.sampled_from(ATOMS),
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=3).map("".join),
        st.lists(inner | st.just(""), min_size=2, max_size=3).map(lambda parts: f"(?:{'|'.join(parts)})"),
        st.builds("(?:{}){}".format, inner, st.sampled_from(REPETITIONS)),
        st.builds("({}){}".format, inner, st.sampled_from(REPETITIONS)),
        st.builds("{}{}".format, inner, inner),
        st.builds("({}:{})".format, st.sampled_from(["?i", "?s", "?is", "?"]), inner),
    ),
    max_leaves=6,
)
BEFORE = st.sampled_from(["", "(?i)", "(?s)", "(?is)", "(?i)(?s)"])
ALPHABET = sorted(
    {
        tuple(
            bool(re.fullmatch(atom.encode("latin-1"), byte, flag))
            for atom in ATOMS
            for flag in (0, re.IGNORECASE)
        ): byte
        for byte in EVERY_BYTE
    }.values()
)
"""One byte of each class that the parts distinguish."""
BYTES = st.lists(st.sampled_from([*ALPHABET, b"a", b"b", b"B"]), max_size=10).map(b"".join)


@given(BEFORE, st.sampled_from(["", "^", r"\A"]), SOURCES, BYTES, st.lists(BYTES, max_size=5))
@example("", "^", "(?:a|){2}b", b"aab", [])
@example("(?i)", "^", "(a|b{2,3}?)+]", b"ABB", [b"]"])
def test_answers_agree_with_the_regexes_of_python(
    flags: str, anchor: str, body: str, data: bytes, more: list[bytes]
) -> None:
    source = flags + anchor + body
    reference = re.compile(source.encode("latin-1"))
    matches = reference.match if anchor else reference.search
    if matches(b""):
        assert "matches no bytes" in refused(source)
        return
    protocol = regex(source)
    assert protocol.strength is (Strength.STRUCTURED if anchor else Strength.WEAK)
    assert_lawful(protocol, data)
    answered = answer(protocol, data)
    assert (answered == MATCH) == bool(matches(data))
    if answered is NO:
        assert not any(matches(data + end) for end in (*more, *EVERY_BYTE))
    elif answered is NEED_MORE and anchor:
        assert matches(data + completion(protocol, data))


def completion(protocol: Protocol, data: bytes) -> bytes:
    """Return bytes after which the protocol matches, found by trying one byte after the other."""
    tried = [b""]
    while tried:
        end = tried.pop()
        for byte in ALPHABET:
            answered = answer(protocol, data + end + byte)
            if answered == MATCH:
                return end + byte
            if answered is NEED_MORE and len(end) < 20:
                tried.append(end + byte)
    raise AssertionError(f"no further bytes make a match of {data.hex(' ')} (hex)")


SYNTAX = st.lists(
    st.sampled_from([*r"ab1sx0dw.[]^-\(){}?*+|,:é", "(?", "[^", "{1,", r"\x6", "(?i)", "(?s:"]), max_size=9
)


@given(SYNTAX.map("".join), BYTES)
@example("[[", b"")
@example("[^])--", b"")
def test_every_regex_has_its_meaning_in_python_or_is_refused(source: str, data: bytes) -> None:
    try:
        protocol = regex(source)
    except ValueError as refusal:
        if "is not a valid regex" in str(refusal):
            with warnings.catch_warnings(action="ignore"), pytest.raises((re.error, OverflowError)):
                re.compile(source.encode("latin-1"))
        return
    assert isinstance(protocol.identify(data), ProtocolMatch) == bool(
        re.search(source.encode("latin-1"), data)
    )


# Refused regexes


@pytest.mark.parametrize(
    ("source", "message"),
    [
        *(
            (source, "it holds at the start only")
            for source in ("a^b", r"a\Ab", "a*^b", "(?:a|b)(^c)", "^a|b^c")
        ),
        *(
            (source, '"^" is not supported in a repetition')
            for source in ("(?:^a)*b", "(^a|b){2}", r"(?:\Aa)+b")
        ),
        *(
            (f"a[{member}]", "in a set is not supported")
            for member in ("[:alpha:]", "a&&b", "+--", "a||b", "a~~")
        ),
        ("^[[{]", r'"[" in a set is not supported, because dialects read it in different ways: write \[ for'),
        (r"a[^\s\S]", r'the set "[^\s\S]" matches no byte'),
        ("[^]", "a set without its end"),
        ("(?:" * 5_000 + "a" + ")" * 5_000, "not a valid regex"),
        ("a{1001}", "up to 1,000"),
        ("(?:a{40}b){40}", "multiplied where repetitions are nested"),
        ("a{" + "9" * 20 + "}", "not a valid regex"),
        ("a{" + "9" * 5_000 + "}", "not a valid regex"),
        ("a" * 50_000, "too large"),
        ("^" + "(?:" * 100 + "a" * 4_000 + ")?b" * 100, "too large"),
    ],
    ids=lambda value: value[:30],
)
def test_a_regex_that_cannot_work_is_refused_with_a_reason(
    source: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(source)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("library", [None, ModuleType("re2")], ids=["missing", "another of that name"])
def test_without_the_library_the_error_says_how_to_install_it(
    library: ModuleType | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "re2", library)
    route = '[[protocols]]\nname = "mine"\nforward_to = "a:1"\npatterns = ["abc", { hex = "00" }'
    assert not decode(Source(f"{route}]", "my.toml")).problems
    (problem,) = decode(Source(f"{route}, {{ regex = 'a' }}]", "my.toml")).problems
    assert (problem.where, problem.line) == ("protocols[0].patterns[2]", 4)
    assert problem.message.startswith("a regex needs the package google-re2")
    assert "pip install 'refractium-core[regex]'" in problem.message
    assert "uv pip install 'refractium-core[regex]'" in problem.message


# Cost


NOISE = bytes(random.Random(1).choices(b"ab", k=1 << 14))  # noqa: S311 - no secret


@pytest.mark.parametrize(
    ("source", "data"),
    [
        ("^(a+)+b", b"a"),
        ("^(a|a)*b", b"a"),
        ("^(a|aa)+b", b"a"),
        ("^(?:(?:a*)*)*b", b"a"),
        ("(x+x+)+y", b"x"),
        ("^(x+x+)+y", b"x"),
        ("^(.*a){20}b", b"a"),
        (r"^(\w+\s?)*!", b"aaa "),
        ("^([a-zA-Z]+)*1", b"a"),
        ("(?:.*)*=(?:.*)*!", b"x="),
        ("[a-z]+[0-9]", b"x"),
        pytest.param("^[ab]*a[ab]{20}c", NOISE, id="more states than fit into memory"),
    ],
)
def test_the_time_grows_no_faster_than_the_bytes(source: str, data: bytes) -> None:
    protocol = regex(source, 1 << 15)
    quarter, whole = ((data * size)[:size] for size in (1 << 12, 1 << 14))
    assert protocol.identify(whole) is NEED_MORE
    # Growth with the square of the bytes would make the second time 16 times as long.
    assert seconds(protocol, whole) < 8 * seconds(protocol, quarter)


def seconds(protocol: Protocol, data: bytes) -> float:
    """Return the processor time (s) of one answer, the shortest of several measurements."""

    def once() -> float:
        begun = time.thread_time()
        protocol.identify(data)
        return time.thread_time() - begun

    return min(once() for _ in range(7))
