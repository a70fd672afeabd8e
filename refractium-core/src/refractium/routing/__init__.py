"""Where connections go: routes, their conditions, pools of backends, and the order in which to try them."""

from refractium.routing.backend import Backend, SocketAddress
from refractium.routing.balancers import BALANCERS
from refractium.routing.health import LOCAL_ERRORS, Authority, BackendState, Health
from refractium.routing.pool import Pool
from refractium.routing.pools import Pools
from refractium.routing.route import Member, Route
from refractium.routing.router import Router
from refractium.routing.rules import ListenerRules

__all__ = [
    "BALANCERS",
    "LOCAL_ERRORS",
    "Authority",
    "Backend",
    "BackendState",
    "Health",
    "ListenerRules",
    "Member",
    "Pool",
    "Pools",
    "Route",
    "Router",
    "SocketAddress",
]
