"""Plugins that are installed only for the programs that a test starts."""

from __future__ import annotations

import shutil
from textwrap import dedent
from typing import TYPE_CHECKING

from support.process import environment

if TYPE_CHECKING:
    from pathlib import Path


def install(folder: Path, id_: str, source: str, *, version: str = "1.0") -> None:
    """Install a plugin of the distribution ``refractium-proto-ID`` into a folder, as pip would.

    The plugin replaces an earlier version.
    """
    folder.mkdir(exist_ok=True)
    for former in folder.glob(f"refractium_proto_{id_}-*.dist-info"):
        for file in former.iterdir():
            file.unlink()
        former.rmdir()
    # Python would take compiled code for current if both versions have the same size and the same second.
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    information = folder / f"refractium_proto_{id_}-{version}.dist-info"
    information.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: refractium-proto-{id_}\nVersion: {version}\nSummary: Here\n"
    (information / "METADATA").write_text(metadata)
    (information / "entry_points.txt").write_text(f"[refractium]\n{id_} = plugin_{id_}\n")
    (folder / f"plugin_{id_}.py").write_text(dedent(source))


def with_plugins(folder: Path) -> dict[str, str]:
    """Return the environment of a program that finds the plugins of a folder."""
    return environment(PYTHONPATH=str(folder))
