"""The package to check: an installed plugin, a project folder, a wheel or an sdist.

The metadata of a project comes from the table ``[project]`` of its ``pyproject.toml``, and its code from the
folder ``src``. Nothing is built and nothing is installed, so a check leaves no traces.
"""

from __future__ import annotations

import tarfile
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import tomli
from importlib_metadata import Distribution, entry_points

from refractium.contract import ENTRY_POINT_GROUP
from refractium.errors import ConfigError
from refractium.plugins import InstalledPlugin, Plugins
from refractium.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_WHEEL: Final = ".whl"
_SDIST: Final = ".tar.gz"
_MAX_BYTES: Final = 1 << 30
"""Bytes that an archive may have after it is unpacked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """The metadata of a distribution, and the place of its code.

    Attributes:
        name: name of the distribution.
        version: version of the distribution; empty if the version is known only after a build.
        summary: the one-line description.
        requires_python: the supported Python versions; empty if the distribution states none.
        requires: the requirements, including the requirements of extras.
        entry_points: the value of each entry point of the group ``refractium``, by id, to be checked.
        path: the folders from which to import the code, before `sys.path`.
    """

    name: str
    version: str
    summary: str
    requires_python: str
    requires: tuple[str, ...]
    entry_points: Mapping[str, str]
    path: tuple[Path, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} {self.version}".strip()


@contextmanager
def package_of(what: str) -> Iterator[Package]:
    """Find the package of an installed plugin, or unpack a file for the time of the context.

    Args:
        what: the id of an installed plugin, or a path. For the path of a folder with the name of a plugin,
            write ``./NAME``.

    Raises:
        ConfigError: there is no such plugin or path, or the metadata cannot be read.
    """
    path = Path(what)
    installed = [one for one in entry_points(group=ENTRY_POINT_GROUP) if one.name == what]
    if installed and installed[0].dist is not None:
        yield _of_distribution(installed[0].dist, only=what)
    elif path.is_dir():
        yield _of_project(path.resolve())
    elif path.is_file() and path.name.endswith((_WHEEL, _SDIST)):
        with TemporaryDirectory(prefix="refractium-check-") as folder:
            try:
                package = _unpack(path, Path(folder).resolve())
            except (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError, ValueError) as error:
                raise _cannot_read(what, f"not a wheel or sdist that can be unpacked: {error}") from None
            yield package
    elif path.is_file():
        raise _cannot_read(what, "neither a folder nor a wheel (.whl) nor an sdist (.tar.gz)")
    elif "/" in what or what.endswith((_WHEEL, _SDIST)):
        raise _cannot_read(what, "no such file or folder")
    else:
        ids = sorted({one.name for one in entry_points(group=ENTRY_POINT_GROUP)})
        known = Plugins(tuple(InstalledPlugin(id=id_, distribution="", version="") for id_ in ids), ())
        raise ConfigError([Problem(known.explain_unknown_id(what))])


def _cannot_read(what: str, message: str) -> ConfigError:
    return ConfigError([Problem(message, source=what)])


def _of_distribution(distribution: Distribution, *, only: str = "", path: tuple[Path, ...] = ()) -> Package:
    """Return the package of an installed or unpacked distribution; with all its plugins, or with one."""
    about = distribution.metadata
    found = {one.name: one.value for one in distribution.entry_points if one.group == ENTRY_POINT_GROUP}
    return Package(
        name=about["Name"] or "unknown",
        version=about["Version"] or "",
        summary=about.get("Summary") or "",
        requires_python=about.get("Requires-Python") or "",
        requires=tuple(distribution.requires or ()),
        entry_points={only: found[only]} if only else found,
        path=path,
    )


def _unpack(path: Path, folder: Path) -> Package:
    if path.name.endswith(_WHEEL):
        with zipfile.ZipFile(path) as wheel:
            _limit(sum(member.file_size for member in wheel.infolist()))
            wheel.extractall(folder)  # noqa: S202 - of a wheel, which stays below the folder
        (information,) = folder.glob("*.dist-info")
        return _of_distribution(Distribution.at(information), path=(folder,))
    with tarfile.open(path) as sdist:
        _limit(sum(member.size for member in sdist))
        sdist.extractall(folder, filter="data")
    (top,) = folder.iterdir()
    return _of_project(top)


def _limit(size: int) -> None:
    if size > _MAX_BYTES:
        raise ValueError(f"more than {_MAX_BYTES} bytes")


def _of_project(folder: Path) -> Package:
    """Return the package of a project by its ``pyproject.toml`` (the standard is PEP 621).

    Raises:
        ConfigError: the file cannot be read, or only a build shows what the check needs.
    """
    file = folder / "pyproject.toml"
    try:
        project = tomli.loads(file.read_text(encoding="utf-8")).get("project")
    except FileNotFoundError:
        raise _cannot_read(str(folder), "no pyproject.toml, so the folder is not a project") from None
    except (OSError, ValueError) as error:
        raise _cannot_read(str(file), f"cannot be read: {error}") from None
    if not isinstance(project, dict):
        raise _cannot_read(str(file), "no table [project]: build a wheel, and check the wheel")
    needed = {"dependencies", "optional-dependencies", "entry-points", "requires-python"}
    if dynamic := sorted(needed & set(project.get("dynamic", ()))):
        message = f"only a build shows {', '.join(dynamic)}: build a wheel, and check the wheel"
        raise _cannot_read(str(file), message)
    try:
        return _of_table(project, folder)
    except (AttributeError, KeyError, TypeError) as error:
        raise _cannot_read(str(file), f"the table [project] is not valid: {error!r}") from None


def _of_table(project: dict[str, Any], folder: Path) -> Package:
    extras = project.get("optional-dependencies", {})
    source = folder / "src"
    return Package(
        name=str(project["name"]),
        version=str(project.get("version", "")),
        summary=str(project.get("description", "")),
        requires_python=str(project.get("requires-python", "")),
        requires=(
            *map(str, project.get("dependencies", ())),
            *(str(one) for requirements in extras.values() for one in requirements),
        ),
        entry_points={
            str(id_): str(value)
            for id_, value in project.get("entry-points", {}).get(ENTRY_POINT_GROUP, {}).items()
        },
        path=(source if source.is_dir() else folder,),
    )
