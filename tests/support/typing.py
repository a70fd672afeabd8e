"""Type checks of code that stands for code outside of this repository."""

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
"""The folder with a program of a user, a plugin of a third party, and mistakes."""
PAGES: Final = [_ROOT / "README.md", *pages()]
_NAMES: Final = {
    "docs_tutorials_writing_a_hook_0": "shout",
    "docs_tutorials_writing_a_protocol_0": "refractium_proto_redis",
}
"""Module names of examples that other examples import, by the names of their files."""
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
    """Return the output of ``mypy --strict``, without the configuration of this repository, for a folder.

    Args:
        folder: the folder in which mypy runs and has its cache.
        python: the interpreter that has mypy and the packages.
        env: the environment variables.
        search: the folders of further packages.
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
