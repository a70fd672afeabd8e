"""Decoding of a text into a `Config`: the first step from a configuration file to the engine.

`decode` decodes each key separately. It reports an invalid key, leaves the key out, and continues with the
next key. So `decode` finds all mistakes at once.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final

import msgspec
import tomli

from refractium.addresses.address import Address
from refractium.addresses.networks import parse_network
from refractium.config.model import (
    FALLBACKS,
    CheckConfig,
    Config,
    HealthConfig,
    HookConfig,
    ListenerConfig,
    LogConfig,
    MetricsConfig,
    PatternTable,
    PluginsConfig,
    RouteConfig,
    ServerConfig,
    pattern,
)
from refractium.config.values import (
    alpn_pattern,
    bind_address,
    control_path,
    metrics_address,
)
from refractium.contract import MAX_BYTES_LIMIT, MetadataKind, Transport
from refractium.contract.protocol import valid_name
from refractium.identify.patterns import compile_patterns
from refractium.problems import Problem, in_order, in_toml_words, key_path, suggestion
from refractium.routing import Member
from refractium.routing.conditions import condition_pattern
from refractium.routing.names import NameRegex, request_host, server_name
from refractium.routing.route import SHORT_FORMS, backend_address
from refractium.system.users import gid_of, uid_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from refractium.config.model import Listeners, Routes
    from refractium.config.source import Source
    from refractium.problems import Finding

MAX_FINDINGS: Final = 100
"""Largest number of findings for one file; a file with more mistakes is probably not a configuration."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """The result of `decode`: the valid content of a text as typed values, and the mistakes in the text.

    Attributes:
        source: the text.
        config: the valid part of the content. It contains each route with a valid name, even a route without
            a backend. If all patterns of a route are invalid, ``patterns`` of this route is empty.
        listeners: the listeners of ``config.listeners``, each with its key path, such as ``listeners[1]``.
        routes: the routes of ``config.protocols``, each with its key path, such as ``protocols[1]``.
        problems: the mistakes in the text, in the order of the text.
        kept: the numbers that the valid entries of a list have in the text, by the key path of the list.
            Lists without an invalid entry are absent.
    """

    source: Source
    config: Config
    listeners: Listeners
    routes: Routes
    problems: tuple[Problem, ...]
    kept: Mapping[str, tuple[int, ...]]

    def problem(self, where: str, message: str, code: str | None = None) -> Problem:
        """Return a problem, or a warning, of a later step, with its place in the text.

        Args:
            where: the key path, in which the number of an entry counts only the valid entries of the list.
            message: see `Problem`.
            code: see `Problem`.
        """
        for path, numbers in self.kept.items():
            if where.startswith(f"{path}["):
                number, _, rest = where.removeprefix(f"{path}[").partition("]")
                where = f"{path}[{numbers[int(number)]}]{rest}"
        return self.source.problem(where, message, code)


@dataclass(frozen=True, slots=True)
class _Findings:
    """A list of at most `MAX_FINDINGS` findings, and `Decoded.kept`."""

    found: list[Finding] = field(default_factory=list)
    kept: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def is_full(self) -> bool:
        return len(self.found) >= MAX_FINDINGS

    def add(self, where: str, message: str) -> None:
        if not self.is_full:
            self.found.append((where, message))


def decode(source: Source) -> Decoded:
    """Decode the text of a configuration. Mistakes raise no exception; the result contains them."""
    document: dict[str, Any] = {}
    unreadable: list[Problem] = []
    try:
        document = tomli.loads(source.text)
    except tomli.TOMLDecodeError as error:
        unreadable.append(Problem(_in_toml(error.msg), source=source.name, line=error.lineno))
    except RecursionError:
        unreadable.append(Problem("nested too deeply", source=source.name))
    except ValueError:  # Python limits the digits of a number (sys.set_int_max_str_digits)
        unreadable.append(Problem("a number has too many digits", source=source.name))
    findings = _Findings()
    listeners, routes = _listeners(document, findings), _routes(document, findings)
    config = _config(document, listeners, routes, findings)
    problems = unreadable + [source.problem(*finding) for finding in findings.found]
    return Decoded(source, config, listeners, routes, in_order(problems), findings.kept)


def _in_toml(message: str) -> str:
    """Return a message of tomli with its keys in the notation of TOML, not as tuples of Python."""
    return _KEY.sub(lambda found: "'" + ".".join(ast.literal_eval(found[0])) + "'", message)


_KEY: Final = re.compile(r"""\((?:'[^']*'|"[^"]*")(?:, (?:'[^']*'|"[^"]*"))*,?\)""")


