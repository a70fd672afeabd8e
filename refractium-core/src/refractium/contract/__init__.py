"""The plugin contract: the classes and functions that plugins use to add objects to Refractium.

A protocol plugin is a module with one function::

    from refractium.contract import NEED_MORE, NO, Identification, Protocol, ProtocolMatch, hookimpl

    @hookimpl
    def refractium_protocols() -> list[Protocol]:
        return [MyProtocol()]

An entry point of the group ``refractium`` names the module; the name of the entry point is the plugin's id.
Plugins return kinds of health check (`HealthCheck`), balancers (`Balancer`) and packet hooks (`PacketHook`)
in the same way. This package imports neither the engine nor the plugin manager, and only `Endpoint` does I/O,
so that plugins depend on a small and stable package. `API_VERSION` counts the incompatible changes of this
package.
"""

from refractium.contract.balancer import Balanced, BalancedT, Balancer, problems_of_balancer
from refractium.contract.health import (
    SHARED_KEYS,
    Endpoint,
    HealthCheck,
    SocketAddress,
    problems_of_health_check,
)
from refractium.contract.hook import (
    Direction,
    Event,
    EventKind,
    HookContext,
    PacketHook,
    SessionStats,
    define_hook,
    problems_of_hook,
)
from refractium.contract.hookspecs import API_VERSION, ENTRY_POINT_GROUP, hookimpl
from refractium.contract.metadata import MetadataKind, MetadataValue
from refractium.contract.protocol import (
    MAX_BYTES_LIMIT,
    NEED_MORE,
    NO,
    DeferredMatch,
    Identification,
    NeedMore,
    NoSettings,
    Protocol,
    ProtocolMatch,
    Strength,
    Transport,
    Verdict,
    define_protocol,
    problems_of,
)
from refractium.contract.scene import Scene, problems_of_scene

__all__ = [
    "API_VERSION",
    "ENTRY_POINT_GROUP",
    "MAX_BYTES_LIMIT",
    "NEED_MORE",
    "NO",
    "SHARED_KEYS",
    "Balanced",
    "BalancedT",
    "Balancer",
    "DeferredMatch",
    "Direction",
    "Endpoint",
    "Event",
    "EventKind",
    "HealthCheck",
    "HookContext",
    "Identification",
    "MetadataKind",
    "MetadataValue",
    "NeedMore",
    "NoSettings",
    "PacketHook",
    "Protocol",
    "ProtocolMatch",
    "Scene",
    "SessionStats",
    "SocketAddress",
    "Strength",
    "Transport",
    "Verdict",
    "define_hook",
    "define_protocol",
    "hookimpl",
    "problems_of",
    "problems_of_balancer",
    "problems_of_health_check",
    "problems_of_hook",
    "problems_of_scene",
]
