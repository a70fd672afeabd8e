"""Distributions as users get them: built once, and installed into environments that hold nothing else."""

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
print(json.dumps([plugin.as_dict() for plugin in load_plugins().entries]))
"""


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the folder of the workspace."""
    return ROOT


@pytest.fixture(scope="session")
def knock() -> Path:
    """Return the folder of a distribution that a third party could have written."""
    return ROOT / "tests/data/refractium-proto-knock"


@pytest.fixture(scope="session")
def examples() -> Path:
    """Return the folder of the distributions of the guide to hooks."""
    return ROOT / "docs/examples"


@pytest.fixture(scope="session")
def variables() -> dict[str, str]:
    """Return the environment variables, without those that lead to the workspace or into it."""
    ours = ("VIRTUAL_ENV", "PYTHON", "COV", "REFRACTIUM")
    return {key: value for key, value in os.environ.items() if not key.startswith(ours)}


@pytest.fixture(scope="session")
def run(variables: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Return a function that runs a program outside of the workspace, away from its sources, and returns
    the output."""
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
    """Mark tests as slow that need the distributions, which take ten seconds to build."""
    for item in items:
        if "dist" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def dist(
    uv: str, run: Callable[..., str], knock: Path, examples: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Build all distributions, an sdist each and the wheel from that sdist; one process builds for all
    processes."""
    of_this_process = tmp_path_factory.getbasetemp()
    of_all = of_this_process.parent if "PYTEST_XDIST_WORKER" in os.environ else of_this_process
    folder = of_all / "dist"
    with (of_all / "dist.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # held until the file is closed
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
    """Return a function that makes an environment with these requirements and their dependencies, and
    returns the folder of its programs."""

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
    """Return a function that gives the entries of `load_plugins` in an environment."""

    def plugins_in(bin_: Path) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = json.loads(run(bin_ / "python", "-c", LIST))
        return entries

    return plugins_in
