"""Options that several commands accept, either after or before the name of the command.

This module imports only modules that load fast, because every command imports this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import rich_click as click

from refractium.kit.options import config_option

if TYPE_CHECKING:
    from collections.abc import Callable

    from refractium.assembly.sources import Overrides

F = TypeVar("F", bound="Callable[..., Any]")


class _Workers(click.ParamType[int | str]):
    """A number of processes, or ``auto``."""

    name = "workers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str | Any:
        return value if value == "auto" else click.IntRange(1, 256).convert(value, param, ctx)


_SERVING: Final = (
    click.option("-b", "--bind", metavar="HOST", help="Address to listen on.  [file, else 0.0.0.0]"),
    click.option(
        "-p",
        "--port",
        type=click.IntRange(0, 65535),
        metavar="N",
        help="Port to listen on, or 0 for any free port.  [file, else 8080]",
    ),
    config_option(),
    click.option(
        "-f",
        "--forward",
        multiple=True,
        metavar="NAME=ADDR",
        help="Route the protocol NAME to the backend ADDR; repeat the option for several backends. "
        "Replaces the routes of NAME in the file.",
    ),
    click.option(
        "--peek-timeout",
        type=click.IntRange(1, 604_800_000),
        metavar="MS",
        help="Time from accept in which to identify the protocol of a client.",
    ),
    click.option(
        "--peek-buffer",
        type=click.IntRange(16, 65536),
        metavar="BYTES",
        help="Number of first bytes in which to identify the protocol of a client.",
    ),
    click.option(
        "--max-connections",
        type=click.IntRange(1, 10_000_000),
        metavar="N",
        help="Largest number of open TCP connections.",
    ),
    click.option(
        "--max-connections-per-ip",
        type=click.IntRange(1, 10_000_000),
        metavar="N",
        help="Largest number of open TCP connections from one client address.",
    ),
    click.option(
        "--workers",
        type=_Workers(),
        metavar="N",
        help="Number of processes that serve clients, or auto for one process on each processor. "
        " [file, else 1]",
    ),
    click.option(
        "--no-hot-reload",
        is_flag=True,
        default=None,
        help="Apply a changed configuration file only after SIGHUP.",
    ),
    click.option(
        "--disable-plugin",
        multiple=True,
        metavar="ID",
        help="Do not import the plugin with this ID; repeat the option for several plugins.",
    ),
    click.option(
        "--plugin",
        "plugins",
        multiple=True,
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Load the plugin in this Python file; repeat the option for several files.",
    ),
    click.option(
        "--strict-plugins", is_flag=True, default=None, help="Refuse to start if a plugin is broken."
    ),
    click.option(
        "--log-format",
        type=click.Choice(["rich", "plain", "json"]),
        help="Format of the log.  [rich on a terminal, else plain]",
    ),
    click.option(
        "--debug", is_flag=True, default=None, help="Log at level DEBUG, and print the tracebacks of errors."
    ),
)


def serving_options(command: F) -> F:
    """Add the options for serving to a command."""
    for option in reversed(_SERVING):
        command = option(command)
    return command


_SERVER_KEYS: Final = {
    "bind": "bind",
    "port": "port",
    "peek_timeout": "peek_timeout_ms",
    "peek_buffer": "peek_buffer_size",
    "max_connections": "max_connections",
    "max_connections_per_ip": "max_connections_per_ip",
    "workers": "workers",
}
"""The key of ``[server]`` that each flag sets."""


@dataclass(frozen=True, slots=True)
class Flags:
    """The values of options on the command line.

    Attributes:
        given: the value of each option, by the name of the option. An option that was not given is absent, or
            is None or empty.
    """

    given: dict[str, Any]

    @classmethod
    def of(cls, context: click.Context) -> Flags:
        """Return the options before and after the command's name. Options after the name take precedence."""
        before: Flags | None = context.find_object(Flags)
        merged = dict(before.given) if before is not None else {}
        for name, value in context.params.items():
            if isinstance(value, tuple):
                merged[name] = (*merged.get(name, ()), *value)
            elif value is not None:
                merged[name] = value
        return cls(merged)

    @property
    def overrides(self) -> Overrides:
        """The values from the command line that take precedence over the configuration file."""
        from refractium.assembly.sources import Overrides  # noqa: PLC0415 - only some commands need it

        given = self.given
        server = {key: given[flag] for flag, key in _SERVER_KEYS.items() if flag in given}
        if given.get("no_hot_reload"):
            server["hot_reload"] = False
        return Overrides(
            given.get("config"),
            given.get("forward", ()),
            server,
            disabled=given.get("disable_plugin", ()),
            plugins=given.get("plugins", ()),
            strict_plugins=bool(given.get("strict_plugins")),
        )
