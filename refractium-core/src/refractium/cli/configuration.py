"""From flags to a configuration: what the commands that need one share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from refractium.assembly import DEFAULT_FILE, Assembly, Overrides, assemble, read
from refractium.plugins import Plugins, load_plugins

if TYPE_CHECKING:
    from pathlib import Path

    from refractium.cli.options import Flags
    from refractium.config import Loaded

_SERVER_KEYS: Final = {
    "bind": "bind",
    "port": "port",
    "peek_timeout": "peek_timeout_ms",
    "peek_buffer": "peek_buffer_size",
    "max_connections": "max_connections",
    "max_connections_per_ip": "max_connections_per_ip",
    "workers": "workers",
}
"""Flags that stand for a key of ``[server]``."""


def overrides(flags: Flags) -> Overrides:
    """What was given and comes before the file."""
    server = {key: flags.given[flag] for flag, key in _SERVER_KEYS.items() if flag in flags.given}
    if flags.given.get("no_hot_reload"):
        server["hot_reload"] = False
    return Overrides(flags.given.get("config"), flags.given.get("forward", ()), server)


def plugins(flags: Flags, loaded: Loaded | None) -> Plugins:
    """Load what flags, file and environment do not disable."""
    by_file = loaded.config.plugins.disable if loaded is not None else ()
    return load_plugins((*by_file, *flags.given.get("disable_plugin", ())))


def file(flags: Flags) -> Path | None:
    """The configuration file, if there is one."""
    path: Path = flags.given.get("config") or DEFAULT_FILE
    return path if path.exists() else None


def engine_arguments(assembled: Assembly) -> dict[str, Any]:
    """What `Refractium` and `Refractium.apply` take."""
    server = assembled.server
    return {
        "tcp": assembled.tcp,
        "udp": assembled.udp,
        "fallback_tcp": server.fallback_tcp or (),
        "fallback_udp": server.fallback_udp or (),
        "settings": server,
        "hooks": assembled.hooks,
        "listeners": {one.name: assembled.rules(one) for one in assembled.listeners},
    }


def assembly(flags: Flags, loaded: Loaded | None = None) -> Assembly:
    """Read the file, load the plugins, put all together.

    Args:
        flags: what was given.
        loaded: the file, if it has been read already.

    Raises:
        ConfigError: with everything that is wrong.
    """
    over = overrides(flags)
    loaded = loaded or read(over)
    strict = bool(flags.given.get("strict_plugins"))
    return assemble(loaded, over, plugins(flags, loaded), strict_plugins=strict)
