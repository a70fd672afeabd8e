"""The file that `refractium init` writes."""

from __future__ import annotations

from importlib.resources import files


def template() -> str:
    """A configuration with every key, its default and what it means; valid as it stands."""
    return files("refractium.config").joinpath("template.toml").read_text(encoding="utf-8")
