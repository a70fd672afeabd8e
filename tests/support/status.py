"""The status of a running program."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from refractium.errors import RefractiumError
from refractium.observe.control import ask, decode, file_name
from support.process import RUNTIME
from support.proxy import eventually

if TYPE_CHECKING:
    from refractium.observe.status import Status
    from support.process import Running


def status_of(program: Running, port: int | None = None) -> Status:
    """Wait until a program answers with its status, and return the status.

    Args:
        program: the program, which listens.
        port: the port on which it listens, if its stdout does not show it.
    """
    path = Path(RUNTIME.name, file_name(port or program.port))
    told: list[bytes] = []

    def is_told() -> bool:
        with suppress(RefractiumError):
            told.append(ask([path]))
        return bool(told)

    eventually(is_told, "the program answers with its status")
    return decode(told[0])
