"""The origins of code: from which plugin a module or an object comes."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import TracebackType

_ORIGIN: Final = "_refractium_origin"
_plugins: Final[dict[str, str]] = {}
"""The plugins of this process, by the names of their modules and packages."""


def add_module(module: str, plugin: str) -> None:
    """Record the plugin of a module and, if no other plugin has it, of the module's outermost package."""
    _plugins[module] = plugin
    _plugins.setdefault(module.partition(".")[0], plugin)
    plugin_of.cache_clear()


@cache
def plugin_of(module: str) -> str:
    """Return the id, distribution and version of the plugin with a module; empty if there is none."""
    while module and module not in _plugins:
        module = module.rpartition(".")[0]
    return _plugins.get(module, "")


def plugin_in(trace: TracebackType | None) -> str:
    """Return the plugin of the innermost code in a traceback that comes from a plugin; empty without one."""
    found = ""
    while trace is not None:
        found = plugin_of(str(trace.tb_frame.f_globals.get("__name__", ""))) or found
        trace = trace.tb_next
    return found


def set_origin(given: object, plugin: str) -> None:
    """Record from which plugin an object comes: a protocol, a health check or the class of a balancer."""
    if isinstance(given, type):
        type.__setattr__(given, _ORIGIN, plugin)
    else:
        object.__setattr__(given, _ORIGIN, plugin)


def origin_of(given: object) -> str:
    """Return the id, distribution and version of an object's plugin; empty without a plugin."""
    return str(vars(given).get(_ORIGIN, ""))
