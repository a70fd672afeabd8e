"""The pages of the documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Final

DOCS: Final = Path(__file__).parents[2] / "docs"


def pages() -> list[Path]:
    """Return every page of docs, without the READMEs of the example distributions."""
    return sorted(page for page in DOCS.rglob("*.md") if "examples" not in page.relative_to(DOCS).parts)
