"""Plugins: found by entry points, loaded, judged and reported."""

from __future__ import annotations

from refractium.plugins.loading import load_plugins

__all__ = ["load_plugins"]
