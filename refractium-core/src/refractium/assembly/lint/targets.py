"""Warnings about the backends of routes, and about routes that no listener serves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refractium.addresses.address import is_own_address
from refractium.assembly.lint.rules import OWN_ADDRESS, REPEATED_BACKEND, UNSERVED_ROUTE, Warned

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from refractium.addresses.address import Address
    from refractium.assembly.resolve import Resolved
    from refractium.routing import Route


def doubtful_targets(resolved: Resolved) -> Iterator[Warned]:
    """Yield the warnings about the backends of each route, and each route that no listener serves.

    A listener is open for a transport only if the listener serves a route for this transport.
    """
    listeners = [one for _, one in resolved.overlaid.listeners]
    serving = [
        (path, route, one)
        for path, route in resolved.routes
        for one in listeners
        if route.transport in one.transports and one.rules.serves(route.label, route.name)
    ]
    is_open = {(route.transport, one.name): one for _, route, one in serving}
    served = {path for path, _, _ in serving}
    found: dict[Warned, None] = {}  # a route for both transports is there twice
    for path, route in resolved.routes:
        backends = list(_backends(path, route))
        found.update(dict.fromkeys(_repeated(backends)))
        if path not in served:
            found[Warned(UNSERVED_ROUTE, path, "no listener serves this route")] = None
        for place, address in backends:
            if any(
                transport is route.transport and is_own_address(address, one.bind, one.port)
                for (transport, _), one in is_open.items()
            ):
                message = f"Refractium itself listens on {address}, and will never connect to it"
                found[Warned(OWN_ADDRESS, place, message)] = None
    yield from found


def _backends(path: str, route: Route) -> Iterator[tuple[str, Address]]:
    if path.startswith("server."):  # the key of a fallback contains the address
        yield from ((path, address) for address in route.backends)
        return
    for index, address in enumerate(route.backends):
        yield (f"{path}.forward_to" + (f"[{index}]" if isinstance(route.forward_to, tuple) else "")), address


def _repeated(backends: Iterable[tuple[str, Address]]) -> Iterator[Warned]:
    seen: set[Address] = set()
    for place, address in backends:
        if address in seen:
            message = f"{address} is in this route already: give it a weight to send it more clients"
            yield Warned(REPEATED_BACKEND, place, message)
        seen.add(address)
