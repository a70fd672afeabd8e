"""The access log: one line for each connection that ended, on the logger ``refractium.access``."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from refractium.contract import Transport
from refractium.net.report import Ended

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
        if not log.isEnabledFor(level):
            return
        told = "".join(
            f" {key}={escape(value)}" for key in ("sni", "host") if (value := summary.metadata.get(key))
        )
        log.log(
            level,
            "%s %s%s%s -> %s up=%d down=%d %.3fs %s",
            summary.client,
            summary.route or "unidentified",
            "/udp" if summary.transport is Transport.UDP else "",
            told,
            summary.backend or "none",
            summary.up,
            summary.down,
            summary.seconds,
            summary.ended,
            extra={"connection": summary},
        )


def escape(value: object) -> str:
    """Text from the wire as one word of printable ASCII, whatever it holds."""
    return str(value).encode("unicode_escape").decode("ascii").replace(" ", "\\x20")
