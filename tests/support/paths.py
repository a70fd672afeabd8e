"""The ways that bytes go through the proxy. Every test that uses `data_path` is run on each of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import pytest

from refractium import define_hook
from refractium.net import weld
from refractium.net.pipes import Pipes
from support import proxy

if TYPE_CHECKING:
    from refractium import Direction, HookContext

DataPath = Literal["copy", "splice", "hooked"]

_SMALL_BUFFER = 1024
"""Bytes: with it whatever is a little longer goes through a pipe."""


@define_hook("looking-on")
def looking_on(_context: HookContext, _direction: Direction, _data: bytes) -> None:
    """Does nothing with what it is told."""


@pytest.fixture(params=["copy", "splice", "hooked"])
def data_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> DataPath:
    path: DataPath = request.param
    if path == "copy":
        monkeypatch.setattr(Pipes, "borrow", lambda _: None)
    elif path == "splice":
        monkeypatch.setattr(weld, "BUFFER", _SMALL_BUFFER)
        monkeypatch.setattr(weld, "_READS_BEFORE_SPLICE", 0)
    else:
        monkeypatch.setattr(proxy, "HOOKS_OF_ALL", (looking_on,))
    return path
