"""`refractium plugins install` and `uninstall` with the real pip, uv, `uv tool` and pipx."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., str]

TOOL = "refractium-core"


class Result(NamedTuple):
    code: int
    out: str
    err: str


class Site:
    """An installation of the core of its own, which a test may change.

    Args:
        program: the path of ``refractium``.
        variables: the environment variables.
        folder: the current folder.
    """

    def __init__(self, program: Path, variables: dict[str, str], folder: Path) -> None:
        self.program, self.variables, self.folder = program, variables, folder

    def call(self, *command: str | Path) -> Result:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.variables,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert "Traceback" not in done.stdout + done.stderr
        return Result(done.returncode, done.stdout, done.stderr)

    def plugins(self, *arguments: str | Path) -> Result:
        return self.call(self.program, "plugins", *arguments)

    @property
    def ids(self) -> list[str]:
        return [row["id"] for row in json.loads(self.plugins("list", "--json").out)]


def ids_in(rows: list[dict[str, Any]]) -> list[str]:
    return [row["id"] for row in rows]


@pytest.fixture
def settings(variables: dict[str, str], dist: Path, tmp_path: Path) -> dict[str, str]:
    """Return the environment variables of an administrator without settings of uv or pipx."""
    return {
        **variables,
        "PIP_FIND_LINKS": str(dist),
        "UV_FIND_LINKS": str(dist),
        "UV_TOOL_DIR": str(tmp_path / "tools"),
        "UV_TOOL_BIN_DIR": str(tmp_path / "bin"),
        "PIPX_HOME": str(tmp_path / "pipx"),
        "PIPX_BIN_DIR": str(tmp_path / "bin"),
        "UV_PYTHON": sys.executable,
        "PIPX_DEFAULT_PYTHON": sys.executable,
        "COLUMNS": "200",
    }


@pytest.fixture(params=["pip", "uv"])
def site(
    request: pytest.FixtureRequest, uv: str, run: Run, dist: Path, settings: dict[str, str], tmp_path: Path
) -> Site:
    """Return an environment with the core, and with pip or without."""
    folder = tmp_path / "environment"
    run(uv, "venv", "--quiet", "--python", sys.executable, folder)
    wanted = (TOOL, "pip") if request.param == "pip" else (TOOL,)
    python = folder / "bin/python"
    run(uv, "pip", "install", "--quiet", "--python", python, "--find-links", dist, *wanted)
    return Site(folder / "bin/refractium", settings, tmp_path)


def changed_copy(knock: Path, folder: Path, code: str) -> Path:
    """Return a copy of a plugin, with more code and with the same version."""
    shutil.copytree(knock, folder)
    with (folder / "src/refractium_proto_knock/__init__.py").open("a") as file:
        file.write(code)
    return folder


def test_plugins_come_by_name_and_path_and_go_by_name(site: Site, knock: Path, tmp_path: Path) -> None:
    done = site.plugins("install", "--json", "refractium-protocols[ssh]", knock)
    assert done.code == 0
    found = json.loads(done.out)
    assert (ids_in(found["changed"]), found["gone"]) == (["knock", "ssh"], [])
    assert site.ids == ["knock", "ssh"]

    copy = changed_copy(knock, tmp_path / "copy", "changed = True\n")
    done = site.plugins("install", copy)
    assert done.code == 0
    assert "New or changed plugins" in done.out
    assert [line.split()[0] for line in done.out.splitlines() if "refractium-proto-knock  1" in line] == [
        "knock"
    ]

    done = site.plugins("uninstall", "--json", "refractium_proto_knock")
    assert done.code == 0
    found = json.loads(done.out)
    assert (found["changed"], ids_in(found["gone"])) == ([], ["knock"])
    done = site.plugins("uninstall", "refractium-proto-ssh")
    assert (done.code, "Plugins that are gone" in done.out) == (0, True)
    assert site.ids == []


def test_a_plugin_that_does_not_load_is_shown_and_exits_1(site: Site, knock: Path, tmp_path: Path) -> None:
    done = site.plugins("install", "--json", changed_copy(knock, tmp_path / "copy", "1 / 0\n"))
    assert done.code == 1
    (row,) = json.loads(done.out)["changed"]
    assert (row["id"], row["status"], row["error"]) == (
        "knock",
        "failed",
        "ZeroDivisionError: division by zero",
    )


def test_what_the_installer_says_about_a_failure_comes_through(site: Site) -> None:
    done = site.plugins("install", "refractium-proto-ssh>99")
    assert done.code == 1
    assert "refractium-proto-ssh" in done.err
    assert "hint: the operating system" not in done.err
    assert site.ids == []


def test_the_core_stays(site: Site) -> None:
    done = site.plugins("uninstall", "refractium-core")
    assert (done.code, done.out) == (2, "")
    assert site.ids == []


def test_uv_tool_upgrade_does_what_the_note_says(
    uv: str, settings: dict[str, str], knock: Path, tmp_path: Path
) -> None:
    site = Site(tmp_path / "bin/refractium", settings, tmp_path)
    assert site.call(uv, "tool", "install", TOOL, "--with", "refractium-proto-ftp").code == 0
    done = site.plugins("install", "refractium-proto-ssh", knock)
    assert done.code == 0
    assert f"`uv tool upgrade {TOOL}` removes" in done.err
    options = f"--with refractium-proto-ssh --with {knock}"
    assert done.err.endswith(f"{options}\n")
    assert site.ids == ["ftp", "knock", "ssh"]
    assert site.call(uv, "tool", "upgrade", TOOL).code == 0
    assert site.ids == ["ftp"]
    again = (uv, "tool", "install", TOOL, "--with", "refractium-proto-ftp", *options.split())
    assert site.call(*again).code == 0
    assert site.ids == ["ftp", "knock", "ssh"]
    assert site.call(uv, "tool", "upgrade", TOOL).code == 0
    assert site.ids == ["ftp", "knock", "ssh"]
    done = site.plugins("uninstall", "refractium-proto-ssh")
    assert f"`uv tool upgrade {TOOL}` adds" in done.err
    assert site.ids == ["ftp", "knock"]
    assert site.call(uv, "tool", "upgrade", TOOL).code == 0
    assert site.ids == ["ftp", "knock", "ssh"]


@pytest.mark.timeout(400)  # pipx makes five environments, in turn
@pytest.mark.parametrize("backend", ["pip", "uv"])
def test_pipx_upgrade_and_reinstall_do_what_the_notes_say(
    backend: str, uv: str, settings: dict[str, str], tmp_path: Path
) -> None:
    pipx = Path(sys.executable).with_name("pipx")
    path = f"{Path(uv).parent}:{os.environ['PATH']}"
    variables = {**settings, "PIPX_DEFAULT_BACKEND": backend, "PATH": path}
    site = Site(tmp_path / "bin/refractium", variables, tmp_path)
    assert site.call(pipx, "install", TOOL).code == 0
    done = site.plugins("install", "refractium-proto-ssh")
    assert done.code == 0
    assert f"`pipx upgrade {TOOL}` keeps the packages" in done.err
    assert done.err.endswith(f"run pipx inject {TOOL} refractium-proto-ssh\n")
    assert site.call(pipx, "upgrade", TOOL, "--force").code == 0
    assert site.ids == ["ssh"]
    assert site.call(pipx, "reinstall", TOOL).code == 0
    assert site.ids == []
    assert site.call(pipx, "inject", TOOL, "refractium-proto-ssh").code == 0
    assert site.call(pipx, "reinstall", TOOL).code == 0
    assert site.ids == ["ssh"]
    done = site.plugins("uninstall", "refractium-proto-ssh")
    assert f"`pipx reinstall {TOOL}` adds" in done.err
    assert site.call(pipx, "reinstall", TOOL).code == 0
    assert site.ids == ["ssh"]
