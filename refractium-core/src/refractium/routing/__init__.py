"""Routing: routes and their conditions, pools of backends, and the order in which to try the backends."""

from refractium.backends.backend import Backend
from refractium.backends.health_settings import Health
from refractium.backends.state import Authority, BackendState
from refractium.contract import SocketAddress
from refractium.routing.balancers import BALANCERS
from refractium.routing.names import NameRegex
from refractium.routing.pool import Pool
from refractium.routing.pools import Pools
from refractium.routing.route import Member, Route
from refractium.routing.router import Router
from refractium.routing.rules import ListenerRules
from refractium.sockets.descriptors import LOCAL_ERRORS

__all__ = [
    "BALANCERS",
    "LOCAL_ERRORS",
    "Authority",
    "Backend",
    "BackendState",
    "Health",
    "ListenerRules",
    "Member",
    "NameRegex",
    "Pool",
    "Pools",
    "Route",
    "Router",
    "SocketAddress",
]
