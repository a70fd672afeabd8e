"""Entries of public names as Markdown: signatures, fields, arguments and errors, all read from the code.

Signatures stand in fences of ``py``, because the tests run each fence of ``python``.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import textwrap
from collections.abc import Mapping
from enum import Enum
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Final, ForwardRef, NamedTuple, get_args, get_origin

import msgspec

from docs.docstrings import Docstring, assigned, docstring_of, said_of
from refractium import hooks, settings
from refractium.contract import hook, metadata
from refractium.plugins import installed
from refractium.routing import route
from refractium.workers import supervisor

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    Row = Sequence[str]

_LINE: Final = 110
"""Characters of a signature that stands in one line."""
_PAGE: Final = 118
"""Characters of a line of prose."""
_LONG_NUMBER: Final = 10_000
_REQUIRED: Final = "required"
_OPERATORS: Final = frozenset({"__contains__"})
"""The special methods that an entry shows."""
_ALIASES: Final = {
    "Action": settings.Action,
    "Build": supervisor.Build,
    "HookUse": hooks.HookUse,
    "Isolation": hook.Isolation,
    "ConditionPatterns": route.ConditionPatterns,
    "Kind": installed.Kind,
    "MetadataKeys": metadata.MetadataKeys,
    "NamePatterns": route.NamePatterns,
    "Names": route.Names,
    "Overflow": hook.Overflow,
    "ProxyVersion": settings.ProxyVersion,
}
"""Private names of types, for which an entry shows the types themselves."""


class Field(NamedTuple):
    """An argument, a field or an attribute: a row of a table."""

    name: str
    type: str
    default: str
    meaning: str


def entry(path: str, but: Collection[str] = ()) -> str:
    """Return the text of the entry of a class or function.

    Args:
        path: the module and the name.
        but: the names of fields, properties and methods that are left out.
    """
    value = named(path)
    if unknown := [name for name in but if not hasattr(value, name)]:
        raise LookupError(f"{path} has no {', '.join(unknown)}")
    blocks = _of_class(value, but) if isinstance(value, type) else _of_function(value)
    return "".join(f"\n{block.rstrip()}\n" for block in blocks if block) + "\n"


def named(path: str) -> Any:
    """Return the object that a path names, such as ``refractium.kit.Address``."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def table(header: Row, rows: Iterable[Row]) -> str:
    """Return a table, or nothing if there are no rows."""
    lines = [f"| {' | '.join(cells)} |\n" for cells in rows]
    return f"| {' | '.join(header)} |\n|{' --- |' * len(header)}\n{''.join(lines)}" if lines else ""


def fields(cls: type) -> Iterator[Field]:
    """Yield the fields of a dataclass, Struct or named tuple, or the annotated attributes of another class.

    Raises:
        LookupError: a field has no docstring.
    """
    said: dict[str, str] = {}
    types: dict[str, str] = {}
    for one in reversed(list(_own_classes(cls))):
        types |= {name: _type(kind) for name, kind in inspect.get_annotations(one).items() if name[0] != "_"}
        said |= docstring_of(one).named | said_of(one)
    if issubclass(cls, msgspec.Struct):
        for field in msgspec.structs.fields(cls):
            kind, description = _described(field.type)
            types[field.name] = kind or types[field.name]
            said.setdefault(field.name, description)
    for name, default in _defaults(cls, types):
        _ensure(said.get(name), cls, name)
        yield Field(name, types[name], default, said[name])


def members(enum: type[Enum]) -> str:
    """Return the table of the members of an enumeration."""
    said = said_of(enum)
    rows = [(_code(f"{enum.__name__}.{one.name}"), _code(_value(one.value)), said[one.name]) for one in enum]
    return table(("member", "value", "meaning"), rows)


def constants(module: str, *names: str) -> Iterator[Row]:
    """Yield constants with their values, and types with their definitions."""
    found = assigned(module)
    for name in names:
        value, meaning = found[name]
        yield _code(name), _code(value.replace("'", '"')), meaning


