"""Plugins: this package finds, loads and checks the installed plugins, and makes a report on each plugin."""

from __future__ import annotations

from refractium.plugins.installed import PluginReport, Plugins
from refractium.plugins.loading import load_plugins

__all__ = ["PluginReport", "Plugins", "load_plugins"]
