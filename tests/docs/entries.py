"""The entries of public names in the reference: headings that have the name as code."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Final

from support.pages import DOCS

if TYPE_CHECKING:
    from pathlib import Path

PUBLIC: Final = (
    "refractium",
    "refractium.contract",
    "refractium.kit",
    "refractium.plugins",
    "refractium.testing",
)
"""The public modules."""

_FENCED: Final = re.compile(r"^ *```.*?^ *```$", re.DOTALL | re.MULTILINE)


def prose_of(page: Path) -> str:
    """Return the text of a page without its examples."""
    return _FENCED.sub("", page.read_text(encoding="utf-8"))


def anchor(heading: str) -> str:
    """Return the anchor of a heading, as GitHub names it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@cache
def entries() -> dict[str, str]:
    """Return the page and the anchor of each name that a heading of the reference has as code."""
    return {
        name: f"{page.name}#{anchor(heading)}"
        for page in sorted((DOCS / "reference").glob("*.md"))
        for heading in re.findall(r"^#+ (.*)$", prose_of(page), re.MULTILINE)
        for name in re.findall(r"`([\w.]+)`", heading)
    }
