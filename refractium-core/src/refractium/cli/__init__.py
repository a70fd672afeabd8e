"""The command ``refractium``, with one module for each subcommand. The library does not need this package."""

from __future__ import annotations

import os
import sys

from refractium._platform import ELSEWHERE, can_serve
from refractium._version import VERSION_LINE

__all__ = ["main"]


def main() -> None:
    """Run the command line, and exit with one of `refractium.errors.ExitStatus`.

    A Ctrl-C before the command handles signals ends the program by SIGINT, without a traceback.
    """
    try:
        _main()
    except KeyboardInterrupt:
        import signal  # noqa: PLC0415 - only needed here

        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)


def _main() -> None:
    _open_standard_streams()
    if sys.argv[1:] == ["--version"]:
        # Scripts often ask for the version. With the import of the command-line parser, the answer would take
        # ten times as long.
        sys.stdout.write(VERSION_LINE + "\n")
        sys.exit(0)
    if not can_serve():
        sys.exit(f"error: {ELSEWHERE}")
    from refractium.cli.app import app  # noqa: PLC0415 - slow to import, and --version does not need it

    app()


def _open_standard_streams() -> None:
    """Open the null device for each standard stream that is closed.

    Else a socket would get the descriptor number of the stream, and libuv would abort.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        # `open` uses the lowest free descriptor number, which is the number of the closed stream.
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115
