"""The samples of a protocol: first messages of real clients, in the package of its plugin."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from refractium.contract import ProtocolMatch
from refractium.guard.faults import is_interrupt

if TYPE_CHECKING:
    from refractium.contract import Protocol

_FOLDER: Final = "samples"
_MOST: Final = 16
"""Largest number of samples of a plugin to read."""
_SIZE: Final = 65_536
"""Bytes of a sample to read."""


def samples_of(protocol: Protocol) -> list[bytes]:
    """Return the samples of the plugin of a protocol that the protocol recognises."""
    name = getattr(protocol, "_function", type(protocol)).__module__
    return [one for one in _samples_of(name) if _matches(protocol, one)]


def _matches(protocol: Protocol, data: bytes) -> bool:
    try:
        return isinstance(protocol.identify(data), ProtocolMatch)
    except BaseException as error:
        if is_interrupt(error):
            raise
        return False


@cache
def _samples_of(module: str) -> tuple[bytes, ...]:
    """Return the samples in the package of a module, or in the nearest package around this package."""
    while module:
        paths = getattr(sys.modules.get(module), "__path__", ())
        try:
            files = [
                one for path in paths for one in sorted((Path(path) / _FOLDER).iterdir()) if one.is_file()
            ]
        except OSError:
            files = []
        if files:
            return tuple(filter(None, map(_read, files[:_MOST])))
        module = module.rpartition(".")[0]
    return ()


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_SIZE)
    except OSError:
        return b""
