"""The kit: the tools of Refractium that a plugin may use beside the contract.

`refractium.contract` contains the classes that a plugin implements. The kit contains tools for a plugin that
is more than a protocol. Examples are a hook that filters by networks, and a command that reads settings and
prints a table. A plugin may import `refractium.contract`, `refractium.kit` and, in its tests,
`refractium.testing`. All other modules of `refractium` may change in any release.

Errors that end a command, and their messages (the user sees the messages and no traceback):

- `RefractiumError`: the base class; the program exits with status 1.
- `ConfigError`: a configuration that cannot be used; the program exits with status 2.
- `Problem`: one message of a `ConfigError`, with its key path, file and line.

The command line and the configuration:

- `config_option`: the option ``-c/--config`` of a command.
- `OwnTable`: the plugin's own table ``[plugins.ID]``, decoded.

Addresses:

- `Address`: ``HOST:PORT`` or ``unix:PATH``, parsed.
- `Network`, `parse_network`: an IP address or a network, parsed.
- `Networks`: a list of networks, with a fast search for an IP address.
- `is_host_name`: whether a text is a host name.

The terminal and the log:

- `console`: a rich console that prints names literally, without markup.
- `table`: print a table.
- `printable`: escape characters that a terminal would not show as text.
- `Throttled`: log warnings at a limited rate.

The kit imports each name at the first use of the name. So a hook that uses only `Networks` loads neither rich
nor the command line into its process. No name loads the proxy itself.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from refractium.addresses.address import Address, is_host_name
    from refractium.addresses.networks import Network, Networks, parse_network
    from refractium.errors import ConfigError, RefractiumError
    from refractium.kit.options import config_option
    from refractium.kit.own_table import OwnTable
    from refractium.problems import Problem
    from refractium.terminal import console, table
    from refractium.throttle import Throttled
    from refractium.wire.text import printable

_HOME: Final = {
    "Address": "addresses.address",
    "ConfigError": "errors",
    "Network": "addresses.networks",
    "Networks": "addresses.networks",
    "OwnTable": "kit.own_table",
    "Problem": "problems",
    "RefractiumError": "errors",
    "Throttled": "throttle",
    "config_option": "kit.options",
    "console": "terminal",
    "is_host_name": "addresses.address",
    "parse_network": "addresses.networks",
    "printable": "wire.text",
    "table": "terminal",
}
"""The module of `refractium` that defines each name."""

__all__ = [
    "Address",
    "ConfigError",
    "Network",
    "Networks",
    "OwnTable",
    "Problem",
    "RefractiumError",
    "Throttled",
    "config_option",
    "console",
    "is_host_name",
    "parse_network",
    "printable",
    "table",
]


def __getattr__(name: str) -> Any:
    if (home := _HOME.get(name)) is None:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value = getattr(import_module(f"refractium.{home}"), name)
    globals()[name] = value
    return value
