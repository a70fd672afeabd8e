"""Texts in decoded JSON."""

from __future__ import annotations

from typing import Any


def texts(value: Any) -> list[str]:
    """Return every text in a decoded JSON value, including keys."""
    if isinstance(value, dict):
        return [text for pair in value.items() for one in pair for text in texts(one)]
    if isinstance(value, list):
        return [text for one in value for text in texts(one)]
    return [value] if isinstance(value, str) else []
