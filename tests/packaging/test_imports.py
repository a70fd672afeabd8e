"""The imports of each distribution: declared by the distribution and, of the core, only public modules."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from refractium.scaffold import KINDS, write_package

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
TOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
MEMBERS = [folder for pattern in TOOLS["uv"]["workspace"]["members"] for folder in ROOT.glob(pattern)]
THIRD_PARTIES = [
    file.parent
    for where in ("docs/examples", "tests/data")
    for file in ROOT.glob(f"{where}/*/pyproject.toml")
]
DISTRIBUTIONS = sorted(MEMBERS + THIRD_PARTIES)
PUBLIC = {"refractium.contract", "refractium.kit", "refractium.testing"}
"""Modules of the core that a plugin may import; the modules inside of them are private."""


def project_of(folder: Path) -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    return project


def is_plugin(folder: Path) -> bool:
    return "refractium" in project_of(folder).get("entry-points", {})


def packages_of(folder: Path) -> set[str]:
    return {init.parent.name for init in folder.glob("src/*/__init__.py")}


def imports_of(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield pairs of a place and the module imported there, wherever in a file the import stands."""
    for file in sorted(folder.glob("src/**/*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module == "refractium" and node.level == 0:
                modules = [f"refractium.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [str(node.module)]
            else:
                continue
            for module in modules:
                yield f"{file.relative_to(ROOT)}:{node.lineno}", module


def normalized(requirement: str) -> str:
    """Return the name of a requirement in the form in which names of distributions are compared."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement, maxsplit=1)[0]).lower()


def for_pytest(folder: Path) -> set[str]:
    """Return ``pytest`` for a distribution with a plugin for pytest, which only pytest imports."""
    return {"pytest"} & {group.removesuffix("11") for group in project_of(folder).get("entry-points", {})}


def undeclared(folder: Path) -> list[str]:
    """Return imports of packages that are in no requirement of the distribution and in none of its extras."""
    project = project_of(folder)
    requirements = [
        *project.get("dependencies", ()),
        *chain.from_iterable(project.get("optional-dependencies", {}).values()),
    ]
    declared = {normalized(requirement) for requirement in requirements}
    # The metadata of an editable installation does not list its packages.
    of_workspace = {package: [member.name] for member in MEMBERS for package in packages_of(member)}
    distributions = {**packages_distributions(), **of_workspace}
    own = packages_of(folder)
    return [
        f"{place}: {module}"
        for place, module in imports_of(folder)
        if (package := module.partition(".")[0]) not in own | sys.stdlib_module_names | for_pytest(folder)
        and not declared & {normalized(name) for name in distributions.get(package, [package])}
    ]


def not_public(folder: Path) -> list[str]:
    """Return imports of modules of the core that are not for plugins."""
    return [
        f"{place}: {module}"
        for place, module in imports_of(folder)
        if module.partition(".")[0] == "refractium" and module not in PUBLIC
    ]


@pytest.fixture
def offender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a plugin with forbidden imports, in every form that the check must find."""
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    package = tmp_path / "src/offender"
    package.mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "offender"\ndependencies = ["Refractium_Core>=0.1,<1"]\n'
        "[project.optional-dependencies]\nhelp = [\"rich-click; python_version > '3'\"]\n"
    )
    (package / "__init__.py").write_text(
        "import os.path, click\n"
        "import refractium.contract, refractium.kit.options\n"
        "from refractium import Protocol, kit\n"
        "from refractium.testing import run_hook\n"
        "from . import refractium\n"
        "from offender import click\n"
        "def late():\n"
        "    import rich_click, nobody_has_this\n"
        "    from google.protobuf import message\n"
    )
    return tmp_path


def test_imports_that_are_not_declared_are_found(offender: Path) -> None:
    assert undeclared(offender) == [
        "src/offender/__init__.py:1: click",
        "src/offender/__init__.py:8: nobody_has_this",
        "src/offender/__init__.py:9: google.protobuf",
    ]


def test_imports_that_are_not_public_are_found(offender: Path) -> None:
    assert not_public(offender) == [
        "src/offender/__init__.py:2: refractium.kit.options",
        "src/offender/__init__.py:3: refractium.Protocol",
    ]


@pytest.mark.parametrize("folder", DISTRIBUTIONS, ids=lambda folder: folder.name)
def test_every_import_is_declared(folder: Path) -> None:
    assert undeclared(folder) == []


@pytest.mark.parametrize("folder", [*filter(is_plugin, DISTRIBUTIONS)], ids=lambda folder: folder.name)
def test_plugins_import_only_public_modules(folder: Path) -> None:
    assert not_public(folder) == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_imports_of_a_new_plugin_are_declared_and_public(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    folder = write_package(KINDS[kind], "example", tmp_path)
    assert undeclared(folder) == []
    assert not_public(folder) == []


def test_all_packages_of_the_workspace_are_under_import_contracts() -> None:
    linter = TOOLS["importlinter"]
    packages = {package for folder in MEMBERS for package in packages_of(folder)}
    assert set(linter["root_packages"]) == packages
    of_plugins = [set(one["source_modules"]) for one in linter["contracts"] if one["type"] == "forbidden"]
    assert set.union(*of_plugins) == packages - {"refractium"}
