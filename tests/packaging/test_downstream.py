"""A program of a user and a plugin of a third party, outside of the repository, with installed
distributions."""

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
    """Return the folder of programs of an environment with the requirements of the examples in the pages."""
    return environment(
        "refractium-core",
        "refractium-protocols[all]",
        "refractium-proto-knock",
        "refractium-hooks-trafficlog",
        "refractium-hooks-hexdump",
        "mypy",
        "pytest",
    )


def test_downstream_code_passes_the_type_checker_with_installed_distributions(
    bin_: Path, variables: dict[str, str], tmp_path: Path
) -> None:
    write_downstream(tmp_path)
    said = check_types(tmp_path, python=bin_ / "python", env=variables)
    assert re.fullmatch(r"Success: no issues found in \d+ source files\n", said), said


def test_downstream_code_runs_with_installed_distributions(run: Callable[..., str], bin_: Path) -> None:
    assert run(bin_ / "python", DOWNSTREAM / "program.py") == f"{refractium.__version__}\n"
    assert run(bin_ / "python", DOWNSTREAM / "plugin.py") == ""
