"""The errors that this package raises to its callers.

::

    RefractiumError
    ├── ConfigError     a mistake of the operator in flags, file or routes, with every problem found
    └── ListenError     a fault of the machine: Refractium cannot listen on an address

A fault of a plugin raises no error by itself: the fault appears in the entry of the plugin
(`refractium.plugins.installed.InstalledPlugin`). The fault becomes a `ConfigError` if a route needs the
plugin. A fault of a peer ends only the connection of this peer, and Refractium counts the fault.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable

    from refractium.problems import Problem


class ExitStatus(IntEnum):
    """The exit statuses of the command ``refractium``."""

    SUCCESS = 0
    """Success, or a normal stop."""
    FAILURE = 1
    """A failure at run time."""
    MISUSE = 2
    """A mistake in the command line or in the configuration."""


class RefractiumError(Exception):
    """The base class of all errors of Refractium."""

    exit_status: ClassVar[ExitStatus] = ExitStatus.FAILURE
    """The exit status of a command that this error ends."""


class ConfigError(RefractiumError):
    """A configuration that is not valid.

    When Refractium raises this error, it has bound no new address and has changed nothing.

    Attributes:
        problems: all problems that Refractium found, at least one.
    """

    exit_status = ExitStatus.MISUSE
    problems: tuple[Problem, ...]

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class ListenError(RefractiumError):
    """A failure to listen on an address.

    Attributes:
        address: the address, such as ``tcp://0.0.0.0:80``.
        errno: the error of the system call (errno(3)); 0 if no system call failed.
    """

    address: str
    errno: int

    def __init__(self, address: str, reason: str, errno: int = 0) -> None:
        self.address = address
        self.errno = errno
        super().__init__(f"cannot listen on {address}: {reason}")
