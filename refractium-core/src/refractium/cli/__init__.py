"""The command ``refractium``. One module for each command; nothing here is needed to use the library."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit: 0 clean, 1 a failure while running, 2 wrong usage or configuration."""
    from refractium.cli.app import app  # noqa: PLC0415 - the entry point is imported by tools that only look

    app()
