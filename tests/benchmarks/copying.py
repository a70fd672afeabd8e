"""Refractium without pipes: it copies bulk through its memory, as it does for hooks.

python copying.py ARGUMENTS

ARGUMENTS are the arguments of ``refractium``.
"""

from __future__ import annotations

from refractium.cli import main
from refractium.sockets.pipes import Pipes


def lend_none(_: Pipes) -> None:
    """Lend no pipe, as on a machine without free descriptors."""


if __name__ == "__main__":
    setattr(Pipes, "borrow", lend_none)  # noqa: B010 - users need no option for this
    main()
