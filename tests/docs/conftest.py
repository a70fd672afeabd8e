"""Pages and what they show."""

from support.cli import cli

__all__ = ["cli"]
