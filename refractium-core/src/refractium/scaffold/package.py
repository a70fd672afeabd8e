"""The files of a new distribution, made from the templates."""

from __future__ import annotations

import os
import re
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
    core, major = re.match(r"(\d+)\.\d+\.\d+", __version__).group(0, 1)  # type: ignore[union-attr]
    distribution = kind.prefix + name.replace("_", "-")
    requirements = sorted([*kind.requires, f"refractium-core>={core},<{int(major) + 1}"])
    values = {
        "id": name,
        "kind": kind.name,
        "distribution": distribution,
        "package": distribution.replace("-", "_"),
        # The base as the end of the name keeps the class apart from keywords and from imported names.
        "Class": "".join(part.capitalize() for part in re.split("[-_]", name)) + kind.base,
        "requires": ", ".join(f'"{one}"' for one in requirements),
        "core": core,
        "next_major": str(int(major) + 1),
        "year": str(datetime.now(tz=UTC).year),
    }
    values["summary"] = Template(kind.summary).substitute(values)
    values["use"] = (
        Template((_TEMPLATES / kind.name / _USE).read_text(encoding="utf-8")).substitute(values).strip()
    )
    return values


def _files(kind: Kind, values: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the path and the text of each file of the distribution."""
    for top in (_TEMPLATES / "common", _TEMPLATES / kind.name):
        for template in sorted(top.rglob(f"*{_SUFFIX}")):
            if template.name != _USE:
                path = template.relative_to(top).as_posix().removesuffix(_SUFFIX)
                path = path.replace("PACKAGE", values["package"]).replace(
                    "NAME", values["id"].replace("-", "_")
                )
                yield path, Template(template.read_text(encoding="utf-8")).substitute(values)
