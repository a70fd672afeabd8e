"""The command ``refractium``, with one module for each subcommand. The library does not need this package."""

from __future__ import annotations

# The module `signal` imports `enum`, which takes longer than the rest of this module.
import _signal  # type: ignore[import-not-found]
import gc
import os
import sys

__all__ = ["interruptible", "main"]

_COLLECT_AFTER = 10_000
"""Number of new objects after which Python looks for garbage.

Imports make many objects and little garbage. With Python's own number, 700, garbage collections would take a
twentieth of the time of a start. `engine.loop.run` sets the number that applies while the program serves.
"""


def main() -> None:
    """Run the command line, and exit with one of `refractium.errors.ExitStatus`.

    From the first line on, Ctrl-C ends the program by SIGINT, without a traceback. A command that cleans up
    at Ctrl-C sets a handler of its own.
    """
    _end_at_interrupt()
    gc.set_threshold(_COLLECT_AFTER)
    try:
        _main()
    finally:
        _end_at_interrupt()  # after its end, an event loop sets the handler that raises KeyboardInterrupt


def interruptible() -> None:
    """Let Ctrl-C raise KeyboardInterrupt, as plugins expect of a Python program."""
    if _signal.getsignal(_signal.SIGINT) == _signal.SIG_DFL:
        _signal.signal(_signal.SIGINT, _signal.default_int_handler)


def _end_at_interrupt() -> None:
    # A shell starts a background program with SIGINT ignored, so that Ctrl-C does not end this program.
    if _signal.getsignal(_signal.SIGINT) == _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)


def _main() -> None:
    _open_standard_streams()
    from refractium._version import VERSION_LINE  # noqa: PLC0415 - imports run after the first line of `main`

    if sys.argv[1:] == ["--version"]:
        # Scripts often ask for the version. With the import of the command-line parser, the answer would take
        # ten times as long.
        sys.stdout.write(VERSION_LINE + "\n")
        sys.exit(0)
    from refractium._platform import ELSEWHERE, can_serve  # noqa: PLC0415

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
