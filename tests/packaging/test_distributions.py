"""The contents of sdists and wheels."""

from __future__ import annotations

import re
import tarfile
import tomllib
from email import message_from_bytes
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import ZipFile

import pytest

import refractium

if TYPE_CHECKING:
    from email.message import Message

ROOT = Path(__file__).parents[2]
WORKSPACE = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["workspace"]
MEMBERS = sorted(folder for pattern in WORKSPACE["members"] for folder in ROOT.glob(pattern))
PROTOCOLS = [folder for folder in MEMBERS if folder.name.startswith("refractium-proto-")]
HOOKS = [folder for folder in MEMBERS if folder.name.startswith("refractium-hooks-")]
each_member = pytest.mark.parametrize("member", MEMBERS, ids=lambda folder: folder.name)
each_protocol = pytest.mark.parametrize("member", PROTOCOLS, ids=lambda folder: folder.name)


def wheel_of(member: Path, dist: Path) -> dict[str, bytes]:
    """Return the files of a wheel, with ``*.dist-info`` shortened to ``info``."""
    (path,) = dist.glob(f"{module_of(member)}-*.whl")
    with ZipFile(path) as wheel:
        return {re.sub(r"^[^/]+\.dist-info/", "info/", name): wheel.read(name) for name in wheel.namelist()}


def metadata_of(member: Path, dist: Path) -> Message:
    return message_from_bytes(wheel_of(member, dist)["info/METADATA"])


def module_of(member: Path) -> str:
    return member.name.replace("-", "_")


def test_the_workspace_has_its_seven_distributions() -> None:
    names = {"core", "protocols", "proto-http", "proto-https", "proto-ssh", "proto-dns", "proto-ftp"}
    assert {folder.name for folder in MEMBERS} >= {f"refractium-{name}" for name in names}


def test_all_distributions_have_the_same_version() -> None:
    versions = {
        folder.name: tomllib.loads((folder / "pyproject.toml").read_text())["project"]["version"]
        for folder in MEMBERS
    }
    assert set(versions.values()) == {refractium.__version__}, versions


@each_member
def test_a_wheel_has_a_description_and_a_licence(member: Path, dist: Path) -> None:
    metadata = metadata_of(member, dist)
    assert metadata["Name"] == member.name
    assert metadata["Version"] == refractium.__version__
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Summary"]
    assert str(metadata.get_payload()).strip() == (member / "README.md").read_text().strip()
    assert wheel_of(member, dist)["info/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()


@each_member
def test_a_wheel_holds_the_whole_typed_package_and_nothing_else(member: Path, dist: Path) -> None:
    source = member / "src"
    files = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in wheel_of(member, dist) if not name.startswith("info/")} == files
    packages = [one.name for one in source.glob("*") if (one / "__init__.py").exists()]
    assert all(f"{package}/py.typed" in files for package in packages)
    assert bool(packages) is (member.name != "refractium-protocols")


@each_member
def test_an_sdist_holds_the_sources_of_the_wheel(member: Path, dist: Path) -> None:
    (path,) = dist.glob(f"{module_of(member)}-*.tar.gz")
    with tarfile.open(path) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "PKG-INFO"} <= names
    assert not {name for name in names if "test" in name and not name.startswith("src/")}


@each_protocol
def test_a_protocol_has_an_entry_point_and_requires_the_core_below_its_next_major(
    member: Path, dist: Path
) -> None:
    id_ = member.name.removeprefix("refractium-proto-")
    wheel = wheel_of(member, dist)
    assert wheel["info/entry_points.txt"].decode().split("\n")[:2] == [
        "[refractium]",
        f"{id_} = {module_of(member)}",
    ]
    requirements = metadata_of(member, dist).get_all("Requires-Dist", [])
    assert f"refractium-core<1,>={refractium.__version__}" in requirements


def test_an_extra_of_the_core_requires_each_hook(dist: Path) -> None:
    required = metadata_of(ROOT / "refractium-core", dist).get_all("Requires-Dist", [])
    for folder in HOOKS:
        id_ = folder.name.removeprefix("refractium-hooks-")
        assert f"{folder.name}<1,>={refractium.__version__}; extra == '{id_}'" in required
    assert HOOKS


def test_each_extra_requires_one_protocol_and_all_requires_every_protocol(dist: Path) -> None:
    metadata = metadata_of(ROOT / "refractium-protocols", dist)
    ids = [folder.name.removeprefix("refractium-proto-") for folder in PROTOCOLS]
    assert sorted(metadata.get_all("Provides-Extra", [])) == sorted(["all", *ids])
    required = set(metadata.get_all("Requires-Dist", []))
    for id_ in ids:
        requirement = f"refractium-proto-{id_}<1,>={refractium.__version__}; extra == "
        assert {f"{requirement}'{id_}'", f"{requirement}'all'"} <= required
    assert len(required) == 2 * len(ids)
