r"""Protocols made of the patterns of a configuration file, without a plugin.

Bytes at a fixed place prove far more than the same bytes anywhere, and allow an earlier decision. So one set
of patterns becomes up to three protocols of the same name, one for each strength of the patterns:

======================================== ==========
pattern                                  strength
======================================== ==========
three or more bytes at a fixed place     EXACT
a regex that starts with ``^`` or ``\A`` STRUCTURED
every other pattern                      WEAK
======================================== ==========

A `Text` of three or more bytes belongs to two of these protocols: to EXACT for a match at the very start, and
to WEAK for a match anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from refractium.contract import (
    NEED_MORE,
    NO,
    Identification,
    Protocol,
    ProtocolMatch,
    Strength,
    Transport,
)
from refractium.identify.re2_engine import RefusedRegexError, compile_regex
from refractium.identify.regexes import translate
from refractium.wire.text import latin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_EXACT_BYTES: Final = 3
"""Minimum number of bytes at a fixed place for EXACT: three random bytes match once in 16 million cases."""

_MATCH: Final = ProtocolMatch()
_Test: TypeAlias = "Callable[[bytes], Identification]"
_Find: TypeAlias = "Callable[[bytes, int, int], object]"
"""A method of a compiled regex. The arguments are the bytes, and the start and end of the part to search."""


@dataclass(frozen=True, slots=True)
class Text:
    """Bytes that may be anywhere in the inspected bytes."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Hex:
    """Bytes that must be exactly at `offset` (bytes from the start)."""

    data: bytes
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Regex:
    r"""A regular expression on bytes. A character from U+0080 to U+00FF means the byte of that number.

    A match must not depend on later bytes, because later bytes could then revoke the match. So ``$``,
    lookaround, word boundaries, atomic groups and possessive quantifiers are refused.

    The supported elements are literals, ``.``, sets, groups, ``|``, ``* + ?`` and ``{m,n}`` with their lazy
    forms, ``^``, ``\A``, the escapes of `re` and the flags ``(?i)`` and ``(?s)``. Each element means the same
    as in `re` for bytes: ``\w`` and ``(?i)`` apply to ASCII letters only, and ``.`` matches a line feed only
    with ``(?s)``.
    """

    source: str


Pattern: TypeAlias = Text | Hex | Regex


def compile_patterns(
    name: str, transport: Transport, patterns: Iterable[Pattern], peek_buffer_size: int
) -> tuple[Protocol, ...]:
    """Make protocols from patterns. Each protocol matches if one of its patterns matches.

    Args:
        name: name of the protocols.
        transport: transport of the protocols.
        patterns: at least one pattern.
        peek_buffer_size: count of bytes that are inspected. Later bytes have no effect.

    Returns:
        One protocol for each strength that occurs, strongest first.

    Raises:
        ValueError: there is no pattern; a pattern is empty or does not fit into `peek_buffer_size`; a regex
            is not valid, not supported, too large, or matches empty data; google-re2 is missing.
    """
    group: dict[Strength, list[_PatternTest]] = {}
    patterns = tuple(patterns)
    for pattern in patterns:
        for strength, part in _parts(pattern, peek_buffer_size):
            group.setdefault(strength, []).append(part)
    if not group:
        raise ValueError("no pattern")
    return tuple(
        PatternProtocol(name, transport, strength, parts, frozenset(patterns))
        for strength, parts in sorted(group.items())
    )


@dataclass(frozen=True, slots=True)
class _PatternTest:
    """A test, the largest number of bytes that it inspects, and the first bytes of each match.

    `prefix` is empty if a match may begin with any bytes.
    """

    test: _Test
    bound: int
    prefix: bytes = b""


