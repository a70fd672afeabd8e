"""What a program that runs tells of itself."""

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
    """The status of a program that listens, on that port where its stdout does not tell it.

    It may take a moment until it tells that.
    """
    path = Path(RUNTIME.name, file_name(port or program.port))
    told: list[bytes] = []

    def is_told() -> bool:
        with suppress(RefractiumError):
            told.append(ask([path]))
        return bool(told)

    eventually(is_told, "the program tells its status")
    return decode(told[0])