def _config(document: dict[str, Any], listeners: Listeners, routes: Routes, findings: _Findings) -> Config:
    _find_unknown(document, (*Config.__struct_fields__, *FALLBACKS), "", findings)
    return Config(
        server=_decode_server(document, findings),
        listeners=tuple(listener for _, listener in listeners),
        protocols=tuple(route for _, route in routes),
        log=LogConfig(**_decode_fields(LogConfig, _table(document, "log", findings), "log", findings)),
        metrics=_decode_metrics(_table(document, "metrics", findings), findings),
        plugins=_decode_plugins(_table(document, "plugins", findings), findings),
        check=CheckConfig(
            **_decode_fields(CheckConfig, _table(document, "check", findings), "check", findings)
        ),
    )


def _listeners(document: dict[str, Any], findings: _Findings) -> Listeners:
    return [
        (path, listener)
        for index, table in enumerate(_tables(document, "listeners", findings))
        if (listener := _decode_listener(table, path := f"listeners[{index}]", findings)) is not None
    ]


def _routes(document: dict[str, Any], findings: _Findings) -> Routes:
    return [
        (path, route)
        for index, table in enumerate(_tables(document, "protocols", findings))
        if (route := _decode_route(table, path := f"protocols[{index}]", findings)) is not None
    ]


def _decode_server(document: dict[str, Any], findings: _Findings) -> ServerConfig:
    table = _table(document, "server", findings)
    values = _decode_fields(ServerConfig, table, "server", findings)
    outside: dict[str, Any] = {key: document[key] for key in FALLBACKS if key in document}
    for key in outside.keys() & table.keys():
        findings.add(key, "also set in [server]: remove one of the two")
    if document.get("listeners"):
        for key in ("bind", "port", "allow", "deny"):
            if key in table:
                findings.add(f"server.{key}", "the file has [[listeners]]: move this key into each of them")
    if "group" in table and "user" not in table:
        findings.add("server.group", "a group needs a user: add user, or leave group out")
    values = _decode_fields(ServerConfig, outside, "", findings) | values
    server = ServerConfig(**values)
    try:
        _ = server.identity
    except ValueError as error:
        findings.add("server.user", str(error))
    return server


def _decode_listener(table: Any, path: str, findings: _Findings) -> ListenerConfig | None:
    if not isinstance(table, dict):
        findings.add(path, "expected a table: write [[listeners]] above the keys of each listener")
        return None
    values = _decode_fields(ListenerConfig, table, path, findings)
    if "port" not in table:
        findings.add(path, "no port: say on which port to listen")
    return ListenerConfig(**values) if "port" in values else None


def _decode_route(table: Any, path: str, findings: _Findings) -> RouteConfig | None:
    if not isinstance(table, dict):
        findings.add(path, "expected a table: write [[protocols]] above the keys of each route")
        return None
    values = _decode_fields(RouteConfig, table, path, findings)
    if "name" not in table:
        findings.add(path, "no name: say which protocol the route is for")
    if "forward_to" not in table and "action" not in table:
        findings.add(path, "no forward_to: say where the clients of the route go")
    if "name" not in values:
        return None
    if "patterns" in table:  # even invalid patterns show that the name is not an installed protocol
        values.setdefault("patterns", ())
    return RouteConfig(**values)


def _decode_metrics(table: dict[str, Any], findings: _Findings) -> MetricsConfig:
    """Decode ``[metrics]``, whose `bind` contains a port, unlike the `bind` of ``[server]``."""
    _find_unknown(table, MetricsConfig.__struct_fields__, "metrics", findings)
    where = "metrics.hosts"
    hosts = _convert(table.get("hosts", ()), tuple[str, ...], where, findings)
    if hosts is _INVALID:
        hosts = ()
    checked = [
        _check_one(server_name, host, f"{where}[{number}]", findings) for number, host in enumerate(hosts)
    ]
    hosts = tuple(host for host in checked if host is not _INVALID)
    if "bind" not in table:
        return MetricsConfig(hosts=hosts)
    where = "metrics.bind"
    bind = _check_one(metrics_address, _convert(table["bind"], str, where, findings), where, findings)
    return MetricsConfig(bind=None if bind is _INVALID else bind, hosts=hosts)


_PLUGINS_KEYS: Final = ("disable", "paths")


def _decode_plugins(table: dict[str, Any], findings: _Findings) -> PluginsConfig:
    """Decode ``[plugins]``. A later step checks the tables of plugins, when the plugins are known."""
    settings = {
        key: value for key, value in table.items() if isinstance(value, dict) and key not in _PLUGINS_KEYS
    }
    rest = {key: value for key, value in table.items() if key not in settings}
    _find_unknown(rest, _PLUGINS_KEYS, "plugins", findings)
    known = {key: value for key, value in rest.items() if key in _PLUGINS_KEYS}
    return PluginsConfig(**_decode_fields(PluginsConfig, known, "plugins", findings), settings=settings)


