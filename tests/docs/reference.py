"""The tables of the reference that come from the code.

A page has a table between two comments, ``<!-- table: KIND NAMES -->`` and ``<!-- end -->``. The code gives
the rows of the table and their cells. Where the page explains more than the code does, the last column and
the order of the rows are written by hand. Between ``<!-- api: NAME -->`` and ``<!-- end -->``, a page has the
signature, the fields and the errors of a public name; ``<!-- api: NAME but X Y -->`` leaves out the private
attributes X and Y. ``python tests/docs/reference.py`` writes tables and entries anew.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import tomllib
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

sys.path.insert(0, str(Path(__file__).parents[1]))

from docs import api
from docs.docstrings import said_of
from docs.entries import entries
from refractium.assembly.lint.rules import RULES
from refractium.audit import SECTIONS
from refractium.backends.checks import CHECKS
from refractium.cli.app import app
from refractium.config import json_schema
from refractium.contract import Transport, hookspecs
from refractium.errors import ExitStatus
from refractium.observe import status
from refractium.observe.metrics import families
from refractium.routing import BALANCERS
from refractium_hooks_pcap.settings import PcapSettings
from support.pages import pages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    Row = Sequence[str]

KNOWN_PLUGINS: Final = Path(__file__).parents[2] / "docs/known-plugins.toml"
COMMAND: Final = "uv run python tests/docs/reference.py"
_GENERATED: Final = re.compile(r"(<!-- (table|api): (.+?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
_LINK: Final = re.compile(r"\[(.*?)\]\(.*?\)")


def current(page: str) -> str:
    """Return the text of a page in which each table and each entry has the text that the code gives."""
    return _GENERATED.sub(_anew, page)


def _anew(found: re.Match[str]) -> str:
    begin, what, asked, before, end = found.groups()
    if what == "table":
        return f"{begin}{_table(asked, before)}{end}"
    name, _, but = asked.partition(" but ")
    return f"{begin}{api.entry(name, but.split())}{end}"


def _table(asked: str, before: str) -> str:
    kind, *names = asked.split()
    header, by_hand, rows = _KINDS[kind]
    rows_before = [_cells(line) for line in before.splitlines()[2:]]
    written = {_key(cells): cells[-1] for cells in rows_before if by_hand}
    order = [*written]
    found = sorted(
        rows(*names), key=lambda cells: order.index(key) if (key := _key(cells)) in written else len(order)
    )
    return api.table(header, [[*cells[:-1], written.get(_key(cells), cells[-1])] for cells in found])


def _key(cells: Row) -> str:
    """Return the name in the first cell of a row, without its link."""
    return _LINK.sub(r"\1", cells[0])


def _cells(line: str) -> Row:
    return re.split(r"(?<!\\) *\| *", line.strip().strip("|").strip())


def _sentence(text: str | None) -> str:
    """Return a docstring of the code as one cell of a table."""
    one_line = " ".join((text or "").replace("``", "`").split())
    return one_line.replace("|", r"\|")


# The configuration


def _keys(struct: str) -> Iterator[Row]:
    """Return the keys of a struct: of the configuration, of a kind of health check, or of the pcap mirror."""
    definitions = json_schema()["$defs"]
    own: dict[str, type[msgspec.Struct]] = {kind: check.settings for kind, check in CHECKS.items()}
    own["pcap"] = PcapSettings
    if struct in own:
        definitions = {struct: msgspec.json.schema(own[struct])["$defs"][own[struct].__name__]}
    shown = definitions[struct]
    for key, one in shown["properties"].items():
        default = "required" if key in shown["required"] else _default(one.get("default"))
        yield f"`{key}`", _type(one), default, _sentence(one.get("description"))


def _default(value: Any) -> str:
    return "none" if value in (None, "") or value == [] else f"`{json.dumps(value)}`"


def _type(schema: dict[str, Any], *, many: bool = False) -> str:
    """Return the values that a key takes, in words: ``integer, 0 to 65535``."""
    if "anyOf" in schema:
        kinds = [one for one in schema["anyOf"] if one.get("type") != "null"]
        kinds.sort(key=lambda one: one.get("type") == "array")
        return " or ".join(_type(one, many=many) for one in kinds)
    if schema.get("$ref", "").endswith("/Transport"):
        return _type({"enum": list(Transport)})
    if "enum" in schema:
        return " or ".join(f"`{json.dumps(one)}`" for one in schema["enum"])
    if "$ref" in schema or schema["type"] == "object":
        return "tables" if many else "table"
    if schema["type"] == "array":
        return f"list of {_type(schema['items'], many=True)}"
    bounds = f", {schema['minimum']} to {schema['maximum']}" if "minimum" in schema else ""
    return f"{schema['type']}{'s' if many else ''}{bounds}"


# The command line


def _commands(group: click.Group = app, before: str = "") -> Iterator[Row]:
    with click.Context(group) as context:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            if isinstance(command, click.Group):
                yield from _commands(command, f"{name} ")
            elif command is not None:
                arguments = [one for one in command.params if isinstance(one, click.Argument)]
                words = ["refractium", before + name, *(one.make_metavar(context) for one in arguments)]
                yield f"`{_sentence(' '.join(words))}`", _sentence(command.help)


def _options(*names: str) -> Iterator[Row]:
    command: click.Command | None = app
    for name in names:
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(command), name)
    assert command is not None
    for one in command.params:
        if isinstance(one, click.Option):
            yield ", ".join(f"`{flag}`" for flag in one.opts), _argument(one), _sentence(one.help)


def _exits() -> Iterator[Row]:
    for one in ExitStatus:
        yield str(one.value), _sentence(said_of(ExitStatus)[one.name]), ""


def _argument(option: click.Option) -> str:
    if option.is_flag:
        return ""
    kind = option.type
    if isinstance(kind, click.Choice):
        return ", ".join(f"`{one}`" for one in kind.choices)
    bounds = f", {kind.min} to {kind.max}" if isinstance(kind, click.IntRange) else ""
    return f"{option.metavar}{bounds}"


# Metrics


def _metrics() -> Iterator[Row]:
    now = datetime.now(UTC)
    tally = status.HookTally(0, 0, 0, 0, 0, 0)
    tcp = status.TcpStatus(0, {}, 0, 0, 0, {}, 0.0, ((1.0, 0),), {}, ())
    udp = status.UdpStatus(0, {}, 0, 0, {}, 0, 0, {}, ())
    hook = status.HookStatus("", "", "", 0, tally, tally)
    worker = status.WorkerStatus(1, 1, now, 0, 0)
    everything = status.Status("", 1, now, now, 1, 0, None, (), (), tcp, udp, (hook,), (worker,))
    for family in families(everything):
        labels = family._labelnames or family.samples[0].labels.keys() - {"le"}  # type: ignore[attr-defined]
        suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
        kind = {"info": "gauge"}.get(family.type, family.type)
        listed = ", ".join(f"`{label}`" for label in labels)
        yield f"`{family.name}{suffix}`", kind, listed, _sentence(family.documentation)


# Plugins and the library


def _hookspecs() -> Iterator[Row]:
    for name, function in inspect.getmembers(hookspecs, inspect.isfunction):
        if name.startswith("refractium_"):
            returns = inspect.get_annotations(function)["return"]
            yield f"`{name}()`", f"`{returns}`", _sentence(inspect.getdoc(function))


def _known_plugins() -> Iterator[Row]:
    for one in tomllib.loads(KNOWN_PLUGINS.read_text("utf-8"))["plugins"]:
        package = f"`{one['distribution']}`"
        yield (
            f"`{one['id']}`",
            one["kind"],
            f"[{package}]({one['url']})" if "url" in one else package,
            one["summary"],
        )


def _names(module: str) -> Iterator[Row]:
    home = import_module(module)
    for name in sorted(home.__all__, key=str.lower):
        value = getattr(home, name)
        kind = "class" if inspect.isclass(value) else "function" if inspect.isroutine(value) else "value"
        doc = inspect.getdoc(value) if kind != "value" else ""
        yield f"[`{name}`]({entries()[name]})", kind, _sentence((doc or "").partition("\n\n")[0])


def _attributes(path: str) -> Iterator[Row]:
    return api.attributes(api.fields(api.named(path)))


def _findings(*section: str) -> Iterator[Row]:
    for rule in SECTIONS[" ".join(section)]:
        yield f"`{rule.code}`", _sentence(rule.expected), _sentence(rule.remedy)


def _kinds_of_checks() -> Iterator[Row]:
    for name, check in CHECKS.items():
        yield f"`{name}`", ", ".join(sorted(one.upper() for one in check.transports)), ""
    yield "`none`", ", ".join(one.upper() for one in Transport), ""


def _balancers() -> Iterator[Row]:
    for name, balancer in BALANCERS.items():
        yield f"`{name}`", _sentence(inspect.getdoc(balancer))


def _rules() -> Iterator[Row]:
    for rule in RULES.values():
        yield f"`{rule.code}`", _capital(rule.finds), _capital(rule.remedy)


def _capital(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


_KINDS: Final[dict[str, tuple[Row, bool, Callable[..., Iterable[Row]]]]] = {
    "keys": (("key", "type", "default", "meaning"), True, _keys),
    "commands": (("command", "meaning"), False, _commands),
    "options": (("option", "value", "meaning"), False, _options),
    "exits": (("code", "meaning", "examples"), True, _exits),
    "metrics": (("metric", "type", "labels", "meaning"), True, _metrics),
    "hookspecs": (("function", "returns", "meaning"), False, _hookspecs),
    "known_plugins": (("id", "kind", "package", "purpose"), False, _known_plugins),
    "attributes": (("attribute", "type", "meaning"), False, _attributes),
    "constants": (("name", "value", "meaning"), False, api.constants),
    "names": (("name", "kind", "meaning"), True, _names),
    "findings": (("code", "rule", "remedy"), False, _findings),
    "checks": (("kind", "transports", "a backend is up if it"), True, _kinds_of_checks),
    "rules": (("code", "Refractium warns about", "what to do"), False, _rules),
    "balancers": (("balance", "backend that gets the client"), True, _balancers),
}
"""Header, whether the last column is written by hand, and rows, for each kind of table."""


def main() -> None:
    for page in pages():
        text = page.read_text("utf-8")
        if (new := current(text)) != text:
            page.write_text(new, "utf-8")
            sys.stdout.write(f"{page}\n")


if __name__ == "__main__":
    main()
