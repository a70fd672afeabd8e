"""The command ``refractium``. One module for each command; nothing here is needed to use the library."""

from __future__ import annotations

import os
import sys

from refractium._platform import ELSEWHERE, can_serve
from refractium._version import VERSION_LINE

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit: 0 clean, 1 a failure while running, 2 wrong usage or configuration."""
    _open_standard_streams()
    if sys.argv[1:] == ["--version"]:
        # Scripts ask for it often, and it takes ten times as long to import what parses a command line.
        sys.stdout.write(VERSION_LINE + "\n")
        sys.exit(0)
    if not can_serve():
        sys.exit(f"error: {ELSEWHERE}")
    from refractium.cli.app import app  # noqa: PLC0415 - the entry point is imported by tools that only look

    app()


def _open_standard_streams() -> None:
    """Open those that were closed for us, or sockets would get their numbers; libuv aborts over that."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # the lowest free number is the stream's own then
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115
