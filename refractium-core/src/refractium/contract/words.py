"""Values of plugins in words, for messages. A message never contains the `repr` of an object."""

from __future__ import annotations


def shown(value: object) -> str:
    """Return a value in words: a number, a text in quotes, or the kind of any other value."""
    if value is None or isinstance(value, bool | int | float):
        return str(value)
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return kind_of(value)


def kind_of(value: object) -> str:
    """Return the type of a value, with the types of the items if the value is a collection."""
    name = type(value).__name__
    if not isinstance(value, tuple | list | set | frozenset):
        return name
    kinds = sorted({type(one).__name__ for one in value})
    return f"{name} of {' and '.join(kinds)}" if kinds else f"empty {name}"
