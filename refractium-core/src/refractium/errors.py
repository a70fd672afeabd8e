"""The errors that leave this package.

::

    RefractiumError
    ├── ConfigError     a mistake of the operator in flags, file or routes; has every problem found
    └── ListenError     a fault of the machine: Refractium cannot listen on an address

A fault of a plugin raises nothing: it appears in the report on the plugin
(`refractium.plugins.loading.PluginReport`) and becomes a `ConfigError` if a route needs that plugin. A fault
of a peer ends only the connection of that peer and is counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from refractium.problems import Problem


class RefractiumError(Exception):
    """The base class of all errors of Refractium."""


class ConfigError(RefractiumError):
    """A configuration that cannot be used. No address has been bound and nothing has changed.

    Attributes:
        problems: every problem that was found, at least one.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class ListenError(RefractiumError):
    """A failure to listen on an address.

    Attributes:
        address: the address, as the caller gave it.
        errno: the error of the system call (errno(3)); 0 if no system call failed.
    """

    def __init__(self, address: str, reason: str, errno: int = 0) -> None:
        self.address = address
        self.errno = errno
        super().__init__(f"cannot listen on {address}: {reason}")
