"""The reference lists every key, option, metric and name of the code, with the signatures of the code."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from docs.reference import COMMAND, current
from support.pages import DOCS, pages

if TYPE_CHECKING:
    from pathlib import Path

WITH_TABLES = [page for page in pages() if "<!-- end -->" in page.read_text("utf-8")]


@pytest.mark.parametrize("page", WITH_TABLES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_the_tables_of_a_page_match_the_code(page: Path) -> None:
    text = page.read_text("utf-8")
    assert current(text) == text, f"{page} is out of date: run {COMMAND!r}, and complete new rows"


def test_pages_have_tables() -> None:
    assert len(WITH_TABLES) >= 6
