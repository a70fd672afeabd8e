"""Where connections go: routes, their conditions, pools of backends, and the order in which to try them."""

from refractium.routing.backend import Backend, SocketAddress
from refractium.routing.pool import Pool
from refractium.routing.route import Route
from refractium.routing.router import Router

__all__ = ["Backend", "Pool", "Route", "Router", "SocketAddress"]
