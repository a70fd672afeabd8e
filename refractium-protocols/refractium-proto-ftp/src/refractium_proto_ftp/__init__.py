"""Recognises FTP, whose server speaks first: by default, a route of ``ftp`` gets the silent clients.

A few clients send a command before the server speaks. `identify` matches the commands that are legal before a
login (RFC 959, 2389, 4217, 7151). Other protocols also use some of these commands, so a match is weak.
"""

from __future__ import annotations

import re

from refractium.contract import NEED_MORE, NO, Identification, Protocol, ProtocolMatch, Strength, hookimpl

COMMANDS = (
    *(b"USER ", b"HOST ", b"OPTS ", b"FEAT\r", b"FEAT\n"),
    *(b"AUTH %b%b" % (mechanism, end) for mechanism in (b"TLS", b"SSL") for end in (b"\r", b"\n", b" ")),
)
"""Possible starts of the first line, in upper case; commands are not case-sensitive (RFC 959 section 5.3)."""
_starts_with_command = re.compile(b"|".join(map(re.escape, COMMANDS)), re.IGNORECASE).match
_MATCH = ProtocolMatch()


class Ftp(Protocol):
    """FTP over TCP. Matches carry no metadata."""

    name = "ftp"
    strength = Strength.WEAK
    max_bytes = max(map(len, COMMANDS))
    prefixes = tuple(sorted({case for word in COMMANDS for case in (word[:1], word[:1].lower())}))
    server_first = True
    summary = "FTP, by the silence or the first command of a client"

    def identify(self, data: bytes) -> Identification:
        if _starts_with_command(data):
            return _MATCH
        start = data[: self.max_bytes].upper()
        return NEED_MORE if any(command.startswith(start) for command in COMMANDS) else NO


@hookimpl
def refractium_protocols() -> list[Protocol]:
    """Return the protocol for FTP over TCP."""
    return [Ftp()]
