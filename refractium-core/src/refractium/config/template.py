"""The file that `refractium init` writes."""

from __future__ import annotations

from importlib.resources import files


def template() -> str:
    """Return a valid configuration file with every key, its default and a comment on its meaning."""
    return files("refractium.config").joinpath("template.toml").read_text(encoding="utf-8")
