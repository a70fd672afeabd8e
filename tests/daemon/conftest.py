"""The fixtures of the commands: the command line, and plugins that nobody has installed."""

from support.cli import broken_plugin, cli

__all__ = ["broken_plugin", "cli"]
