"""Refractium without pipes: bulk is copied through its memory, as it is where hooks are told of it.

python copying.py ARGUMENTS, those of ``refractium``
"""

from __future__ import annotations

from refractium.cli import main
from refractium.sockets.pipes import Pipes


def lend_none(_: Pipes) -> None:
    """As on a machine that has no more descriptors."""


if __name__ == "__main__":
    setattr(Pipes, "borrow", lend_none)  # noqa: B010 - there is no option for what nobody wants
    main()
