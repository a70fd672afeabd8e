"""The access log: one line for each connection that ended, on the logger ``refractium.access``."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from refractium.contract import Transport
from refractium.net.report import Ended
from refractium.text import escape

if TYPE_CHECKING:
    from refractium.net.report import Summary

log: Final = logging.getLogger("refractium.access")


class AccessLog:
    """Writes each summary as one line."""

    def is_wanted(self) -> bool:
        """Whether a line would be written anywhere; its text is made only then."""
        return log.isEnabledFor(logging.INFO)

    def write(self, summary: Summary) -> None:
        """Write the line. Clients that left without a word are of interest to debuggers only."""
        level = logging.DEBUG if summary.ended is Ended.CLIENT_LEFT else logging.INFO
        if log.isEnabledFor(level):
            log.log(level, "%s", line_of(summary), extra={"connection": summary})


def line_of(summary: Summary) -> str:
    """A connection in one line of printable text, without an end."""
    told = ""
    metadata = summary.metadata
    for key in ("sni", "host") if metadata else ():
        if value := metadata.get(key):
            told += f" {key}={escape(value)}"
    return (
        f"{summary.client} {summary.route or 'unidentified'}"
        f"{'/udp' if summary.transport is Transport.UDP else ''}{told} -> {summary.backend or 'none'}"
        f" up={summary.up} down={summary.down} {summary.seconds:.3f}s {summary.ended}"
    )
