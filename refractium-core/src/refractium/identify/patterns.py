r"""Protocols made of patterns: what a configuration file says where no plugin is installed.

Bytes at a fixed place prove far more than the same bytes anywhere, and they decide sooner. So one set of
patterns becomes up to three protocols of one name, one for each strength that its patterns have:

======================================== ==========
bytes at a fixed place, three or more    EXACT
a regex that starts with ``^`` or ``\A`` STRUCTURED
all else                                 WEAK
======================================== ==========

A `Text` is in two of them: at the very start it proves much, anywhere it proves little.
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
from refractium.identify.regexes import translate
from refractium.wire.text import latin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_EXACT_BYTES: Final = 3
"""From this length on, bytes at a fixed place are taken for magic: chance meets them once in 16 million."""
_REGEX_BYTES: Final = 1 << 19
"""The memory that RE2 may take for an expression and its states. It bounds the size of the expression, and so
the time for each byte."""

_MATCH: Final = ProtocolMatch()
_Test: TypeAlias = "Callable[[bytes], Identification]"
_Find: TypeAlias = "Callable[[bytes, int, int], object]"
"""A method of a compiled regex, called with the bytes and the part of them to look at."""


@dataclass(frozen=True, slots=True)
class Text:
    """Bytes that may be anywhere in what is inspected."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Hex:
    """Bytes that must be at `offset` (bytes from the start) exactly."""

    data: bytes
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Regex:
    r"""A regular expression on bytes; a character from U+0080 to U+00FF is the byte of that number.

    What it matches must not depend on bytes after the match, or further bytes could take a yes back. So
    ``$``, lookaround, word boundaries, atomic groups and possessive quantifiers are refused. Known are
    literals, ``.``, sets, groups, ``|``, ``* + ?`` and ``{m,n}`` with their lazy forms, ``^``, ``\A``, the
    escapes of `re` and the flags ``(?i)`` and ``(?s)``. Their meaning is that of `re` for bytes: ``\w`` and
    ``(?i)`` know the letters of ASCII only, and ``.`` matches no line feed without ``(?s)``.
    """

    source: str


Pattern: TypeAlias = Text | Hex | Regex


def compile_patterns(
    name: str, transport: Transport, patterns: Iterable[Pattern], peek_buffer_size: int
) -> tuple[Protocol, ...]:
    """Make protocols of patterns; each matches where one of its patterns does.

    Args:
        name: what the protocols are called.
        transport: what they are for.
        patterns: at least one.
        peek_buffer_size: how many bytes are inspected; what stands behind them is not seen.

    Returns:
        One protocol for each strength that occurs, strongest first.

    Raises:
        ValueError: no pattern; an empty one; one that does not fit into `peek_buffer_size`; a regex that is
            not valid, not supported, too large, or matches no bytes at all; a regex without google-re2.
    """
    group: dict[Strength, list[_Part]] = {}
    for pattern in patterns:
        for strength, part in _parts(pattern, peek_buffer_size):
            group.setdefault(strength, []).append(part)
    if not group:
        raise ValueError("no pattern")
    return tuple(
        _PatternProtocol(name, transport, strength, parts) for strength, parts in sorted(group.items())
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """One test with its bound (bytes) and, where it has one, the fixed string that it starts with."""

    test: _Test
    bound: int
    prefix: bytes = b""


class _PatternProtocol(Protocol):
    """Any of its parts' yes is its yes; only when all said no, it is no."""

    def __init__(self, name: str, transport: Transport, strength: Strength, parts: list[_Part]) -> None:
        self.name = name
        self.transport = transport
        self.strength = strength
        self.max_bytes = max(part.bound for part in parts)
        self.prefixes = tuple(part.prefix for part in parts) if all(part.prefix for part in parts) else ()
        self.summary = "defined by patterns"
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


def _parts(pattern: Pattern, size: int) -> Iterable[tuple[Strength, _Part]]:
    if isinstance(pattern, Regex):
        strength, test = _regex(pattern.source, size)
        return [(strength, _Part(test, size))]
    offset = pattern.offset if isinstance(pattern, Hex) else 0
    end = offset + len(pattern.data)
    if not pattern.data:
        raise ValueError("it is empty and would match everything")
    if offset < 0:
        raise ValueError(f"offset {offset} is negative")
    if end > size:
        raise ValueError(f"it ends at byte {end}, and only {size} are inspected (peek_buffer_size)")
    fixed = _Part(_fixed(pattern.data, offset), end, b"" if offset else pattern.data)
    parts = []
    if len(pattern.data) >= _EXACT_BYTES:
        parts.append((Strength.EXACT, fixed))
    elif isinstance(pattern, Hex):
        parts.append((Strength.WEAK, fixed))
    if isinstance(pattern, Text):
        parts.append((Strength.WEAK, _Part(_anywhere(pattern.data, size), size)))
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
    """Return the test of a regex; an anchored one says no as soon as no further byte could make it match."""
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
    """Compile an expression in the syntax of RE2.

    Raises:
        ValueError: RE2 is not installed, or the expression is too large for it.
    """
    try:
        # Imported here because it costs 20 ms and few files have a regex. Another package is imported as re2
        # too, and has no `Options`.
        from re2 import Options, compile, error  # type: ignore[import-untyped]  # noqa: A004, PLC0415
    except ImportError as missing:
        raise ValueError(
            f"a regex needs the package google-re2 ({missing}): pip install 'refractium-core[regex]', "
            "or under uv: uv pip install 'refractium-core[regex]'"
        ) from missing
    if len(expression) > _REGEX_BYTES:  # RE2 logs about some of these, whatever its options are
        raise ValueError("it is too large for RE2")
    options = Options()
    options.encoding = Options.Encoding.LATIN1
    options.log_errors = False
    options.max_mem = _REGEX_BYTES
    try:
        return compile(expression, options)
    except error as refusal:
        raise ValueError(
            f"it is too large for RE2: {refusal.args[0].decode()} (counts of repetitions may be up to 1,000, "
            "multiplied where repetitions are nested)"
        ) from refusal
