"""The lines that the program prints, and the choice of stdout or stderr for these lines."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, TextIO

from refractium.hooks import UsedHook, takes_stdout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refractium.assembly.assembly import Assembly


_claimed: TextIO | None = None


@contextlib.contextmanager
def claimed_stdout() -> Iterator[None]:
    """Remember stdout for `say`, because `sys.stdout` is stderr while a thread loads plugins."""
    global _claimed  # noqa: PLW0603 - a global, like `sys.stdout`
    _claimed = sys.stdout
    try:
        yield
    finally:
        _claimed = None


def say(line: str) -> None:
    """Print a line for which scripts may wait. Ignore write errors, for example if nobody reads stdout."""
    stream = sys.stdout if _claimed is None else _claimed
    with contextlib.suppress(OSError):
        stream.write(line + "\n")
        stream.flush()


def leave_stdout_to_hooks(assembly: Assembly) -> None:
    """Print to stderr from now on if a hook writes to stdout, because only the hook may then write there."""
    global _claimed  # noqa: PLW0603 - a global, like `sys.stdout`
    if any(isinstance(use, tuple) and takes_stdout(UsedHook(*use)) for use in assembly.hook_uses):
        sys.stdout = sys.stderr
        if _claimed is not None:
            _claimed = sys.stderr
