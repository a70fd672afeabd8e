"""Compare a tag with the versions of all distributions and with the changelog, and print the release notes.

Usage: ``python .ci/check_release.py v1.2.3``, from the root of the repository. If the tag must not be
released, the exit code is 1 and stderr lists every reason.
"""

from __future__ import annotations

import re
import sys
import tomllib
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def members(root: Path) -> list[Path]:
    """Return the folders of all distributions of the workspace."""
    workspace = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["uv"]["workspace"]
    return sorted(folder for pattern in workspace["members"] for folder in root.glob(pattern))


def release_notes(changelog: str, version: str) -> tuple[str, str] | None:
    """Return the date and the text below ``## VERSION - DATE``, or None where there is no such heading."""
    heading = re.compile(rf"^## {re.escape(version)} - (\S+)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    found = heading.search(changelog)
    return None if found is None else (found[1], found[2].strip())


def problems(root: Path, tag: str) -> Iterator[str]:
    """Yield each reason why `tag` must not be released."""
    version = tag.removeprefix("v")
    if not re.fullmatch(r"v\d+\.\d+\.\d+((a|b|rc)\d+)?", tag):
        yield f"tag {tag} is not of the form v1.2.3 or v1.2.3rc1"
        return
    for folder in members(root):
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        if project["version"] != version:
            name, has = project["name"], project["version"]
            yield f"{name} has version {has}, the tag {version}: set it in {folder.name}/pyproject.toml"
    notes = release_notes((root / "CHANGELOG.md").read_text(), version)
    if notes is None:
        yield f'CHANGELOG.md has no heading "## {version} - YYYY-MM-DD": rename "## Unreleased"'
        return
    day, text = notes
    try:
        date.fromisoformat(day)
    except ValueError:
        yield f"CHANGELOG.md: {day} after version {version} is not a date like 2026-01-31"
    if not text:
        yield f"CHANGELOG.md says nothing about version {version}"


def main() -> int:
    """Check the tag on the command line, print the release notes, and return the exit code."""
    if len(sys.argv) != 2:  # noqa: PLR2004 - the program and the tag
        print(__doc__, file=sys.stderr)
        return 2
    tag, root = sys.argv[1], Path()
    if found := list(problems(root, tag)):
        print(*(f"error: {problem}" for problem in found), sep="\n", file=sys.stderr)
        return 1
    notes = release_notes((root / "CHANGELOG.md").read_text(), tag.removeprefix("v"))
    print(notes[1] if notes else "")
    return 0


if __name__ == "__main__":
    sys.exit(main())
