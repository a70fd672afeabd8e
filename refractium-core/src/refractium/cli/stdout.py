"""What the program prints, and whose stdout is."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from refractium.assembly import Assembly


def say(line: str) -> None:
    """Print a line that scripts may wait for; it does not matter if nobody reads."""
    with contextlib.suppress(OSError):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def leave_stdout_to_hooks(assembly: Assembly) -> None:
    """If a hook writes to stdout, print to stderr from now on: to stdout nothing else may."""
    uses = (*assembly.hooks, *(use for route in (*assembly.tcp, *assembly.udp) for use in route.hooks))
    if any(isinstance(use, tuple) and use[0].takes_stdout(use[1]) for use in uses):
        sys.stdout = sys.stderr
