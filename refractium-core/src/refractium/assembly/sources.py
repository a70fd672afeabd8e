"""The sources of a configuration: a file, and flags, which outrank the file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from refractium.addresses.address import Address
from refractium.config import Decoded, ListenerConfig, RouteConfig, ServerConfig, Source, decode, read
from refractium.config.values import bind_address
from refractium.contract.protocol import valid_name as protocol_name
from refractium.identify.everything import ANY
from refractium.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from refractium.config.model import Listeners, Routes

DEFAULT_FILE: Final = Path("refractium.toml")
"""The configuration file in the current folder, for commands whose flags name no file."""


@dataclass(frozen=True, slots=True)
class Overrides:
    """The values of the flags on the command line, which outrank the file.

    Attributes:
        file: the configuration file. With None, Refractium reads `DEFAULT_FILE` if this file exists.
        forwards: backends of inline routes, each ``NAME=ADDR``. All addresses with one name form one route,
            which replaces the routes of this name in the file. A fallback in the file is a route of ``any``.
        server: values for keys of ``[server]``.
        disabled: ids of plugins to leave out, in addition to the ids in the file.
        plugins: the files of local plugins, in addition to the files that the file names.
        strict_plugins: whether a plugin that did not load is a problem even if no route needs the plugin.
    """

    file: Path | None = None
    forwards: Sequence[str] = ()
    server: Mapping[str, Any] = field(default_factory=dict)
    disabled: Sequence[str] = ()
    plugins: Sequence[Path] = ()
    strict_plugins: bool = False

    @property
    def inline(self) -> tuple[str, ...]:
        """The names of the inline routes."""
        return tuple(text.partition("=")[0] for text in self.forwards)


@dataclass(frozen=True, slots=True)
class Overlaid:
    """A configuration file together with the flags, which outrank the file.

    Attributes:
        decoded: the file.
        overrides: the flags.
        server: the table ``[server]``, in which the flags outrank the file.
        listeners: the listeners, each with its key path. Without ``[[listeners]]``, the only listener is the
            address in `server`.
        routes: the routes of the file, each with its key path, without the routes that flags replace; then
            the routes of the flags, each with its flag.
        problems: the mistakes in file and flags.
    """

    decoded: Decoded
    overrides: Overrides
    server: ServerConfig
    listeners: Listeners
    routes: Routes
    problems: tuple[Problem, ...]

    def problem(self, where: str, message: str, code: str | None = None) -> Problem:
        """Return a problem, or a warning with its code, at a key path of the file, a flag or a plugin."""
        if where.startswith("-f "):  # an inline route has no keys: its place is the whole flag
            return Problem(message, where.partition(".")[0], code=code)
        if where.startswith("-"):
            return Problem(message, where, code=code)
        return self.decoded.problem(where, message, code)


def file_of(overrides: Overrides) -> Path | None:
    """Return the path of the configuration file, or None if the file does not exist."""
    path = overrides.file or DEFAULT_FILE
    return path if path.exists() else None


def read_file(overrides: Overrides) -> Decoded:
    """Read and decode the configuration file.

    If no flag names a file and `DEFAULT_FILE` does not exist, decode an empty text.

    Raises:
        ConfigError: the file cannot be read, or a flag names a file that does not exist.
    """
    if overrides.file is None and not DEFAULT_FILE.exists():
        return decode(Source("", ""))
    return decode(read(overrides.file or DEFAULT_FILE))


def overlay(decoded: Decoded, overrides: Overrides) -> Overlaid:
    """Combine the file with the flags, which outrank the file.

    Mistakes raise no exception; the result contains them.
    """
    server = msgspec.structs.replace(decoded.config.server, **overrides.server)
    only = ListenerConfig(bind=server.bind, port=server.port, allow=server.allow, deny=server.deny)
    problems = [*decoded.problems, *_problems_of_place(decoded, overrides)]
    forwards = list(_inline_routes(overrides.forwards, problems))
    replaced = {route.name for _, route in forwards}
    if ANY in replaced:  # a fallback is a route of this protocol
        server = msgspec.structs.replace(server, fallback_tcp=None, fallback_udp=None)
    return Overlaid(
        decoded,
        overrides,
        server,
        decoded.listeners or [("server", only)],
        [*((path, route) for path, route in decoded.routes if route.name not in replaced), *forwards],
        tuple(problems),
    )


def _problems_of_place(decoded: Decoded, overrides: Overrides) -> Iterator[Problem]:
    """Yield the problems of ``--bind`` and ``--port``."""
    if decoded.listeners:
        for key in ("bind", "port"):
            if key in overrides.server:
                yield Problem(f"the file has [[listeners]], each with its own {key}", where=f"--{key}")
    elif "bind" in overrides.server:  # `decode` has checked the `bind` in the file
        try:
            bind_address(overrides.server["bind"])
        except ValueError as error:
            yield Problem(str(error), where=f"--bind {overrides.server['bind']}")


def _inline_routes(texts: Sequence[str], problems: list[Problem]) -> Iterator[tuple[str, RouteConfig]]:
    """Yield the routes of the flags ``-f NAME=ADDR``, each with its flag. Add mistakes to `problems`."""
    backends: dict[str, list[str]] = {}
    for text in texts:
        name, equals, written = text.partition("=")
        try:
            if not equals:
                raise ValueError("write NAME=HOST:PORT")  # noqa: TRY301
            address = Address.parse(written)
            backends.setdefault(protocol_name(name), []).append(str(address))
        except ValueError as error:
            problems.append(Problem(str(error), where=f"-f {text}"))
    for name, addresses in backends.items():
        yield f"-f {name}", RouteConfig(name=name, forward_to=tuple(addresses))
