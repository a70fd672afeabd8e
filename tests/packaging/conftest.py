"""Distributions as users get them: built once, installed into environments that hold nothing else."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
LIST = """
import json
from refractium.plugins.loading import load_plugins
print(json.dumps([report.as_dict() for report in load_plugins().reports]))
"""


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the workspace."""
    return ROOT


@pytest.fixture(scope="session")
def knock() -> Path:
    """The folder of a distribution that a third party could have written."""
    return ROOT / "tests/data/refractium-proto-knock"


@pytest.fixture(scope="session")
def examples() -> Path:
    """The folder of the distributions that the guide to hooks is about."""
    return ROOT / "docs/examples"


@pytest.fixture(scope="session")
def variables() -> dict[str, str]:
    """The environment variables, without those that lead to the workspace or into it."""
    ours = ("VIRTUAL_ENV", "PYTHON", "COV", "REFRACTIUM")
    return {key: value for key, value in os.environ.items() if not key.startswith(ours)}


@pytest.fixture(scope="session")
def run(variables: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Run a program away from the workspace, for its sources not to matter; what it writes is returned."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def run(*command: str | Path, status: int = 0, stdin: str = "", cwd: Path = elsewhere) -> str:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=variables,
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if status else subprocess.PIPE,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == status, f"{command}: {done.stdout}{done.stderr or ''}"
        return done.stdout

    return run


@pytest.fixture(scope="session")
def uv() -> str:
    found = os.environ.get("UV") or shutil.which("uv")
    if not found:
        pytest.skip("uv is not installed")
    return found


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what needs the distributions, which take ten seconds to build."""
    for item in items:
        if "dist" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def dist(
    uv: str, run: Callable[..., str], knock: Path, examples: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """All distributions: an sdist each, and the wheel built from that sdist; built by one process for all."""
    of_this_process = tmp_path_factory.getbasetemp()
    of_all = of_this_process.parent if "PYTEST_XDIST_WORKER" in os.environ else of_this_process
    folder = of_all / "dist"
    with (of_all / "dist.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
        if not folder.exists():
            unfinished = of_all / "dist.unfinished"
            run(uv, "build", "--quiet", "--all-packages", "--out-dir", unfinished, cwd=ROOT)
            for other in (knock, *sorted(examples.iterdir())):
                run(uv, "build", "--quiet", "--out-dir", unfinished, other)
            unfinished.rename(folder)
    return folder


@pytest.fixture(scope="session")
def environment(
    uv: str, run: Callable[..., str], dist: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """The folder of the programs of an environment that has these requirements, and what they require."""

    @cache
    def create(*requirements: str) -> Path:
        folder = tmp_path_factory.mktemp("environment")
        python = folder / "bin/python"
        run(uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, folder)
        run(uv, "pip", "install", "--quiet", "--python", python, "--find-links", dist, *requirements)
        return python.parent

    return create


@pytest.fixture(scope="session")
def plugins_in(run: Callable[..., str]) -> Callable[[Path], list[dict[str, Any]]]:
    """The reports of `load_plugins` in an environment."""

    def plugins_in(bin_: Path) -> list[dict[str, Any]]:
        reports: list[dict[str, Any]] = json.loads(run(bin_ / "python", "-c", LIST))
        return reports

    return plugins_in
