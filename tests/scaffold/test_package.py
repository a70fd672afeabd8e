"""The files of a new plugin, for every kind and for awkward names.

The tests in ``tests/packaging`` build, install and run new plugins.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import refractium
from refractium.contract import (
    problems_of,
    problems_of_balancer,
    problems_of_health_check,
    problems_of_hook,
)
from refractium.scaffold import KINDS, write_package
from refractium.testing import assert_identifies

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

ROOT = Path(__file__).parents[2]


def tool(name: str) -> str:
    """Return the path of a tool, which is beside the interpreter or on the PATH."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert found, f"{name} is not installed"
    return found


LONGEST = "abcdefghijklmnopqrstuvwxyz-01234"
NAMES = ["q", "my-thing_2", "none", "import", "packet", "health", "no", LONGEST]
"""The shortest and the longest name, a name with separators, and words of Python and of the contract."""
HOOKSPECS = {
    "protocol": ("refractium_protocols", problems_of),
    "hook": ("refractium_hooks", problems_of_hook),
    "balancer": ("refractium_balancers", problems_of_balancer),
    "health-check": ("refractium_health_checks", problems_of_health_check),
    "command": ("refractium_commands", lambda _: ()),
}
each_kind = pytest.mark.parametrize("kind", KINDS)
each_name = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a folder for each name, which contains a package of each kind."""
    parent = tmp_path_factory.mktemp("packages")
    for name in NAMES:
        for kind in KINDS.values():
            write_package(kind, name, parent / name)
    return parent


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def imported(packages: Path, kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Import the package of a kind and a name, without an installation."""
    (folder,) = packages.glob(f"{name}/{KINDS[kind].prefix}*/src/*")
    monkeypatch.syspath_prepend(folder.parent)
    yield importlib.import_module(folder.name)
    for one in [one for one in sys.modules if one.partition(".")[0] == folder.name]:
        del sys.modules[one]


@each_kind
def test_a_package_is_complete(kind: str, tmp_path: Path) -> None:
    folder = write_package(KINDS[kind], "my-thing_2", tmp_path / "new/parent")
    package = KINDS[kind].prefix.replace("-", "_") + "my_thing_2"
    assert folder == tmp_path / "new/parent" / package.replace("_", "-")
    assert files_of(folder) == {
        *("pyproject.toml", "README.md", "LICENSE", ".gitignore", ".github/dependabot.yml"),
        *(".github/workflows/ci.yml", ".github/workflows/release.yml"),
        *(f"src/{package}/__init__.py", f"src/{package}/py.typed", "tests/test_my_thing_2.py"),
        *([f"src/{package}/command.py"] if kind == "command" else []),
        *([f"src/{package}/samples/hello.bin"] if kind == "protocol" else []),
    }


@each_kind
@each_name
def test_the_project_has_its_entry_point_and_its_version_ranges(kind: str, name: str, packages: Path) -> None:
    (file,) = packages.glob(f"{name}/{KINDS[kind].prefix}*/pyproject.toml")
    project = tomllib.loads(file.read_text())["project"]
    assert project["name"] == file.parent.name == KINDS[kind].prefix + name.replace("_", "-")
    assert project["entry-points"]["refractium"] == {name: project["name"].replace("-", "_")}
    assert f"refractium-core>={refractium.__version__},<1" in project["dependencies"]
    assert all(">=" in one for one in project["dependencies"])
    assert project["requires-python"] == ">=3.11"
    supported = {f"Programming Language :: Python :: 3.{minor}" for minor in range(11, 15)}
    assert supported <= set(project["classifiers"])


@each_kind
@each_name
def test_the_object_of_the_plugin_has_its_name_and_fulfils_the_contract(
    kind: str, name: str, imported: ModuleType
) -> None:
    hookspec, problems_in = HOOKSPECS[kind]
    (given,) = getattr(imported, hookspec)()
    assert given.name == name
    assert not list(problems_in(given))


@pytest.mark.parametrize("kind", ["protocol"])
@each_name
def test_the_sample_is_a_first_message_of_the_protocol(
    kind: str, name: str, imported: ModuleType, packages: Path
) -> None:
    (sample,) = packages.glob(f"{name}/{KINDS[kind].prefix}*/src/*/samples/*")
    (protocol,) = imported.refractium_protocols()
    assert_identifies(protocol, sample.read_bytes(), metadata={"host": "green.example"})


@pytest.mark.parametrize("arguments", [["check"], ["format", "--check"]], ids=" ".join)
def test_every_package_passes_ruff_with_all_rules(arguments: list[str], packages: Path) -> None:
    done = subprocess.run(
        [tool("ruff"), *arguments, "--no-cache", "."],
        cwd=packages,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_licence_names_the_year_and_the_authors(packages: Path) -> None:
    text = (packages / "q/refractium-hooks-q/LICENSE").read_text()
    year = datetime.now(tz=UTC).year
    ours = (ROOT / "LICENSE").read_text()
    assert f"Copyright (c) {year} The authors of refractium-hooks-q\n" in text
    assert re.sub("Copyright .*", "", text) == re.sub("Copyright .*", "", ours)


def test_the_workflows_are_valid_and_use_the_actions_of_our_own_workflows(packages: Path) -> None:
    github = packages / "q/refractium-proto-q/.github"
    workflows = sorted(github.glob("workflows/*.yml"))
    schemas = {"vendor.github-workflows": workflows, "vendor.dependabot": [github / "dependabot.yml"]}
    for schema, files in schemas.items():
        subprocess.run(
            [tool("check-jsonschema"), "--builtin-schema", schema, *files],
            capture_output=True,
            timeout=60,
            check=True,
        )
    subprocess.run([tool("zizmor"), "--offline", "--quiet", github], timeout=60, check=True)
    uses = re.compile(r"uses: (\S+@.*)")
    ours = {use for one in ROOT.glob(".github/workflows/*.yml") for use in uses.findall(one.read_text())}
    assert ours >= {use for one in workflows for use in uses.findall(one.read_text())}
    assert (github / "dependabot.yml").read_text() == (ROOT / ".github/dependabot.yml").read_text()


def test_the_workflow_tests_the_oldest_and_the_newest_core_of_the_version_range(packages: Path) -> None:
    folder = packages / "q/refractium-proto-q"
    dependencies = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["dependencies"]
    (range_,) = (one.removeprefix("refractium-core") for one in dependencies if one.startswith("refractium"))
    oldest = range_.partition(",")[0].replace(">=", "==")
    assert f'core: ["{oldest}", "{range_}"]' in (folder / ".github/workflows/ci.yml").read_text()


@each_kind
def test_the_pages_name_the_distributions_of_the_kind(kind: str) -> None:
    distribution = f"| `{KINDS[kind].prefix}ID` |"
    assert f"| `{kind}` {distribution}" in (ROOT / "docs/how-to/publish-a-plugin.md").read_text()
    assert distribution in (ROOT / "docs/reference/plugins.md").read_text()


def test_a_folder_that_exists_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "refractium-hooks-q").mkdir()
    with pytest.raises(FileExistsError):
        write_package(KINDS["hook"], "q", tmp_path)
    assert not files_of(tmp_path)


def test_a_failure_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_text

    def fail_at_the_readme(path: Path, *arguments: str, **options: str) -> int:
        if path.name == "README.md":
            raise OSError(28, "No space left on device", str(path))
        return write(path, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", fail_at_the_readme)
    with pytest.raises(OSError, match="No space left"):
        write_package(KINDS["hook"], "q", tmp_path / "parent")
    assert not list((tmp_path / "parent").iterdir())
