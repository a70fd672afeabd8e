"""The package to check: a project folder, a wheel, an sdist or an installed plugin."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from refractium.audit import audit
from refractium.audit.package import package_of
from refractium.errors import ConfigError
from refractium.scaffold import KINDS, write_package

if TYPE_CHECKING:
    from collections.abc import Callable

METADATA = """\
Metadata-Version: 2.4
Name: refractium-proto-mine
Version: 0.1.0
Summary: Mine
Requires-Python: >=3.11
Requires-Dist: refractium-core<1,>=0.1.0
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write_package(KINDS["protocol"], "mine", tmp_path)


def wheel_of(project: Path) -> Path:
    """Write the wheel of a new plugin, as a build backend does."""
    file = project / "refractium_proto_mine-0.1.0-py3-none-any.whl"
    information = "refractium_proto_mine-0.1.0.dist-info"
    with zipfile.ZipFile(file, "w") as wheel:
        for path in (project / "src").rglob("*"):
            wheel.write(path, path.relative_to(project / "src"))
        wheel.writestr(f"{information}/METADATA", METADATA)
        wheel.writestr(f"{information}/entry_points.txt", "[refractium]\nmine = refractium_proto_mine\n")
    return file


def sdist_of(project: Path) -> Path:
    file = project.parent / "refractium_proto_mine-0.1.0.tar.gz"
    with tarfile.open(file, "w:gz") as sdist:
        sdist.add(project, "refractium_proto_mine-0.1.0")
    return file


def flat_of(project: Path) -> Path:
    """Move the package to the top of the project."""
    (project / "src/refractium_proto_mine").rename(project / "refractium_proto_mine")
    (project / "src").rmdir()
    return project


@pytest.mark.parametrize("form", [Path, flat_of, wheel_of, sdist_of])
def test_each_form_of_a_sound_plugin_breaks_no_rule(form: Callable[[Path], Path], project: Path) -> None:
    found = audit(str(form(project)))
    assert (found.distribution, found.version) == ("refractium-proto-mine", "0.1.0")
    assert [(one.rule.code, one.found) for one in found.findings] == []
    assert found.facts["mine"]["samples"] == 1


@pytest.mark.parametrize("form", [Path, wheel_of, sdist_of])
def test_the_code_of_each_form_is_checked(form: Callable[[Path], Path], project: Path) -> None:
    code = project / "src/refractium_proto_mine/__init__.py"
    code.write_text(
        code.read_text().replace("else NO", "else None").replace("import (", "import (  # noqa", 1)
    )
    assert {one.rule.code for one in audit(str(form(project))).findings} == {"answer-type"}


def test_a_wheel_without_the_samples_of_its_project_is_found(project: Path) -> None:
    (project / "src/refractium_proto_mine/samples/hello.bin").unlink()
    assert [one.rule.code for one in audit(str(wheel_of(project))).findings] == ["no-samples"]


def test_an_installed_plugin_has_its_own_entry_point_alone() -> None:
    with package_of("ssh") as package:
        assert package.name == "refractium-proto-ssh"
        assert dict(package.entry_points) == {"ssh": "refractium_proto_ssh"}
        assert package.path == ()
        assert any(one.startswith("refractium-core") for one in package.requires)


def test_a_folder_with_the_name_of_a_plugin_is_checked_by_its_path(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.rename(project.with_name("ssh"))
    monkeypatch.chdir(project.parent)
    with package_of("ssh") as installed, package_of("./ssh") as package:
        assert installed.name == "refractium-proto-ssh"
        assert package.name == "refractium-proto-mine"


def write_file(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        file = folder / name
        file.write_bytes(content)
        return file if name != "pyproject.toml" else folder

    return write


def climbing(folder: Path) -> Path:
    """Write an sdist with a file that would lie outside of its folder."""
    file = folder / "any.tar.gz"
    with tarfile.open(file, "w:gz") as sdist:
        member = tarfile.TarInfo("../../outside")
        member.size = 3
        sdist.addfile(member, io.BytesIO(b"any"))
    return file


DYNAMIC = b'[project]\nname = "x"\ndynamic = ["version", "dependencies", "entry-points"]\n'


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder, "no pyproject.toml"),
        (lambda folder: folder / "missing.whl", "no such file or folder"),
        (lambda folder: folder / "missing", "no such file or folder"),
        (write_file("plugin.txt", b""), "neither a folder nor a wheel"),
        (write_file("any.whl", b"PK"), "can be unpacked"),
        (write_file("any.tar.gz", b"\x1f\x8b"), "can be unpacked"),
        (climbing, "can be unpacked"),
        (write_file("pyproject.toml", b"[project"), "cannot be read"),
        (write_file("pyproject.toml", b"\xff"), "cannot be read"),
        (write_file("pyproject.toml", b"[tool.poetry]\nname = 'x'\n"), "build a wheel"),
        (write_file("pyproject.toml", DYNAMIC), "dependencies, entry-points: build a wheel"),
        (write_file("pyproject.toml", b"[project]\nversion = '1'\n"), "not valid"),
        (write_file("pyproject.toml", b"[project]\nname = 'x'\ndependencies = 3\n"), "not valid"),
        (write_file("pyproject.toml", b"[project]\nname = 'x'\nentry-points = []\n"), "not valid"),
    ],
)  # fmt: skip
def test_a_path_that_is_no_package_is_named(
    make: Callable[[Path], Path], message: str, tmp_path: Path
) -> None:
    what = str(make(tmp_path))
    with pytest.raises(ConfigError, match=message) as raised:
        audit(what)
    assert str(raised.value).startswith(what)


def test_an_unknown_id_is_refused_with_a_similar_id() -> None:
    with pytest.raises(ConfigError, match="did you mean 'https'"):
        audit("htps")
