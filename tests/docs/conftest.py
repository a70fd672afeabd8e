"""Fixtures for tests of the pages."""

from support.cli import cli

__all__ = ["cli"]
