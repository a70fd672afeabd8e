"""The errors that leave this package.

::

    RefractiumError
    ├── ConfigError     the operator's: flags, file, routes; carries every problem found
    └── ListenError     the machine's: an address that cannot be listened on

A plugin's fault is not raised but reported (`refractium.plugins.loading.PluginReport`) and becomes a
`ConfigError` where a route needs that plugin. A peer's fault ends its connection and is counted, nothing
more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from refractium.problems import Problem


class RefractiumError(Exception):
    """The base of all."""


class ConfigError(RefractiumError):
    """A configuration that cannot be used. Nothing has been bound or changed.

    Attributes:
        problems: all that was found, at least one.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class ListenError(RefractiumError):
    """An address could not be listened on.

    Attributes:
        address: the address, as it was asked for.
        errno: the error of the system call (errno(3)); 0 where none has failed.
    """

    def __init__(self, address: str, reason: str, errno: int = 0) -> None:
        self.address = address
        self.errno = errno
        super().__init__(f"cannot listen on {address}: {reason}")
