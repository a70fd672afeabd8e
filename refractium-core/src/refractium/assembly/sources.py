"""The sources of a configuration: a file, and flags, which outrank the file."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import tomli

from refractium.addresses.address import Address
from refractium.assembly import check
from refractium.config.decode import MAX_FINDINGS, decode
from refractium.config.load import Loaded, Source, problem_at, read
from refractium.config.model import RouteConfig, listeners_of
from refractium.config.values import bind_address, protocol_name
from refractium.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

DEFAULT_FILE: Final = Path("refractium.toml")
"""The configuration file in the current folder, if no flag names another."""


@dataclass(frozen=True, slots=True)
class Overrides:
    """The values of the flags on the command line, which outrank the file.

    Attributes:
        file: the configuration file. With None, `DEFAULT_FILE` is read if it exists.
        forwards: inline routes, each ``NAME=ADDR``. All backends of one name make one route, which replaces
            the routes of that name in the file.
        server: values for keys of ``[server]``.
        disabled: ids of plugins to leave out, in addition to those in the file.
        strict_plugins: whether a plugin that did not load is a problem even if no route needs it.
    """

    file: Path | None = None
    forwards: Sequence[str] = ()
    server: Mapping[str, Any] = field(default_factory=dict)
    disabled: Sequence[str] = ()
    strict_plugins: bool = False


def file_of(overrides: Overrides) -> Path | None:
    """Return the path of the configuration file, or None if there is no such file."""
    path = overrides.file or DEFAULT_FILE
    return path if path.exists() else None


def read_sources(overrides: Overrides) -> Loaded:
    """Read the configuration file. Return an empty configuration if no file is named and there is none.

    Raises:
        ConfigError: the file cannot be read, or a flag names a file that does not exist.
    """
    if overrides.file is None and not DEFAULT_FILE.exists():
        return parse(Source("", ""))
    return load(overrides.file or DEFAULT_FILE)


def problems_of_place(loaded: Loaded, overrides: Overrides) -> Iterator[Problem]:
    """Yield the problems of ``--bind`` and ``--port``."""
    if loaded.config.listeners:
        for key in ("bind", "port"):
            if key in overrides.server:
                yield Problem(f"the file has [[listeners]], each with its own {key}", where=f"--{key}")
    elif "bind" in overrides.server:  # decoding has checked the bind of the file
        try:
            bind_address(overrides.server["bind"])
        except ValueError as error:
            yield Problem(str(error), where=f"--bind {overrides.server['bind']}")


def inline_routes(texts: Sequence[str], problems: list[Problem]) -> Iterator[tuple[str, RouteConfig]]:
    """Yield the routes of the flags ``-f NAME=ADDR``, each with its flag. Add mistakes to `problems`."""
    backends: dict[str, list[str]] = {}
    for text in texts:
        name, equals, address = text.partition("=")
        try:
            if not equals:
                raise ValueError("write NAME=HOST:PORT")  # noqa: TRY301
            backends.setdefault(protocol_name(name), []).append(str(Address.parse(address)))
        except ValueError as error:
            problems.append(Problem(str(error), where=f"-f {text}"))
    for name, addresses in backends.items():
        yield f"-f {name}", RouteConfig(name=name, forward_to=tuple(addresses))


def load(path: Path) -> Loaded:
    """Read and parse a file. The result has the mistakes inside of the file.

    Raises:
        ConfigError: the file cannot be read.
    """
    return parse(read(path))


def parse(source: Source) -> Loaded:
    """Decode and check a text. Mistakes raise nothing: the result has them."""
    problems: list[Problem] = []
    document: dict[str, Any] = {}
    try:
        document = tomli.loads(source.text)
    except tomli.TOMLDecodeError as error:
        problems.append(Problem(error.msg, source=source.name, line=error.lineno))
    except RecursionError:
        problems.append(Problem("nested too deeply", source=source.name))
    except ValueError:  # Python limits the digits of a number (sys.set_int_max_str_digits)
        problems.append(Problem("a number has too many digits", source=source.name))
    decoded = decode(document)
    server = decoded.config.server
    listeners = listeners_of(decoded.config, server)
    found = check.problems(server, listeners, decoded.sound_routes)
    findings = [*decoded.findings, *islice(found, MAX_FINDINGS)]
    problems += (problem_at(source, where, message) for where, message in findings)
    problems.sort(key=lambda problem: problem.line or 0)
    warnings = () if problems else check.warnings(server, listeners, decoded.routes)
    return Loaded(
        source,
        decoded.config,
        decoded.routes,
        decoded.sound_routes,
        tuple(problems),
        tuple(problem_at(source, where, message) for where, message in warnings),
    )
