"""Plugins: this package finds, loads and checks the installed plugins, and keeps the results."""

from __future__ import annotations

from refractium.plugins.installed import InstalledPlugin, Plugins
from refractium.plugins.loading import load_plugins

__all__ = ["InstalledPlugin", "Plugins", "load_plugins"]
