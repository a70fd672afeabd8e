"""What a type checker says of code that is not part of this repository."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from support.pages import pages

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_ROOT: Final = Path(__file__).parents[2]
DOWNSTREAM: Final = _ROOT / "tests/data/downstream"
"""A user's program, a third party's plugin, and mistakes."""
PAGES: Final = [_ROOT / "README.md", *pages()]
_NAMES: Final = {"docs_tutorials_writing_a_hook_0": "shout"}
"""Examples that others import, with the names that they import them by."""
_FENCE: Final = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def write_downstream(folder: Path) -> None:
    """Copy the downstream code and the Python of every page into a folder."""
    for source in DOWNSTREAM.glob("*.py"):
        (folder / source.name).write_text(source.read_text())
    for page in PAGES:
        for number, block in enumerate(_FENCE.findall(page.read_text(encoding="utf-8"))):
            name = re.sub(r"\W", "_", f"{page.relative_to(_ROOT).with_suffix('')}_{number}")
            (folder / f"{_NAMES.get(name, name)}.py").write_text(block, encoding="utf-8")


def check_types(
    folder: Path, *, python: str | Path = sys.executable, env: Mapping[str, str], search: Sequence[Path] = ()
) -> str:
    """Return what ``mypy --strict``, which knows nothing of this repository, says of the files in a folder.

    Args:
        folder: it runs there, and has its cache there.
        python: the interpreter that has mypy and the packages.
        env: environment variables.
        search: folders of further packages.
    """
    done = subprocess.run(
        [python, "-m", "mypy", "--strict", "--config-file=", "--cache-dir=cache", "."],
        cwd=folder,
        env={**env, "MYPYPATH": ":".join(map(str, search))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=110,
        check=False,
    )
    return done.stdout
