"""Patterns for texts and flags in metadata, such as the name of a database or of a user."""

from __future__ import annotations

from bisect import insort
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from refractium.contract import MetadataKind
from refractium.contract.metadata import type_name, types_of
from refractium.routing.names import NameRegex, compile_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from refractium.contract import MetadataValue

TextPattern: TypeAlias = "str | bool | NameRegex"
"""A text, in which each ``*`` stands for any characters; a flag; or a `NameRegex`."""

_TextTest: TypeAlias = "Callable[[str], object]"


def is_exact(pattern: TextPattern) -> bool:
    """Return whether a pattern stands for a single value."""
    return not isinstance(pattern, NameRegex) and not (isinstance(pattern, str) and "*" in pattern)


class TextIndex:
    """Numbers by the pattern of a text, of a list of texts, or of a flag.

    A lookup takes the same time for any number of exact patterns, and tries each pattern with ``*`` and each
    regex.

    Args:
        kind: kind of the values.
        combine: function that combines two numbers that apply to a value in the same way.
    """

    def __init__(self, kind: MetadataKind, combine: Callable[[int, int], int]) -> None:
        self._kind = kind
        self._type = types_of(kind)
        self._absent = False if kind is MetadataKind.FLAG else None
        self._has_patterns = False
        self._combine = combine
        self._exact: dict[str | bool, int] = {}
        self._globs: dict[str, tuple[_TextTest, int]] = {}
        self._ordered_globs: list[str] = []
        self._regexes: dict[NameRegex, tuple[Any, int]] = {}
        self.rest: int | None = None
        """The number for all clients, with or without a value; None if there is no such number."""
        self.asking: int | None = None
        """The combination of the numbers of all patterns; None without a pattern."""

    def add(self, pattern: TextPattern | None, number: int) -> None:
        """Add a number for a pattern; None stands for all clients, with or without a value.

        A lookup tries regexes in the order of these calls. The same order decides between two patterns with
        ``*`` that have equally many other characters.
        """
        if pattern is None:
            self.rest = number if self.rest is None else self._combine(self.rest, number)
            return
        self.asking = number if self.asking is None else self._combine(self.asking, number)
        if isinstance(pattern, NameRegex):
            self._has_patterns = True
            if (known := self._regexes.get(pattern)) is None:
                self._regexes[pattern] = compile_name(pattern, ignore_case=False).fullmatch, number
            else:
                self._regexes[pattern] = known[0], self._combine(known[1], number)
        elif is_exact(pattern):
            exact = self._exact
            exact[pattern] = self._combine(exact[pattern], number) if pattern in exact else number
        elif isinstance(pattern, str):
            self._has_patterns = True
            if (same := self._globs.get(pattern)) is None:
                self._globs[pattern] = _glob(pattern), number
                insort(self._ordered_globs, pattern, key=_looseness)
            else:
                self._globs[pattern] = same[0], self._combine(same[1], number)

    def lookup(self, value: MetadataValue | None) -> Iterator[int]:
        """Yield the numbers that apply to `value`, the number of the most specific pattern first.

        The order is: exact patterns, patterns with ``*`` (the pattern with the most other characters first),
        regexes, no value. Of a list of texts, one text must match; all exact patterns that match count as one
        pattern.

        Raises:
            TypeError: `value` is neither of the kind nor None.
        """
        if value is None:
            value = self._absent
        if value is not None:
            if (exact := self._exact_number(value)) is not None:
                yield exact
            if self._has_patterns:
                yield from self._lookup_patterns(value if isinstance(value, tuple) else (value,))
        if self.rest is not None:
            yield self.rest

    def narrow(self, value: MetadataValue | None, found: int) -> int:
        """Return the intersection of `found` with the first number that `lookup` yields and that intersects.

        The numbers are sets of bits. The result is 0 if there is no such number.
        """
        if value is None:
            value = self._absent
        if value is not None:
            if (exact := self._exact_number(value)) is not None and (left := found & exact):
                return left
            if self._has_patterns:
                return next((left for number in self.lookup(value) if (left := found & number)), 0)
        return found & (self.rest or 0)

    def certain(self, first: MetadataValue | None) -> int | None:
        """Return the number of the exact patterns that match a list of which only the first texts are known.

        The result is None if there is no such number. Further texts change no exact match, but can match
        further patterns.
        """
        return self._exact_number(first) if isinstance(first, tuple) else None

    def _exact_number(self, value: MetadataValue) -> int | None:
        if not isinstance(value, self._type):
            raise self._wrong(value)
        exact = self._exact
        if not isinstance(value, tuple):
            return exact.get(value)
        number: int | None = None
        for one in value:
            if not isinstance(one, str):
                raise self._wrong(one)
            if (of_one := exact.get(one)) is not None:
                number = of_one if number is None else self._combine(number, of_one)
        return number

    def _wrong(self, value: object) -> TypeError:
        return TypeError(f"a value in the metadata is {type(value).__name__}, not {type_name(self._kind)}")

    def _lookup_patterns(self, values: tuple[str | bool, ...]) -> Iterator[int]:
        texts = [one for one in values if isinstance(one, str)]
        for pattern in self._ordered_globs:
            test, number = self._globs[pattern]
            if any(map(test, texts)):
                yield number
        if self._regexes:
            encoded = [text.encode(errors="replace") for text in texts]
            for fullmatch, number in self._regexes.values():
                if any(map(fullmatch, encoded)):
                    yield number


def _looseness(pattern: str) -> int:
    return pattern.count("*") - len(pattern)


_STAR: Final = "*"


def _glob(pattern: str) -> _TextTest:
    """Return a function that tests whether a text matches a pattern with ``*``.

    The time is the time of one search for each part of the pattern: the first place of a part is always the
    best place, so that no search begins anew.
    """
    first, *middle, last = pattern.split(_STAR)

    def test(text: str) -> bool:
        if not (text.startswith(first) and text.endswith(last)):
            return False
        at, end = len(first), len(text) - len(last)
        for part in middle:
            at = text.find(part, at, end)
            if at < 0:
                return False
            at += len(part)
        return at <= end

    return test
