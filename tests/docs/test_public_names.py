"""The reference has an entry for every public name, and an example of the pages uses the name."""

from __future__ import annotations

import ast
import inspect
import re
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest

from docs.api import named
from docs.entries import PUBLIC, entries
from support.pages import pages

if TYPE_CHECKING:
    from collections.abc import Iterator

_FENCE = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def public_names() -> list[tuple[str, str]]:
    return [(module, name) for module in PUBLIC for name in import_module(module).__all__]


def names_in_use(code: str) -> Iterator[str]:
    """Yield the public names that a block imports and then uses; an import alone is no use."""
    tree = ast.parse(code)
    nodes = list(ast.walk(tree))
    imported = {
        alias.name
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module in PUBLIC
        for alias in node.names
    }
    yield from imported & {node.id for node in nodes if isinstance(node, ast.Name)}


USED = {
    name
    for page in pages()
    for block in _FENCE.findall(page.read_text("utf-8"))
    for name in names_in_use(block)
}


REFERENCE = "".join(page.read_text("utf-8") for page in pages())
GENERATED = re.findall(r"<!-- api: (\S+)", REFERENCE)
CONSTANTS = re.findall(r"<!-- table: constants (.*) -->", REFERENCE)


@pytest.mark.parametrize(("module", "name"), public_names())
def test_the_reference_has_an_entry_for_a_public_name(module: str, name: str) -> None:
    assert name in entries(), f"no heading in docs/reference names `{name}` of {module}"


@pytest.mark.parametrize(("module", "name"), public_names())
def test_an_example_uses_a_public_name(module: str, name: str) -> None:
    assert name in USED, f"no Python example in docs imports and uses {name} of {module}"


@pytest.mark.parametrize(("module", "name"), public_names())
def test_the_code_gives_the_entry_of_a_public_name(module: str, name: str) -> None:
    """Expect the signature or the fields of a class or function, and the value of a constant."""
    value = getattr(import_module(module), name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert any(value is named(path) for path in GENERATED), f"no page has <!-- api: {module}.{name} -->"
    elif name != "__version__":
        assert any(name in names.split() for names in CONSTANTS), f"{name} is in no table of constants"


def test_a_name_means_the_same_in_every_public_module() -> None:
    """One entry serves all modules that have the name."""
    meanings: dict[str, list[Any]] = {}
    for module, name in public_names():
        meanings.setdefault(name, []).append(getattr(import_module(module), name))
    assert [name for name, values in meanings.items() if any(one is not values[0] for one in values)] == []


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("from refractium import Route\nRoute", {"Route"}),
        ("from refractium.kit import Address\ndef f(x: Address) -> None: ...", {"Address"}),
        ("from refractium import Route", set()),
        ("from elsewhere import Route\nRoute", set()),
        ("from refractium.kit import table\n'table'  # table", set()),
    ],
)
def test_an_import_alone_is_no_use(code: str, names: set[str]) -> None:
    assert set(names_in_use(code)) == names
