"""The access log: one line for each connection that ended, on the logger ``refractium.access``."""

from __future__ import annotations

import logging
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from refractium.contract import Transport
from refractium.proxy.outcome import Ended
from refractium.wire.text import CUT, ROOM, brief, brief_word, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from refractium.contract import MetadataValue
    from refractium.proxy.outcome import Summary

log: Final = logging.getLogger("refractium.access")

_UDP: Final = Transport.UDP
_MAX_KEYS: Final = 16
"""More than any protocol declares; the keys are a plugin's, which may take them from the wire."""
_BETWEEN: Final = 4
"""Characters that the quotes, comma and space around a name in a list take in JSON."""


class AccessLog:
    """Writes each summary as one line."""

    def is_wanted(self) -> bool:
        """Whether a line would be written anywhere; its text is made only then."""
        return log.isEnabledFor(logging.INFO)

    def write(self, summary: Summary) -> None:
        """Write the line. Clients that left without a word are of interest to debuggers only."""
        level = logging.DEBUG if summary.ended is Ended.CLIENT_LEFT else logging.INFO
        if log.isEnabledFor(level):
            log.log(level, "%s", line_of(summary, summary.metadata), extra={"connection": summary})


def line_of(summary: Summary, metadata: Mapping[str, MetadataValue]) -> str:
    """Return a connection as one line of printable text, without an end.

    Args:
        summary: the connection.
        metadata: `Summary.metadata`, which is made anew each time.
    """
    told = ""
    for key in ("sni", "host") if metadata else ():
        if value := metadata.get(key):
            told += f" {key}={brief_word(value)}"
    backend = summary.backend or "none"
    return (
        f"{summary.client} {summary.route or 'unidentified'}"
        f"{'/udp' if summary.transport is _UDP else ''}{told}"
        f" -> {backend if backend.isprintable() else printable(backend)}"
        f" up={summary.up} down={summary.down} {summary.seconds:.3f}s {summary.ended}"
    )


def fields_of(summary: Summary, metadata: Mapping[str, MetadataValue]) -> dict[str, Any]:
    """Return a connection as fields of printable text, each of bounded length.

    Args:
        summary: the connection.
        metadata: `Summary.metadata`.
    """
    if len(metadata) > _MAX_KEYS:
        metadata = dict(islice(metadata.items(), _MAX_KEYS))
    backend = summary.backend
    return {
        "transport": summary.transport,
        "client": summary.client,
        "route": summary.route,
        "backend": printable(backend) if backend else None,
        "up": summary.up,
        "down": summary.down,
        "seconds": summary.seconds,
        "ended": summary.ended,
        "metadata": {brief(key): _brief_value(value) for key, value in metadata.items()},
    }


def _brief_value(value: MetadataValue) -> MetadataValue:
    if isinstance(value, str):
        return brief(value)
    return _brief_list(value) if isinstance(value, tuple) else value


def _brief_list(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the first names, as many as one text has room for, and a mark in the place of the others."""
    together = "".join(names)
    if len(together) + _BETWEEN * len(names) <= ROOM and together.isprintable():  # as nearly always
        return names
    room = ROOM
    kept: list[str] = []
    for name in map(brief, names):
        room -= len(name) + _BETWEEN
        if room < 0 and kept:
            return (*kept, CUT)
        kept.append(name)
    return tuple(kept)
