"""The check that a release workflow runs before it builds anything."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import refractium

ROOT = Path(__file__).parents[2]
VERSION = refractium.__version__


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return a copy of the files that the check reads, with a changelog section for their version."""
    for source in [ROOT / "pyproject.toml", *ROOT.glob("refractium-*/**/pyproject.toml")]:
        target = tmp_path / source.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    change_log(
        tmp_path, f"# Changelog\n\n## Unreleased\n\n## {VERSION} - 2026-01-31\n\n### Added\n\n- All of it.\n"
    )
    return tmp_path


def change_log(repository: Path, text: str) -> None:
    (repository / "CHANGELOG.md").write_text(text)


def check(repository: Path, tag: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, ROOT / ".ci/check_release.py", tag],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_the_notes_of_a_release_are_printed(repository: Path) -> None:
    assert check(repository, f"v{VERSION}") == (0, "### Added\n\n- All of it.\n", "")


def test_every_distribution_with_another_version_is_named(repository: Path) -> None:
    code, out, err = check(repository, "v99.0.0")
    assert (code, out) == (1, "")
    named = re.findall(r"^error: (\S+) has version", err, re.MULTILINE)
    assert len(named) == len(list(ROOT.glob("refractium-*/**/pyproject.toml")))
    assert "CHANGELOG.md has no heading" in err


@pytest.mark.parametrize(
    ("section", "reason"),
    [
        ("", "no heading"),
        (f"## {VERSION} - soon\n\n- All.\n", "not a date"),
        (f"## {VERSION} - 2026-01-31\n\n## 0.0.1 - 2025-01-31\n\n- A beginning.\n", "says nothing"),
    ],
)
def test_a_changelog_without_the_version_is_refused(repository: Path, section: str, reason: str) -> None:
    change_log(repository, f"# Changelog\n\n## Unreleased\n\n- Later.\n\n{section}")
    code, _, err = check(repository, f"v{VERSION}")
    assert code == 1
    assert reason in err


@pytest.mark.parametrize("tag", [VERSION, f"v{VERSION}-beta", "vnext"])
def test_a_tag_of_another_form_is_refused(repository: Path, tag: str) -> None:
    code, _, err = check(repository, tag)
    assert code == 1
    assert f"tag {tag} is not of the form" in err
