"""Docstrings, taken apart: those of functions and classes by section, and those that follow an attribute."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    import types

_SECTION: Final = re.compile(r"^(Args|Attributes|Returns|Raises):\n((?: .*\n|\n)*)", re.MULTILINE)
_ITEM: Final = re.compile(r"^(\w+): ((?:.*\n)(?: .*\n)*)", re.MULTILINE)
_EXAMPLE: Final = re.compile(r"^::\n\n(?: .*\n|\n)+|::\n\n(?: .*\n|\n)+", re.MULTILINE)


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
    description = _EXAMPLE.sub("\n", _SECTION.sub("", text))
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
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if (
            isinstance(target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            said[target.id] = _joined(str(after.value.value))
    return said


def _items(section: str) -> dict[str, str]:
    return {name: _joined(text) for name, text in _ITEM.findall(section + "\n")}


def _joined(text: str) -> str:
    """Return a text as one line of Markdown."""
    return " ".join(text.replace("``", "`").split())
