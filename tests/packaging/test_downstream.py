"""A user's program and a plugin of a third party, away from the repository, on installed distributions."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

import refractium
from support.typing import DOWNSTREAM, check_types, write_downstream

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def bin_(environment: Callable[..., Path]) -> Path:
    """Where the programs are of an environment that has what the pages' examples need."""
    return environment(
        "refractium-core",
        "refractium-protocols[all]",
        "refractium-proto-knock",
        "refractium-hooks-trafficlog",
        "refractium-hooks-hexdump",
        "mypy",
        "pytest",
    )


def test_it_is_typed_as_installed(bin_: Path, variables: dict[str, str], tmp_path: Path) -> None:
    write_downstream(tmp_path)
    said = check_types(tmp_path, python=bin_ / "python", env=variables)
    assert re.fullmatch(r"Success: no issues found in \d+ source files\n", said), said


def test_it_runs_as_installed(run: Callable[..., str], bin_: Path) -> None:
    assert run(bin_ / "python", DOWNSTREAM / "program.py") == f"{refractium.__version__}\n"
    assert run(bin_ / "python", DOWNSTREAM / "plugin.py") == ""
