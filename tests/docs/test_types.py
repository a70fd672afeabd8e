"""The Python of the pages, and code against the public names, passes ``mypy --strict``."""

from __future__ import annotations

import os
import re
from pathlib import Path

from support.typing import DOWNSTREAM, check_types, write_downstream

ROOT = Path(__file__).parents[2]
SEARCH = [ROOT / "tests/data/refractium-proto-knock/src", *sorted((ROOT / "docs/examples").glob("*/src"))]


def test_examples_and_downstream_code_pass_the_type_checker(tmp_path: Path) -> None:
    write_downstream(tmp_path)
    said = check_types(tmp_path, env=os.environ, search=SEARCH)
    assert re.fullmatch(r"Success: no issues found in \d+ source files\n", said), said


def test_the_type_checker_refuses_every_mistake(tmp_path: Path) -> None:
    """Expect an error on each line of mistakes.py that has a comment, with the code in that comment."""
    text = (DOWNSTREAM / "mistakes.py").read_text()
    wanted = {
        number: set(re.split(r", ?", codes))
        for number, line in enumerate(text.splitlines(), 1)
        for codes in re.findall(r"type: ignore\[(.*?)\]", line)
    }
    (tmp_path / "mistakes.py").write_text(re.sub(r"# type: ignore\[.*?\]", "", text))
    found: dict[int, set[str]] = {}
    for line, code in re.findall(
        r"^mistakes\.py:(\d+): error: .*\[(.+)\]$", check_types(tmp_path, env=os.environ), re.MULTILINE
    ):
        found.setdefault(int(line), set()).add(code)
    assert found == wanted
    assert len(wanted) >= 10