def table_of(what: str, listed: Sequence[Field], *, has_defaults: bool = True) -> str:
    """Return the table of fields; without the column of defaults if no field has a default."""
    if not has_defaults or all(one.default == _REQUIRED for one in listed):
        return table((what, "type", "meaning"), attributes(listed))
    rows = (
        (_code(name), _code(kind), default if default == _REQUIRED else _code(default), meaning)
        for name, kind, default, meaning in listed
    )
    return table((what, "type", "default", "meaning"), rows)


def attributes(listed: Iterable[Field]) -> Iterator[Row]:
    """Yield fields as rows of a table without defaults."""
    return ((_code(one.name), _code(one.type), one.meaning) for one in listed)


def _of_class(cls: type, but: Collection[str]) -> Iterator[str]:
    doc = docstring_of(cls)
    yield from map(_wrapped, doc.paragraphs)
    if issubclass(cls, Enum):
        yield members(cls)
        return
    is_record = hasattr(cls, "_fields") or dataclasses.is_dataclass(cls) or issubclass(cls, msgspec.Struct)
    is_error = issubclass(cls, Exception)
    arguments = [] if is_record or is_error else [*_parameters(cls.__init__, doc)]
    known = {*but, *(one.name for one in arguments)}
    attributes = [one for one in fields(cls) if one.name not in known]
    yield table_of("argument", arguments)
    yield table_of("field" if is_record else "attribute", attributes, has_defaults=not is_error)
    public = {name: value for name, value in _public(cls) if name not in but}
    for name, value in public.items():
        if isinstance(value, property) or inspect.isroutine(value):
            _ensure(inspect.getdoc(getattr(cls, name)) or name in _annotated(cls), cls, name)
    yield table(("property", "type", "meaning"), _properties(public))
    yield _errors(doc)
    for name, value in public.items():
        if inspect.isroutine(value) and value.__doc__:
            yield f"#### `{cls.__name__}.{name}`"
            yield from _of_function(value)


def _of_function(function: Any) -> Iterator[str]:
    doc = docstring_of(function)
    yield f"```py\n{_signature(function)}\n```"
    yield from map(_wrapped, doc.paragraphs)
    arguments = ((_code(one.name), one.meaning) for one in _parameters(function, doc))
    yield table(("argument", "meaning"), arguments)
    if doc.returns:
        first = doc.returns[0] if doc.returns.startswith("None") else doc.returns[0].lower()
        yield _wrapped(f"Returns {first}{doc.returns[1:]}")
    yield _errors(doc)


def _errors(doc: Docstring) -> str:
    return table(("raises", "when"), ((_code(name), said) for name, said in doc.raises.items()))


def _signature(function: Any) -> str:
    """Return the signature of a function or method as a program writes it."""
    before = ""
    if isinstance(function, classmethod):
        before, function = "@classmethod\n", function.__func__
    shown: list[str] = []
    for one in inspect.signature(function).parameters.values():
        if one.name in {"self", "cls"} or one.name.startswith("_"):
            continue
        if one.kind is one.KEYWORD_ONLY and not any(other.startswith("*") for other in shown):
            shown.append("*")
        star = "*" if one.kind is one.VAR_POSITIONAL else ""
        default = "" if one.default is one.empty else f" = {_value(one.default)}"
        shown.append(f"{star}{one.name}: {_type(one.annotation)}{default}")
    start = f"{before}{'async ' * inspect.iscoroutinefunction(function)}def {function.__name__}("
    end = f") -> {_type(inspect.get_annotations(function)['return'])}"
    if len(line := f"{start}{', '.join(shown)}{end}") <= _LINE:
        return line
    return start + "".join(f"\n    {one}," for one in shown) + f"\n{end}"


def _parameters(function: Any, doc: Docstring) -> Iterator[Field]:
    """Yield the parameters that a docstring describes."""
    if isinstance(function, classmethod):
        function = function.__func__
    for one in inspect.signature(function).parameters.values():
        if meaning := doc.named.get(one.name):
            default = _REQUIRED if one.default is one.empty else _value(one.default)
            yield Field(one.name, _type(one.annotation), default, meaning)