def _table(document: dict[str, Any], key: str, findings: _Findings) -> dict[str, Any]:
    table = document.get(key, {})
    if isinstance(table, dict):
        return table
    findings.add(key, f"expected one table: write [{key}] above its keys")
    return {}


def _tables(document: dict[str, Any], key: str, findings: _Findings) -> list[Any]:
    tables = document.get(key, [])
    if isinstance(tables, list):
        return tables
    findings.add(key, f"expected a list of tables: write [[{key}]], with two brackets on each side")
    return []


def _decode_fields(
    struct: type[msgspec.Struct], table: Mapping[str, Any], path: str, findings: _Findings
) -> dict[str, Any]:
    """Return the decoded values of the valid keys. Add unknown and invalid keys to the findings."""
    _find_unknown(table, struct.__struct_fields__, path, findings)
    values = {}
    for info in _fields(struct):
        if info.name not in table:
            continue
        where, value = key_path(path, info.name), table[info.name]
        checked: Any
        if (entry := _ENTRIES.get(info.name)) is not None and isinstance(value, list):
            checked = _keep(
                [entry(one, f"{where}[{at}]", findings) for at, one in enumerate(value)], where, findings
            )
        elif info.name in _ALONE and isinstance(value, dict):
            checked = _ENTRIES[info.name](value, where, findings)
        elif info.name in _TABLES and isinstance(value, dict):
            checked = _TABLES[info.name](value, where, findings)
        else:
            checked = _check(info.name, _convert(value, info.type, where, findings), where, findings)
        if checked is not _INVALID:
            values[info.name] = checked
    return values


_fields = cache(msgspec.structs.fields)
"""The fields of a struct, cached because msgspec evaluates the annotations in each call."""


def _decode_pattern(written: Any, where: str, findings: _Findings) -> Any:
    if not isinstance(written, dict):
        return _check_one(_compile, _convert(written, str, where, findings), where, findings)
    values = _decode_fields(PatternTable, written, where, findings)
    if values.keys() != written.keys():
        return _INVALID
    return _check_one(_compile, PatternTable(**values), where, findings)


def _decode_member(written: Any, where: str, findings: _Findings) -> Any:
    if not isinstance(written, dict):
        return _check_one(Address.parse, _convert(written, str, where, findings), where, findings)
    values = _decode_fields(Member, written, where, findings)
    if "address" not in written:
        findings.add(where, "no address: say where the backend is")
    return Member(**values) if values.keys() == written.keys() and "address" in values else _INVALID


def _decode_name(reader: Callable[[Any], object], written: Any, where: str, findings: _Findings) -> Any:
    if not isinstance(written, dict):
        return _check_one(reader, _convert(written, str, where, findings), where, findings)
    values = _decode_fields(NameRegex, written, where, findings)
    if "regex" not in written:
        findings.add(where, "no regex: write { regex = '...' }, or the name in quotes")
    if values.keys() != written.keys() or "regex" not in written:
        return _INVALID
    return _check_one(reader, NameRegex(**values), where, findings)


def _decode_match(written: dict[str, Any], where: str, findings: _Findings) -> Any:
    """Decode a table ``match``. A later step checks the keys and their kinds, when the protocol is known."""
    if not written:
        findings.add(where, "is empty")
    values = {}
    for key, value in written.items():
        place = key_path(where, key)
        entry = _ENTRIES[key] if key in SHORT_FORMS else _decode_condition
        if isinstance(value, list):
            several = [entry(one, f"{place}[{at}]", findings) for at, one in enumerate(value)]
            values[key] = _keep(several, place, findings)
        else:
            values[key] = entry(value, place, findings)
    return {key: value for key, value in values.items() if value is not _INVALID} or _INVALID


def _decode_condition(written: Any, where: str, findings: _Findings) -> Any:
    """Decode one entry of ``match`` whose kind is not known yet."""
    if isinstance(written, dict):
        return _decode_name(_any_pattern, written, where, findings)
    return _check_one(_any_pattern, _convert(written, str | bool, where, findings), where, findings)


_any_pattern = partial(condition_pattern, MetadataKind.ANY)


def _decode_hook(written: Any, where: str, findings: _Findings) -> Any:
    """Decode one entry of ``hooks``. A later step checks all keys except the name, when the hook is known."""
    if not isinstance(written, dict):
        return _check_one(valid_name, _convert(written, str, where, findings), where, findings)
    name = _decode_fields(
        HookConfig, {key: written[key] for key in ("name",) if key in written}, where, findings
    )
    if "name" not in written:
        findings.add(where, "no name: say which hook it is")
    options = {key: value for key, value in written.items() if key != "name"}
    return HookConfig(**name, options=options) if name else _INVALID


