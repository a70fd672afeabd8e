"""The paths of bytes through the proxy. A test with the fixture `data_path` runs on each of them.

The conftest of a folder chooses the paths for its tests with `run_on`. Each path differs from the default
configuration in one thing; the last path differs in all things that can be combined.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

import pytest

from refractium import define_hook
from refractium.proxy import weld, welding
from refractium.sockets.pipes import Pipes
from support import backends, datagrams, proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from refractium import Direction, HookContext

Change: TypeAlias = "Callable[[pytest.MonkeyPatch, Path], None]"
"""A function that changes the proxies and backends of a test; it may create sockets in the folder."""

_SMALL_BUFFER: Final = 1024
"""Bytes of a small buffer, so that slightly longer data goes through a pipe."""


@define_hook("looking-on")
def looking_on(_context: HookContext, _direction: Direction, _data: bytes) -> None:
    """Do nothing with packets."""


def usual(_patch: pytest.MonkeyPatch, _folder: Path) -> None:
    """Change nothing."""


def without_pipes(patch: pytest.MonkeyPatch, _folder: Path) -> None:
    """Have all bytes copied."""
    patch.setattr(Pipes, "borrow", lambda _: None)


def with_pipes(patch: pytest.MonkeyPatch, _folder: Path) -> None:
    """Have nearly all bytes go through pipes."""
    for module in (weld, welding):
        patch.setattr(module, "BUFFER", _SMALL_BUFFER)
    patch.setattr(weld, "_READS_BEFORE_SPLICE", 0)


def hooked(patch: pytest.MonkeyPatch, _folder: Path) -> None:
    """Add a packet hook to all proxies."""
    patch.setattr(proxy, "HOOKS_OF_ALL", (looking_on,))


def ipv6(patch: pytest.MonkeyPatch, _folder: Path) -> None:
    """Have the proxy and its backends listen on ::1."""
    for module in (proxy, backends, datagrams):
        patch.setattr(module, "HOST", "::1")


def wildcard(patch: pytest.MonkeyPatch, _folder: Path) -> None:
    """Have the proxy listen on all addresses, IPv4 and IPv6."""
    patch.setattr(proxy, "HOST", "::")


def unix(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Have backends listen on unix sockets."""
    patch.setattr(backends, "FOLDER", folder)


def all_at_once(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Combine a packet hook, clients on IPv6 and backends on unix sockets."""
    for change in (hooked, ipv6, unix):
        change(patch, folder)


TCP: Final[Mapping[str, Change]] = {
    "copy": without_pipes,
    "splice": with_pipes,
    "hooked": hooked,
    "ipv6": ipv6,
    "unix": unix,
    "hooked-ipv6-unix": all_at_once,
}
UDP: Final[Mapping[str, Change]] = {"plain": usual, "hooked": hooked, "ipv6": ipv6, "wildcard": wildcard}
_TO_UNIX: Final = (unix, all_at_once)
_BY_IPV6: Final = (ipv6, wildcard, all_at_once)
_QUICK: Final = (without_pipes, with_pipes, all_at_once, usual, wildcard)
"""Paths that together cover every change of the other paths."""
_QUICK_WITHOUT_UNIX: Final = (*_QUICK, hooked)


def run_on(paths: Mapping[str, Change], metafunc: pytest.Metafunc) -> None:
    """Run a test on every path, if it uses `data_path`.

    A test with the marker ``backend_resets`` does not run on paths with unix sockets: a unix socket has an
    end of stream where TCP has a reset. Paths outside of `_QUICK` have the marker ``slow``.
    """
    if "data_path" not in metafunc.fixturenames:
        return
    resets = metafunc.definition.get_closest_marker("backend_resets") is not None
    quick = _QUICK_WITHOUT_UNIX if resets else _QUICK
    chosen = [
        pytest.param(
            change,
            id=name,
            marks=[
                *([pytest.mark.needs_ipv6] if change in _BY_IPV6 else []),
                *([] if change in quick else [pytest.mark.slow]),
            ],
        )
        for name, change in paths.items()
        if not (resets and change in _TO_UNIX)
    ]
    metafunc.parametrize("data_path", chosen, indirect=True)


@pytest.fixture
def data_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    change: Change = request.param
    change(monkeypatch, tmp_path)
