"""Fixtures for the command line, and for plugins that nobody has installed."""

from support.cli import broken_plugin, cli

__all__ = ["broken_plugin", "cli"]
