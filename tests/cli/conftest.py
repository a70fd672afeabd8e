"""The command line, and plugins that nobody has installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.cli import cli

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["broken_plugin", "cli"]


@pytest.fixture
def broken_plugin(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH with a plugin ``cracked`` that cannot be imported."""
    folder = tmp_path / "site"
    info = folder / "cracked-2.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: cracked\nVersion: 2.0\nSummary: Not today\n")
    (info / "entry_points.txt").write_text("[refractium]\ncracked = cracked\n")
    (folder / "cracked.py").write_text("raise ImportError('the glass is cracked')\n")
    return folder
