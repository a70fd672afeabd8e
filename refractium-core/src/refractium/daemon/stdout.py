"""The lines that the program prints, and the choice of the stream that takes them."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refractium.assembly.assembly import Assembly


_claimed: TextIO | None = None


@contextlib.contextmanager
def claimed_stdout() -> Iterator[None]:
    """Remember stdout for `say`: while a thread loads plugins, `sys.stdout` is stderr."""
    global _claimed  # noqa: PLW0603 - a global, like `sys.stdout`
    _claimed = sys.stdout
    try:
        yield
    finally:
        _claimed = None


def say(line: str) -> None:
    """Print a line that scripts may wait for. It is no error if nobody reads the line."""
    stream = sys.stdout if _claimed is None else _claimed
    with contextlib.suppress(OSError):
        stream.write(line + "\n")
        stream.flush()


def leave_stdout_to_hooks(assembly: Assembly) -> None:
    """Print to stderr from now on if a hook writes to stdout: nothing else may then go to stdout."""
    global _claimed  # noqa: PLW0603 - a global, like `sys.stdout`
    uses = (*assembly.hooks, *(use for route in (*assembly.tcp, *assembly.udp) for use in route.hooks))
    if any(isinstance(use, tuple) and use[0].takes_stdout(use[1]) for use in uses):
        sys.stdout = sys.stderr
        if _claimed is not None:
            _claimed = sys.stderr
