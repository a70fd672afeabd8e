"""Docstrings, taken apart: those of functions and classes by section, and those that follow an attribute."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from functools import cache
from importlib import import_module
from itertools import pairwise
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    import types

_SECTION: Final = re.compile(r"^(Args|Attributes|Returns|Raises):\n((?: .*\n|\n)*)", re.MULTILINE)
_ITEM: Final = re.compile(r"^(\w+): ((?:.*\n)(?: .*\n)*)", re.MULTILINE)
_EXAMPLE: Final = re.compile(r"^::\n\n(?: .*\n|\n)+", re.MULTILINE)
_EXAMPLE_AFTER_TEXT: Final = re.compile(r"::\n\n(?: .*\n|\n)+")


class Docstring(NamedTuple):
    """The parts of a docstring in Google's style.

    Attributes:
        paragraphs: the description, without examples.
        named: what the docstring says of each argument and attribute, by name.
        returns: the result; empty if the docstring does not describe it.
        raises: the case of each exception, by the name of the exception.
    """

    paragraphs: list[str]
    named: dict[str, str]
    returns: str
    raises: dict[str, str]


def docstring_of(value: Any) -> Docstring:
    """Return the parts of the docstring of a function or class."""
    text = (inspect.getdoc(value) or "") + "\n"
    sections = {name: textwrap.dedent(body) for name, body in _SECTION.findall(text)}
    description = _EXAMPLE_AFTER_TEXT.sub(".\n\n", _EXAMPLE.sub("\n", _SECTION.sub("", text)))
    return Docstring(
        [_joined(one) for one in re.split(r"\n\s*\n", description) if one.strip()],
        _items(sections.get("Args", "")) | _items(sections.get("Attributes", "")),
        _joined(sections.get("Returns", "")),
        _items(sections.get("Raises", "")),
    )


def said_of(home: type | types.ModuleType) -> dict[str, str]:
    """Return the docstrings that follow the attributes of a class or the constants of a module, by name."""
    body = ast.parse(textwrap.dedent(inspect.getsource(home))).body
    if isinstance(home, type):
        assert isinstance(body[0], ast.ClassDef)
        body = body[0].body
    said = {}
    for node, after in pairwise(body):
        name = _target(node)
        if name and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            said[name] = _cell(str(after.value.value))
    return said


@cache
def assigned(module: str) -> dict[str, tuple[str, str]]:
    """Return the written value and the docstring of each constant of a module, or of a package's modules."""
    home = import_module(module)
    homes = [
        home,
        *(import_module(f"{module}.{sub.name}") for sub in iter_modules(getattr(home, "__path__", ()))),
    ]
    found = {}
    for one in homes:
        said = said_of(one)
        for node in ast.parse(inspect.getsource(one)).body:
            name, value = _target(node), getattr(node, "value", None)
            if name in said and isinstance(value, ast.expr):
                # Quotes around a type only defer its evaluation.
                is_quoted = isinstance(value, ast.Constant) and "TypeAlias" in ast.unparse(node)
                found[name] = (ast.unparse(value)[1:-1] if is_quoted else ast.unparse(value), said[name])
    return found


def _target(node: ast.stmt) -> str:
    """Return the name that a statement assigns to; empty if the statement is no such assignment."""
    target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
    return target.id if isinstance(target, ast.Name) else ""


def _items(section: str) -> dict[str, str]:
    return {name: _cell(text) for name, text in _ITEM.findall(section + "\n")}


def _cell(text: str) -> str:
    """Return a text as a sentence in the cell of a table."""
    text = _joined(text).replace("|", r"\|")
    return text[:1].upper() + text[1:] if text else text


def _joined(text: str) -> str:
    """Return a text as one line of Markdown."""
    return " ".join(text.replace("``", "`").split())
