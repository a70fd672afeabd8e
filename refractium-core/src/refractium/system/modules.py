"""Python modules that are made from a single file, without a package and without a folder in `sys.path`.

A module keeps its source. So another process can make the same module, even if the file has changed since.
"""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from types import ModuleType


class ModuleSource(NamedTuple):
    """The source of a module.

    Attributes:
        file: the path of the file, for tracebacks.
        content: the content of the file.
    """

    file: str
    content: bytes


_sources: Final[dict[str, ModuleSource]] = {}


def make(name: str, source: ModuleSource) -> ModuleType:
    """Return the module with this name. Run the source once in each process.

    Args:
        name: the name of the module, which no module with another source may have.
        source: the source.

    Raises:
        Exception: the source raised an exception, or has a syntax error; the module does not exist.
    """
    if name in _sources:
        return sys.modules[name]
    spec = spec_from_file_location(name, source.file)
    if spec is None:
        raise ImportError(f"{source.file} is not a Python file")
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and msgspec look for the module of a class here
    try:
        exec(compile(source.content, source.file, "exec", dont_inherit=True), module.__dict__)  # noqa: S102 - as import does
    except BaseException:
        sys.modules.pop(name, None)
        raise
    _sources[name] = source
    return module


def source_of(name: str) -> ModuleSource | None:
    """Return the source of a module that `make` has made; None for any other module."""
    return _sources.get(name)
