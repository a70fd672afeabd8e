"""Tables of the configuration that become the Struct of a plugin: what is wrong with them, key by key."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a configuration, or worth a warning.

    Attributes:
        message: what is wrong and, where it can be said, what to do.
        where: the key path (``protocols[1].forward_to``), the flag, or nothing.
        source: the file, where it came from one.
        line: the line in `source`, from 1, where it can be had.
    """

    message: str
    where: str = ""
    source: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        place = self.source or ""
        if self.line is not None:
            place += f":{self.line}"
        return ": ".join(part for part in (place, self.where, self.message) if part)


def table_problems(
    struct: type[msgspec.Struct], table: Mapping[str, Any], what: str, others: Iterable[str] = ()
) -> Iterator[tuple[str, str]]:
    """Pairs of a key and a message; nothing if `msgspec.convert` takes the table.

    Args:
        struct: what it is to become.
        table: the keys that are the plugin's.
        what: whose they are, such as ``hook 'pcap'``.
        others: keys that stand beside them, which a misspelt one may have been meant for.
    """
    known = struct.__struct_fields__
    for key in table:
        if key not in known:
            close = get_close_matches(key[:_LONGEST_KEY], (*known, *others), n=1)
            hint = f": did you mean {close[0]!r}?" if close else ""
            yield key, f"unknown key for {what}{hint}"
    yield from conversion_problems(struct, table)


def conversion_problems(struct: type[msgspec.Struct], values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each field by itself, so that everything wrong is found at once."""
    for field in msgspec.structs.fields(struct):
        if field.name not in values:
            if field.required:
                yield field.name, "is missing"
            continue
        try:
            msgspec.convert(values[field.name], field.type)
        except msgspec.ValidationError as error:
            message, _, place = str(error).partition(" - at `$")
            # In the words of TOML, which has no null.
            message = message.replace("`", "").replace(" | null", "").replace("object", "table")
            yield field.name + place.rstrip("`"), message[:1].lower() + message[1:]


_LONGEST_KEY = 64
"""What is compared of a key, in characters: comparing takes quadratic time."""


def unknown_name(name: str, known: Iterable[str]) -> str:
    """What to say of a name that is none of those that are known."""
    names = sorted(known)
    close = get_close_matches(name.lower(), names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{name!r} is not known: {hint}there are {', '.join(names)}"