def _decode_health(written: dict[str, Any], where: str, findings: _Findings) -> Any:
    """Decode a table ``health``. A later step, which knows the keys of each kind, checks the other keys."""
    shared = [key for key in HealthConfig.__struct_fields__ if key != "options"]
    values = _decode_fields(
        HealthConfig, {key: written[key] for key in shared if key in written}, where, findings
    )
    options = {key: value for key, value in written.items() if key not in shared}
    if "kind" not in written:
        findings.add(where, "no kind: say how the backends are checked, such as kind = 'tcp'")
    return HealthConfig(**values, options=options) if "kind" in values else _INVALID


_ENTRIES: Final[Mapping[str, Callable[[Any, str, _Findings], Any]]] = {
    "alpn": partial(_decode_name, alpn_pattern),
    "forward_to": _decode_member,
    "hooks": _decode_hook,
    "host": partial(_decode_name, request_host),
    "patterns": _decode_pattern,
    "sni": partial(_decode_name, server_name),
}
"""For each key whose list may contain tables: the function that decodes one entry of the list."""
_ALONE: Final = frozenset({"alpn", "forward_to", "host", "sni"})
"""The keys of `_ENTRIES` whose value may be a single table instead of a list."""
_TABLES: Final[Mapping[str, Callable[[dict[str, Any], str, _Findings], Any]]] = {
    "health": _decode_health,
    "match": _decode_match,
}
"""For each key whose value is a table with further keys: the function that decodes the table."""


def _compile(written: str | PatternTable) -> None:
    """Raise `ValueError` if a pattern is invalid by itself.

    A later step checks whether the pattern fits into ``peek_buffer_size``, when the size is known.
    """
    compile_patterns("pattern", Transport.TCP, (pattern(written),), MAX_BYTES_LIMIT)


_CHECKS: Final[Mapping[str, Callable[[Any], object]]] = {
    "address": Address.parse,
    "allow": parse_network,
    "alpn": alpn_pattern,
    "bind": bind_address,
    "client": parse_network,
    "control": control_path,
    "deny": parse_network,
    "fallback_tcp": Address.parse,
    "fallback_udp": partial(backend_address, transport=Transport.UDP),
    "forward_to": Address.parse,
    "group": gid_of,
    "host": request_host,
    "id": valid_name,
    "name": valid_name,
    "proxy_protocol_from": parse_network,
    "routes": valid_name,
    "sni": server_name,
    "user": uid_of,
}
_HINTS: Final[Mapping[str, str]] = {
    "action": "write 'reject' or 'reset', or leave it out and say with forward_to where clients go",
    "proxy_protocol": "write 'v1' or 'v2', or leave it out",
    "transport": "write 'tcp' or 'udp', or leave it out for every transport of the protocol",
}
_INVALID: Final = object()
"""A placeholder for an invalid value. The findings contain the mistake, and the result omits the value."""


def _convert(value: Any, type_: Any, where: str, findings: _Findings) -> Any:
    try:
        return msgspec.convert(value, type_)
    except msgspec.ValidationError as error:
        place, message = in_toml_words(error)
        findings.add(where + place, _HINTS.get(where.rpartition(".")[2], message))
        return _INVALID


def _check(key: str, decoded: Any, where: str, findings: _Findings) -> Any:
    reader = _CHECKS.get(key)
    if reader is None or decoded is _INVALID:
        return decoded
    if isinstance(decoded, tuple):
        checked = [_check_one(reader, one, f"{where}[{at}]", findings) for at, one in enumerate(decoded)]
        return _keep(checked, where, findings)
    return _check_one(reader, decoded, where, findings)


def _keep(checked: list[Any], where: str, findings: _Findings) -> Any:
    if not checked:
        findings.add(where, "is empty")
    numbers = tuple(number for number, one in enumerate(checked) if one is not _INVALID)
    if len(numbers) < len(checked):
        findings.kept[where] = numbers
    return tuple(checked[number] for number in numbers) or _INVALID


def _check_one(reader: Callable[[Any], object], decoded: Any, where: str, findings: _Findings) -> Any:
    if decoded is _INVALID:
        return decoded
    try:
        reader(decoded)
    except ValueError as error:
        findings.add(where, str(error))
        return _INVALID
    return decoded


def _find_unknown(table: Iterable[str], known: Collection[str], path: str, findings: _Findings) -> None:
    for key in table:
        if key in known:
            continue
        if findings.is_full:
            return
        if key in ServerConfig.__struct_fields__:
            hint = ": it belongs in [server]"
        elif key in RouteConfig.__struct_fields__:
            hint = ": it belongs in [[protocols]]"
        elif key in ListenerConfig.__struct_fields__:
            hint = ": it belongs in [[listeners]]"
        else:
            hint = suggestion(key, known)
            if not hint and known == RouteConfig.__struct_fields__:
                hint = (
                    f": if the protocol has this metadata key, write match = {{ {key_path('', key)} = ... }}"
                )
        findings.add(key_path(path, key), f"unknown key{hint}")
