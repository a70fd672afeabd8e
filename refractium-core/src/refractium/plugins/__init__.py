"""Plugins: this package finds them by entry points, loads them, checks what they give and reports on each."""

from __future__ import annotations

from refractium.plugins.installed import PluginReport, Plugins
from refractium.plugins.loading import load_plugins

__all__ = ["PluginReport", "Plugins", "load_plugins"]
