"""Problems of a configuration: one problem, and checks of a table against the Struct of a plugin."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

Finding: TypeAlias = tuple[str, str]
"""A key path and a message."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One error or one warning about a configuration.

    Attributes:
        message: the mistake and, if known, its remedy.
        where: the key path (``protocols[1].forward_to``), the flag, or an empty string.
        source: the configuration file; None if the problem comes from elsewhere.
        line: the line in `source`, from 1; None if the line is unknown.
        code: the code of the rule that a warning is about; None for an error.
    """

    message: str
    where: str = ""
    source: str | None = None
    line: int | None = None
    code: str | None = None

    def __str__(self) -> str:
        place = self.source or ""
        if self.line is not None:
            place += f":{self.line}"
        text = ": ".join(part for part in (place, self.where, self.message) if part)
        return f"{text} [{self.code}]" if self.code else text


BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
"""A key of TOML that needs no quotes."""


def key_path(path: str, key: str) -> str:
    """Return the key path of `key` in the table at `path`; the path of the whole file is empty."""
    name = key if BARE_KEY.fullmatch(key) else json.dumps(key)
    return f"{path}.{name}" if path else name


def in_order(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Return problems in the order of their lines, each problem once; problems without a line come first."""
    return tuple(sorted(dict.fromkeys(problems), key=lambda one: one.line or 0))


def table_problems(
    struct: type[msgspec.Struct], table: Mapping[str, Any], what: str, others: Iterable[str] = ()
) -> Iterator[tuple[str, str]]:
    """Yield a key and a message for each mistake in a table; nothing if `msgspec.convert` accepts the table.

    Args:
        struct: the type that the table is converted to.
        table: the keys and values of the plugin.
        what: the owner of the keys, for messages, such as ``hook 'pcap'``.
        others: further keys that a suggestion for a misspelt key may name, beside the keys of `struct`.
    """
    known = struct.__struct_fields__
    for key in table:
        if key not in known:
            yield key, f"unknown key for {what}{suggestion(key, (*known, *others))}"
    yield from conversion_problems(struct, table)


def conversion_problems(struct: type[msgspec.Struct], values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield a key and a message for each field that is missing or does not convert.

    This function converts each field separately, so that it finds all mistakes at once.
    """
    for field in msgspec.structs.fields(struct):
        if field.name not in values:
            if field.required:
                yield field.name, "is missing"
            continue
        try:
            msgspec.convert(values[field.name], field.type)
        except msgspec.ValidationError as error:
            place, message = in_toml_words(error)
            yield field.name + place, message


def in_toml_words(error: msgspec.ValidationError) -> tuple[str, str]:
    """Return the place of an error inside of the converted value, such as ``[0]``, and the message.

    msgspec uses the terms of JSON. In TOML, an "object" is a "table", and null does not exist.
    """
    message, _, place = str(error).partition(" - at `$")
    message = _JSON_WORD.sub(lambda word: _TOML_WORDS.get(word[0].lower(), word[0]), message)
    return place.rstrip("`"), message[:1].lower() + message[1:]


_JSON_WORD: Final = re.compile(r"['\"].*|`| \| null|\bobject\b", re.IGNORECASE | re.DOTALL)
"""A pattern for the words of msgspec to replace, and for the quoted value at the end of some messages, which
stays unchanged."""
_TOML_WORDS: Final = {"`": "", " | null": "", "object": "table"}


def unknown_name(name: str, known: Iterable[str]) -> str:
    """Return the message about an unknown name, with a similar known name, if any, and all known names."""
    names = sorted(known)
    return f"'{name}' is not known{suggestion(name, names) or ':'} there are {', '.join(names)}"


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: a similar known name, or "" if there is none."""
    close = get_close_matches(name[:_LONGEST_NAME].lower(), known, n=1)
    return f": did you mean '{close[0]}'?" if close else ""


_LONGEST_NAME: Final = 64
"""Number of characters of a name to compare with known names, because the comparison takes quadratic time."""