class PatternProtocol(Protocol):
    """A protocol that matches if one of its parts matches, and answers `NO` only if all parts answer `NO`.

    Attributes:
        patterns: the argument of `compile_patterns`, which may make several protocols from one set.
    """

    def __init__(
        self,
        name: str,
        transport: Transport,
        strength: Strength,
        parts: list[_PatternTest],
        patterns: frozenset[Pattern],
    ) -> None:
        self.name = name
        self.transport = transport
        self.strength = strength
        self.max_bytes = max(part.bound for part in parts)
        self.prefixes = tuple(part.prefix for part in parts) if all(part.prefix for part in parts) else ()
        self.summary = "defined by patterns"
        self.patterns = patterns
        self._tests = tuple(part.test for part in parts)

    def identify(self, data: bytes) -> Identification:
        verdict: Identification = NO
        for test in self._tests:
            answer = test(data)
            if answer is _MATCH:
                return answer
            if answer is NEED_MORE:
                verdict = NEED_MORE
        return verdict


def _parts(pattern: Pattern, size: int) -> Iterable[tuple[Strength, _PatternTest]]:
    if isinstance(pattern, Regex):
        strength, test = _regex(pattern.source, size)
        return [(strength, _PatternTest(test, size))]
    offset = pattern.offset if isinstance(pattern, Hex) else 0
    end = offset + len(pattern.data)
    if not pattern.data:
        raise ValueError("it is empty and would match everything")
    if offset < 0:
        raise ValueError(f"offset {offset} is negative")
    if end > size:
        raise ValueError(f"it ends at byte {end}, and only {size} are inspected (peek_buffer_size)")
    fixed = _PatternTest(_fixed(pattern.data, offset), end, b"" if offset else pattern.data)
    parts = []
    if len(pattern.data) >= _EXACT_BYTES:
        parts.append((Strength.EXACT, fixed))
    elif isinstance(pattern, Hex):
        parts.append((Strength.WEAK, fixed))
    if isinstance(pattern, Text):
        parts.append((Strength.WEAK, _PatternTest(_anywhere(pattern.data, size), size)))
    return parts


def _fixed(expected: bytes, offset: int) -> _Test:
    end = offset + len(expected)

    def test(data: bytes) -> Identification:
        found = data[offset:end]
        if found == expected:
            return _MATCH
        return NEED_MORE if len(data) < end and expected.startswith(found) else NO

    return test


def _anywhere(expected: bytes, size: int) -> _Test:
    def test(data: bytes) -> Identification:
        if data.find(expected, 0, size) >= 0:
            return _MATCH
        return NEED_MORE if len(data) < size else NO

    return test


def _regex(source: str, size: int) -> tuple[Strength, _Test]:
    """Return the strength and the test of a regex.

    The test of an anchored regex answers `NO` as soon as no further byte could make the regex match.
    """
    latin(source, r"write its bytes as \xHH")
    translated = translate(source)
    matching = _re2(translated.matching)
    if matching.search(b""):
        raise ValueError("it matches no bytes at all and so would match everything")
    if not translated.anchored:
        return Strength.WEAK, _searched(matching.search, size)
    return Strength.STRUCTURED, _anchored(matching.match, _re2(translated.possible).fullmatch, size)


def _anchored(match: _Find, fullmatch: _Find, size: int) -> _Test:
    def test(data: bytes) -> Identification:
        if not fullmatch(data, 0, size):
            return NO
        if match(data, 0, size):
            return _MATCH
        return NEED_MORE if len(data) < size else NO

    return test


def _searched(search: _Find, size: int) -> _Test:
    def test(data: bytes) -> Identification:
        if search(data, 0, size):
            return _MATCH
        return NEED_MORE if len(data) < size else NO

    return test


def _re2(expression: bytes) -> Any:
    """Compile a translated expression.

    Raises:
        ValueError: RE2 is not installed, or the expression is too large for RE2.
    """
    try:
        return compile_regex(expression, latin1=True)
    except RefusedRegexError as refusal:  # `translate` has accepted the syntax
        raise ValueError(
            f"it is too large for RE2: {refusal} (counts of repetitions may be up to 1,000, "
            "multiplied where repetitions are nested)"
        ) from refusal
