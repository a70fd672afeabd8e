"""The files of a new distribution, made from the templates."""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime
from errno import ENOTDIR
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Final

from refractium._version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refractium.scaffold.kinds import Kind

_TEMPLATES: Final = Path(__file__).with_name("templates")
_SUFFIX: Final = ".in"
"""The suffix of the templates, so that no tool takes a template for a source file."""
_USE: Final = "use.md.in"
_IN_PATHS: Final = {"PACKAGE": "package", "NAME": "name"}
"""The placeholders in the paths of templates, each with the key of its value."""


def write_package(kind: Kind, name: str, parent: Path) -> Path:
    """Write a new distribution into a new folder, and return the folder.

    Args:
        kind: the kind of the plugin.
        name: the id of the plugin, for which `problem_of_new_name` returns None.
        parent: the folder in which to make the new folder. This function makes `parent` if it does not exist.

    Raises:
        FileExistsError: the new folder exists already.
        OSError: a file cannot be written. The new folder does not exist then.
    """
    values = _values(kind, name)
    folder = parent / values["distribution"]
    if not parent.is_dir():
        _make(parent)
    folder.mkdir()
    try:
        for path, text in _files(kind, values):
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def _make(parent: Path) -> None:
    """Make a folder, and the folders above it."""
    try:
        parent.mkdir(parents=True)
    except FileExistsError as error:
        raise NotADirectoryError(ENOTDIR, os.strerror(ENOTDIR), error.filename) from None


def _values(kind: Kind, name: str) -> dict[str, str]:
    """Return the value of each placeholder of the templates."""
    core = __version__.partition("+")[0]  # a requirement has no local version
    next_major = int(core.partition(".")[0]) + 1
    distribution = kind.prefix + name.replace("_", "-")
    requirements = sorted([*kind.requires, f"refractium-core>={core},<{next_major}"])
    values = {
        "id": name,
        "kind": kind.name,
        "distribution": distribution,
        "package": distribution.replace("-", "_"),
        "name": name.replace("-", "_"),
        # The base as the end of the name keeps the class apart from keywords and from imported names.
        "Class": name.replace("-", "_").title().replace("_", "") + kind.base,
        "requires": ", ".join(f'"{one}"' for one in requirements),
        "core": core,
        "next_major": str(next_major),
        "year": str(datetime.now(tz=UTC).year),
    }
    values["summary"] = Template(kind.summary).substitute(values)
    values["use"] = _filled(_TEMPLATES / kind.name / _USE, values).strip()
    return values


def _files(kind: Kind, values: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the path and the text of each file of the distribution."""
    for top in (_TEMPLATES / "common", _TEMPLATES / kind.name):
        for template in sorted(top.rglob(f"*{_SUFFIX}")):
            if template.name != _USE:
                path = template.relative_to(top).as_posix().removesuffix(_SUFFIX)
                for placeholder, key in _IN_PATHS.items():
                    path = path.replace(placeholder, values[key])
                yield path, _filled(template, values)


def _filled(template: Path, values: dict[str, str]) -> str:
    """Return the text of a template, with the values in place of the placeholders."""
    return Template(template.read_text(encoding="utf-8")).substitute(values)