def _properties(public: Mapping[str, Any]) -> Iterator[Row]:
    for name, value in public.items():
        if isinstance(value, property) and value.__doc__:
            kind = inspect.get_annotations(value.fget)["return"]  # type: ignore[arg-type]
            yield _code(name), _code(_type(kind)), " ".join(docstring_of(value).paragraphs)


def _ensure(meaning: object, cls: type, name: str) -> None:
    if not meaning:
        raise LookupError(f"no docstring says what {cls.__name__}.{name} is")


def _annotated(cls: type) -> set[str]:
    return {name for one in _own_classes(cls) for name in inspect.get_annotations(one)}


def _own_classes(cls: type) -> Iterator[type]:
    return (one for one in cls.__mro__ if one.__module__.startswith("refractium"))


def _public(cls: type) -> Iterator[tuple[str, Any]]:
    for one in reversed(list(_own_classes(cls))):
        yield from (
            (name, value) for name, value in vars(one).items() if name[0] != "_" or name in _OPERATORS
        )


def _defaults(cls: type, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the name and the default of each field."""
    if issubclass(cls, msgspec.Struct):
        made = {one.name: one for one in msgspec.structs.fields(cls)}
        for name, field in made.items():
            factory = field.default_factory
            default = field.default if factory is msgspec.NODEFAULT else factory()
            yield name, _REQUIRED if field.required else _value(default)
    elif dataclasses.is_dataclass(cls):
        for one in dataclasses.fields(cls):
            given = one.default if one.default_factory is dataclasses.MISSING else one.default_factory()
            if one.name[0] != "_":
                yield one.name, _REQUIRED if given is dataclasses.MISSING else _value(given)
    else:
        given_by_name = getattr(cls, "_field_defaults", None) or vars(cls)
        for name in names:
            value = given_by_name.get(name, getattr(cls, name, None))
            if not isinstance(value, property):
                has_default = name in given_by_name or (hasattr(cls, name) and not hasattr(cls, "_fields"))
                yield name, _value(value) if has_default else _REQUIRED


def _described(kind: Any) -> tuple[str, str]:
    """Return the type and the description of a field of a Struct, if its type is annotated with them."""
    if get_origin(kind) is not Annotated:
        return "", ""
    base, meta = get_args(kind)
    bounds = "" if meta.ge is None else f", {_value(meta.ge)} to {_value(meta.le)}"
    return f"{_type(base)}{bounds}", _ended(meta.description or "")


def _type(annotation: Any) -> str:
    """Return an annotation as the code writes it, with the types that private names stand for."""
    if isinstance(annotation, ForwardRef):
        annotation = annotation.__forward_arg__
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    text = re.sub(r"^ClassVar\[(.*)\]$", r"\1", text).replace("'", '"').replace("status.Status", "Status")
    return re.sub(r"\b\w+\b", lambda word: _meant(word[0]), text)


def _meant(name: str) -> str:
    alias = _ALIASES.get(name, name)
    return alias if isinstance(alias, str) else " | ".join(map(_value, get_args(alias)))


def _value(value: Any) -> str:
    """Return a value as a program writes it."""
    match value:
        case Enum():
            text = f"{type(value).__name__}.{value.name}"
        case str():
            text = json.dumps(value)
        case int() if value >= _LONG_NUMBER:
            text = f"{value:_}"
        case Mapping():
            text = f"{{{', '.join(f'{_value(key)}: {_value(one)}' for key, one in value.items())}}}"
        case frozenset() if value:
            text = f"frozenset({{{', '.join(sorted(map(_value, value)))}}})"
        case _ if isinstance(value, msgspec.Struct) or dataclasses.is_dataclass(value):
            text = f"{type(value).__name__}()"  # a default of this project has only default values
        case _ if inspect.isfunction(value):
            text = "..."
        case _:
            text = value.__name__ if isinstance(value, type) else repr(value).replace("'", '"')
    return text


def _code(text: str) -> str:
    """Return a text as code in the cell of a table."""
    return f"`{text}`".replace("|", r"\|")


def _ended(text: str) -> str:
    """Return a text as a sentence."""
    return f"{text}." if text and not text.endswith(".") else text


def _wrapped(paragraph: str) -> str:
    return textwrap.fill(paragraph, _PAGE, break_long_words=False, break_on_hyphens=False)
