"""Recognises FTP, whose server speaks first: by default, a route of ``ftp`` gets the silent clients.

A few clients send a command before the server speaks. `identify` matches the commands that are legal before a
login (RFC 959, 2389, 4217, 7151). Other protocols also use some of these commands, so a match is weak. IRC
also has the command USER, but with more words.
"""

from __future__ import annotations

import re

from refractium.contract import NEED_MORE, NO, Identification, Protocol, ProtocolMatch, Strength, hookimpl

COMMANDS = (
    *(b"USER ", b"HOST ", b"OPTS ", b"FEAT\r", b"FEAT\n"),
    *(b"AUTH %b%b" % (mechanism, end) for mechanism in (b"TLS", b"SSL") for end in (b"\r", b"\n", b" ")),
)
"""Possible starts of the first line, in upper case; commands are not case-sensitive (RFC 959 section 5.3)."""
MAX_USER_LINE = 512
"""Size (bytes) of the longest line of IRC (RFC 2812 section 2.3). A longer USER line is FTP, even before its
end."""
_WORD = rb" *+[^ \r\n]++"
_starts_with_command = re.compile(
    # USER of IRC has four words or more (RFC 2812 section 3.1.3); the user name of FTP is usually one word.
    rb"(?i:USER) (?:[^ \r\n]*+[\r\n]|(?:%b){1,3}+ *+[\r\n])|(?i:%b)"
    % (_WORD, b"|".join(map(re.escape, COMMANDS[1:])))
).match
_is_irc = re.compile(rb"(?i:USER) (?:%b){4}" % _WORD).match
_LONGEST_COMMAND = max(map(len, COMMANDS))
_MATCH = ProtocolMatch()


class Ftp(Protocol):
    """FTP over TCP. Matches carry no metadata."""

    name = "ftp"
    strength = Strength.WEAK
    max_bytes = MAX_USER_LINE
    prefixes = tuple(sorted({case for word in COMMANDS for case in (word[:1], word[:1].lower())}))
    server_first = True
    summary = "FTP, by the silence or the first command of a client"

    def identify(self, data: bytes) -> Identification:
        if _starts_with_command(data):
            return _MATCH
        start = data[:_LONGEST_COMMAND].upper()
        if start.startswith(COMMANDS[0]):
            if _is_irc(data, 0, MAX_USER_LINE):
                return NO
            return NEED_MORE if len(data) < MAX_USER_LINE else _MATCH
        return NEED_MORE if any(command.startswith(start) for command in COMMANDS) else NO


@hookimpl
def refractium_protocols() -> list[Protocol]:
    """Return the protocol for FTP over TCP."""
    return [Ftp()]
