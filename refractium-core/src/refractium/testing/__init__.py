r"""Test functions for plugins. This package works with any test framework, and without a test framework.

Some functions assert that a protocol keeps the contract. They raise `AssertionError` with the bytes for which
the protocol broke a law::

    from refractium.testing import assert_identifies, assert_rejects

    def test_knock() -> None:
        assert_identifies(knock, b"KNOCK\n", metadata={})
        assert_rejects(knock, b"GET / HTTP/1.1\r\n\r\n")

`run_hook`, `run_check` and `run_balancer` call a hook, a health check or a balancer as Refractium does::

    from refractium.testing import run_hook

    def test_count() -> None:
        hook = run_hook(CountBytes, inbound=[b"KNOCK\n"], outbound=[b"WHO IS THERE\n"])
        assert hook.total == 19

`serve` runs a proxy on a free port, with each `Backend` of its routes::

    from refractium.testing import Backend, serve

    def test_a_knock_is_routed() -> None:
        with serve(Route(knock, Backend.named("green"))) as proxy:
            assert proxy.ask(b"KNOCK\n") == b"green"

For pytest, `refractium-core` contains a plugin with the fixtures ``refractium_serve`` and
``refractium_recorder``. Python imports the module of a name at the first use of the name, so a test of a
protocol does not load the proxy.
"""

from __future__ import annotations

TYPE_CHECKING = False
"""False at run time, as `typing.TYPE_CHECKING` is; see `refractium`."""

if TYPE_CHECKING:
    from typing import Any, Final

    from refractium.testing.backend import Backend
    from refractium.testing.balancers import run_balancer
    from refractium.testing.checks import run_check
    from refractium.testing.cuts import cuts
    from refractium.testing.hooks import run_hook
    from refractium.testing.laws import assert_identifies, assert_lawful, assert_rejects
    from refractium.testing.recorder import RecordedSession, Recorder
    from refractium.testing.serving import AsyncProxy, Proxy, Serve, serve

_HOME: Final = {
    "AsyncProxy": "serving",
    "Backend": "backend",
    "Proxy": "serving",
    "RecordedSession": "recorder",
    "Recorder": "recorder",
    "Serve": "serving",
    "assert_identifies": "laws",
    "assert_lawful": "laws",
    "assert_rejects": "laws",
    "cuts": "cuts",
    "run_balancer": "balancers",
    "run_check": "checks",
    "run_hook": "hooks",
    "serve": "serving",
}

_NEEDS_PROXY: Final = frozenset({"balancers", "checks", "serving"})
"""The modules that work only where Refractium can serve."""

__all__ = [
    "AsyncProxy",
    "Backend",
    "Proxy",
    "RecordedSession",
    "Recorder",
    "Serve",
    "assert_identifies",
    "assert_lawful",
    "assert_rejects",
    "cuts",
    "run_balancer",
    "run_check",
    "run_hook",
    "serve",
]


def __getattr__(name: str) -> Any:
    if (home := _HOME.get(name)) is None:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from importlib import import_module  # noqa: PLC0415 - as in `refractium`

    from refractium._platform import ELSEWHERE, can_serve  # noqa: PLC0415

    if home in _NEEDS_PROXY and not can_serve():
        raise ImportError(ELSEWHERE)
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value
