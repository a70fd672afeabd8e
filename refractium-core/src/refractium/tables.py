"""Tables of the configuration that become the Struct of a plugin: what is wrong with them, key by key."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


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
