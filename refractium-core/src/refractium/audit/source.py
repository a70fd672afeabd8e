"""The source files of a plugin: their imports, found without running the code."""

from __future__ import annotations

import ast
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

PUBLIC: Final = frozenset({"refractium.contract", "refractium.kit", "refractium.testing"})
"""The modules of the core that a plugin may import; the modules inside of them are private."""


def files_of(module: str, path: Sequence[Path]) -> tuple[Path, ...]:
    """Return the source files of the top-level package or module of a module, without importing them.

    Args:
        module: the dotted name of a module.
        path: the folders to search before `sys.path`.
    """
    try:
        spec = PathFinder.find_spec(module.partition(".")[0], [*map(str, path), *sys.path])
    except (ImportError, ValueError):
        return ()
    if spec is None:
        return ()
    if spec.submodule_search_locations is not None:
        return tuple(
            sorted(file for where in spec.submodule_search_locations for file in Path(where).rglob("*.py"))
        )
    return (Path(spec.origin),) if spec.origin and spec.origin.endswith(".py") else ()


def imports_of(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the module of each absolute import in a file.

    An import that only a type checker follows, or whose failure the file handles, is left out.

    Raises:
        SyntaxError: the file is not Python.
        OSError: the file cannot be read.
        ValueError: the file has bytes that are not text.
    """
    yield from _imports(ast.parse(file.read_bytes()).body)


def _imports(statements: Iterable[ast.AST]) -> Iterator[tuple[int, str]]:
    for node in statements:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            if node.module == "refractium":
                yield from ((node.lineno, f"refractium.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, node.module
        elif isinstance(node, ast.If) and _is_for_type_checkers(node.test):
            yield from _imports(node.orelse)
        elif isinstance(node, ast.Try) and any(map(_handles_missing, node.handlers)):
            yield from _imports([*node.handlers, *node.orelse, *node.finalbody])
        else:
            yield from _imports(ast.iter_child_nodes(node))


def _is_for_type_checkers(test: ast.expr) -> bool:
    name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", "")
    return name == "TYPE_CHECKING"


def _handles_missing(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(getattr(one, "id", "") in {"ImportError", "ModuleNotFoundError"} for one in caught)
