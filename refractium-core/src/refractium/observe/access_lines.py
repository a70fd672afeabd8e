"""The text of an access log line, and the logger ``refractium.access`` for programs that embed an engine."""

from __future__ import annotations

import logging
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from refractium.contract import Transport
from refractium.proxy.summary import Ended
from refractium.wire.text import CUT, ROOM, brief, brief_word, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from refractium.contract import MetadataValue
    from refractium.proxy.summary import Summary

log: Final = logging.getLogger("refractium.access")

_UDP: Final = Transport.UDP
_UNDECIDED: Final = frozenset({Ended.TOO_LARGE, Ended.UNDECIDED})
"""The ends whose own words tell why the client got no route."""
_MAX_KEYS: Final = 16
"""Largest number of metadata keys that are logged. No protocol declares so many keys, but a plugin may read
its keys from the wire."""
_BETWEEN: Final = 4
"""Characters that JSON adds to each name in a list: two quotes, a comma and a space."""


class AccessLogger:
    """A writer of one log record for each summary, for programs that embed an engine.

    The command line uses `refractium.daemon.access_log` instead, which makes no log records.
    """

    def is_wanted(self) -> bool:
        """Return whether the logger writes lines. If the logger writes none, the proxy makes no summaries."""
        return log.isEnabledFor(logging.INFO)

    def write(self, summary: Summary) -> None:
        """Log a summary: at level DEBUG if the client left before it was identified, else at INFO."""
        level = logging.DEBUG if summary.ended is Ended.CLIENT_LEFT else logging.INFO
        if log.isEnabledFor(level):
            log.log(level, "%s", message_of(summary, summary.metadata), extra={"connection": summary})

    def write_open(self, summary: Summary) -> None:
        """Log a connection that has been open for a second."""
        self.write(summary)


def message_of(summary: Summary, metadata: Mapping[str, MetadataValue]) -> str:
    """Return a connection as one line of printable text, without a line end.

    Args:
        summary: the connection.
        metadata: the value of `Summary.metadata`. The caller passes the value, because each access to this
            property makes a new dict.
    """
    told = ""
    for key in ("sni", "host") if metadata else ():
        if value := metadata.get(key):
            told += f" {key}={brief_word(value)}"
    backend = summary.backend or "none"
    route = summary.route or "unidentified"
    missed = summary.missed
    if missed is not None:
        route = summary.route or "unrouted"
        reason = ": no route matches" if missed.pool is None else f": {missed.pool.label} is unreachable"
        told = f" ({missed.protocol}{told}{'' if summary.ended in _UNDECIDED else reason})"
    return (
        f"{summary.client} {route}"
        f"{'/udp' if summary.transport is _UDP else ''}{told}"
        f" -> {backend if backend.isprintable() else printable(backend)}"
        f" up={summary.up} down={summary.down} {summary.seconds:.3f}s {summary.ended or 'open'}"
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
        "protocol": summary.protocol,
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
    """Return the first names, as many as fit into `ROOM` characters. `CUT` replaces the other names."""
    together = "".join(names)
    if len(together) + _BETWEEN * len(names) <= ROOM and together.isprintable():  # the usual case
        return names
    room = ROOM
    kept: list[str] = []
    for name in map(brief, names):
        room -= len(name) + _BETWEEN
        if room < 0 and kept:
            return (*kept, CUT)
        kept.append(name)
    return tuple(kept)
