"""Refractium: a port multiplexer. One port, many protocols.

Bytes take one path::

    bytes in -> proxy.listener -> identify -> routing -> proxy.weld <-> backend

Terms that the whole project uses:

listener
    A bound address on which Refractium accepts connections.

protocol
    An object that recognises its own traffic by the first bytes (`Protocol`). Plugins define most protocols.

route
    A protocol, the conditions under which the route applies (sni, alpn, host, match, client) and the
    backends to which the route's clients go (`Route`).

backend
    An address to which Refractium joins clients. The backends of a route form the route's pool. A balancer
    selects one of the backends that are up.

health check
    A check of a backend, which Refractium repeats at intervals. The results decide whether the backend is up.

weld
    To join client and backend so that both behave as if directly connected. The object that joins client and
    backend is also called a weld.

fallback
    The pool for clients that no route matches.

drain
    To accept no more clients, and to let open connections finish.

The names below are the public library. Python imports the module of a name at the first use of the name. So a
plugin, which needs only `refractium.contract`, never loads the engine.
"""

from __future__ import annotations

from refractium._version import __version__

TYPE_CHECKING = False
"""False at run time, as `typing.TYPE_CHECKING` is. The import of `typing` takes longer than the rest of the
start, so this module and `_version` define the name themselves."""

if TYPE_CHECKING:
    from typing import Any, Final

    from refractium.backends.health_settings import Health
    from refractium.contract import (
        NEED_MORE,
        NO,
        Balancer,
        Direction,
        Endpoint,
        HealthCheck,
        HookContext,
        Identification,
        PacketHook,
        Protocol,
        ProtocolMatch,
        SessionStats,
        Strength,
        Transport,
        define_hook,
        define_protocol,
        hookimpl,
    )
    from refractium.engine.engine import Refractium
    from refractium.engine.spec import EngineSpec
    from refractium.errors import ConfigError, ListenError, RefractiumError
    from refractium.problems import Problem
    from refractium.routing import ListenerRules, Member, NameRegex, Route
    from refractium.settings import Settings
    from refractium.workers import Supervisor

_HOME: Final = {
    "Balancer": "contract",
    "ConfigError": "errors",
    "Direction": "contract",
    "Endpoint": "contract",
    "EngineSpec": "engine.spec",
    "Health": "backends.health_settings",
    "HealthCheck": "contract",
    "HookContext": "contract",
    "Identification": "contract",
    "ListenError": "errors",
    "ListenerRules": "routing",
    "Member": "routing",
    "NEED_MORE": "contract",
    "NO": "contract",
    "NameRegex": "routing",
    "PacketHook": "contract",
    "Problem": "problems",
    "Protocol": "contract",
    "ProtocolMatch": "contract",
    "Refractium": "engine.engine",
    "RefractiumError": "errors",
    "Route": "routing",
    "SessionStats": "contract",
    "Settings": "settings",
    "Strength": "contract",
    "Supervisor": "workers",
    "Transport": "contract",
    "define_hook": "contract",
    "define_protocol": "contract",
    "hookimpl": "contract",
}

_PORTABLE: Final = frozenset({"contract", "errors", "problems", "settings"})
"""The modules that work on every platform."""

__all__ = [
    "NEED_MORE",
    "NO",
    "Balancer",
    "ConfigError",
    "Direction",
    "Endpoint",
    "EngineSpec",
    "Health",
    "HealthCheck",
    "HookContext",
    "Identification",
    "ListenError",
    "ListenerRules",
    "Member",
    "NameRegex",
    "PacketHook",
    "Problem",
    "Protocol",
    "ProtocolMatch",
    "Refractium",
    "RefractiumError",
    "Route",
    "SessionStats",
    "Settings",
    "Strength",
    "Supervisor",
    "Transport",
    "__version__",
    "define_hook",
    "define_protocol",
    "hookimpl",
]


def __getattr__(name: str) -> Any:
    if (home := _HOME.get(name)) is None:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from importlib import import_module  # noqa: PLC0415 - the start of the program needs none of these imports

    from refractium._platform import ELSEWHERE, can_serve  # noqa: PLC0415

    if home not in _PORTABLE and not can_serve():
        raise ImportError(ELSEWHERE)
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value
