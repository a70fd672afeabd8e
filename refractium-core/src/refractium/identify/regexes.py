r"""Translation of the regular expressions of a configuration file to RE2, also for beginnings of matches.

For every expression, RE2 needs a time that is linear in the number of bytes. But RE2 cannot answer one
question of identification: could the bytes so far match together with further bytes? So this module
translates each part of an expression twice:

- ``whole`` matches the same bytes as the part.
- ``begun`` matches every incomplete beginning of such bytes, and may match the complete bytes.

Both expressions follow from the elements of the part. In a sequence, the bytes end inside one element, and
all earlier elements are complete. In a repetition, the bytes end inside one round, and all earlier rounds are
complete. Every part can match, because this module refuses sets without a byte and a misplaced
``^``. So further bytes can complete every part that has begun.

The syntax is the syntax of `re`, and `re` finds the bytes for which a literal, an escape or a set stands. RE2
receives the numbers of these bytes, so that no difference between the two dialects matters.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_TOKEN: Final = re.compile(
    r"""
      (?P<escape> \\ (?: x[0-9A-Fa-f]{2} | 0[0-7]{0,2} | (?P<letter> .? ) ) )
    | (?P<set> \[ (?P<members> \^?+ \]?+ (?: \\. | [^\]\\] )*+ ) \] )
    | (?P<global> \( \? [is]+ \) )
    | (?P<group> \( (?: \?: | \?P<\w+> | \? (?P<flags> [is]+ ) : )? (?! [?*] ) )
    | (?P<repeat> (?: [*+?] | \{ (?: (?P<times> \d+ ) | (?P<least> \d* ) , (?P<most> \d* ) ) \} )
        \?? (?P<possessive> \+ )? )
    | (?P<other> . )
    """,
    re.VERBOSE | re.DOTALL | re.ASCII,
)
_KNOWN_LETTERS: Final = frozenset("AdDsSwWnrtfvax0")
_FLAGS: Final = {"i": re.IGNORECASE, "s": re.DOTALL}
_SET_OPERATOR: Final = re.compile(r"\\. | ( \[ | -- | && | \|\| | ~~ )", re.VERBOSE | re.DOTALL)
_EVERY_BYTE: Final = bytes(range(256))


@dataclass(frozen=True, slots=True)
class Translation:
    """An expression in the syntax of RE2, for bytes as Latin-1.

    Attributes:
        anchored: whether the expression can match only at the very start.
        matching: expression that finds the matches.
        possible: expression that matches the whole data if the data matches, or could match together with
            further bytes. Use it for anchored expressions only, because other expressions could still match
            at a later position.
    """

    anchored: bool
    matching: bytes
    possible: bytes


def translate(source: str) -> Translation:
    r"""Translate an expression whose characters are bytes, U+0000 to U+00FF.

    Raises:
        ValueError: the expression is not valid, has a set that matches no byte, or has unsupported elements:
            ``$`` and ``\Z`` (true only until more bytes follow), lookaround, ``\b``, atomic groups,
            possessive quantifiers, ``^`` after another element, and elements that dialects read differently.
    """
    tokens = list(_TOKEN.finditer(source))
    for token in tokens:
        _refuse_unsupported(token)
    try:
        flags = re.compile(source.encode("latin-1")).flags
    except (re.error, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"it is not a valid regex: {error}") from error
    part = _read(iter(tokens), flags, at_start=True)
    possible = _sequence([part, _repeat(_one_of(_EVERY_BYTE), 0, None)]).begun
    return Translation(part.whole.startswith(r"\A"), part.whole.encode(), possible.encode())


def _refuse_unsupported(token: re.Match[str]) -> None:
    letter, other = token["letter"], token["other"]
    for operator in filter(None, _SET_OPERATOR.findall(token["members"] or "")):
        raise ValueError(
            f'"{operator}" in a set is not supported, because dialects read it in different ways: '
            f"write \\{operator[0]} for the byte"
        )
    if other == "[":  # checked here, because `re` would first warn about the bytes after the bracket
        raise ValueError("it is not a valid regex: a set without its end: write \\[ for the byte")
    unknown = letter and letter.isalnum() and letter not in _KNOWN_LETTERS
    if unknown or token["possessive"] or other in {"$", "{"}:
        refused = token[0]
    elif other == "(":
        refused = token.string[token.start() : token.start() + 4]
    else:
        return
    raise ValueError(f'"{refused}" is not supported: a match must not depend on the bytes after it')


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of an expression in the syntax of RE2. The docstring of this module defines both attributes."""

    whole: str
    begun: str


_START: Final = _Part(r"\A", "")


def _read(tokens: Iterator[re.Match[str]], flags: int, *, at_start: bool) -> _Part:
    """Read a valid expression up to the end of the current group.

    Args:
        tokens: the remaining tokens. The ``)`` of the group is consumed.
        flags: flags of `re` that apply in the group.
        at_start: whether no element precedes the group.
    """
    branches: list[_Part] = []
    items: list[_Part] = []
    for token in tokens:
        first = at_start and all(item is _START for item in items)
        if token["group"]:
            inner = flags
            for letter in token["flags"] or "":
                inner |= _FLAGS[letter]
            items.append(_read(tokens, inner, at_start=first))
        elif token["repeat"]:
            items.append(_repeat(items.pop(), *_counts(token)))
        elif token[0] == "|":
            branches.append(_sequence(items))
            items = []
        elif token[0] == ")":
            break
        elif token[0] in {"^", r"\A"}:
            if not first:
                raise ValueError(
                    f'"{token[0]}" is not supported after another element: it holds at the start only'
                )
            items.append(_START)
        elif not token["global"]:  # `flags` already contains the global flags
            items.append(_one_of(_bytes_of(token[0], flags)))
    branches.append(_sequence(items))
    return branches[0] if len(branches) == 1 else _choice(branches)


def _choice(branches: Sequence[_Part]) -> _Part:
    whole = "|".join(branch.whole for branch in branches)
    begun = "|".join(branch.begun for branch in branches)
    return _Part(f"(?:{whole})", f"(?:{begun})")


def _sequence(items: Sequence[_Part]) -> _Part:
    whole = "".join(item.whole for item in items)
    *ahead, last = items or [_Part("", "")]
    nested = "".join(f"(?:{item.begun}|{item.whole}" for item in ahead)
    return _Part(whole, f"{nested}{last.begun}{')' * len(ahead)}")


def _repeat(part: _Part, least: int, most: int | None) -> _Part:
    if r"\A" in part.whole and most != 1:
        raise ValueError('"^" is not supported in a repetition: it holds at the start only')
    if most is None:
        return _Part(f"(?:{part.whole}){{{least},}}", f"(?:{part.whole})*{part.begun}")
    if most == 0:
        return _Part("", "")
    rounds = f"(?:{part.whole}){{0,{most - 1}}}" if most > 1 else ""
    return _Part(f"(?:{part.whole}){{{least},{most}}}", rounds + part.begun)


def _counts(token: re.Match[str]) -> tuple[int, int | None]:
    """Return the least and the greatest count of a repetition. The greatest count is None without a limit."""
    if token["times"]:
        return int(token["times"]), int(token["times"])
    if token["most"] is not None:
        return int(token["least"] or 0), int(token["most"]) if token["most"] else None
    return int(token[0][0] == "+"), 1 if token[0][0] == "?" else None


def _bytes_of(source: str, flags: int) -> bytes:
    """Return the bytes that a literal, an escape, a set or ``.`` matches."""
    found = b"".join(re.findall(source.encode("latin-1"), _EVERY_BYTE, flags))
    if not found:
        raise ValueError(f'the set "{source}" matches no byte')
    return found


def _one_of(expected: bytes) -> _Part:
    """Return a part that matches one byte.

    Args:
        expected: the possible values of that byte, in ascending order.
    """
    if len(expected) == 1:
        return _Part(rf"\x{expected[0]:02x}", "")
    ranges: list[range] = []
    for byte in expected:
        if ranges and ranges[-1].stop == byte:
            ranges[-1] = range(ranges[-1].start, byte + 1)
        else:
            ranges.append(range(byte, byte + 1))
    members = (rf"\x{each[0]:02x}-\x{each[-1]:02x}" for each in ranges)
    return _Part(f"[{''.join(members)}]", "")
