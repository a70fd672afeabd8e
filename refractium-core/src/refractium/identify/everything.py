"""The built-in protocol `any`, whose routes get the clients that no other route matches."""

from __future__ import annotations

from typing import Final

from refractium.contract import Identification, Protocol, ProtocolMatch, Strength, Transport

ANY: Final = "any"
"""The name of the protocol in a configuration."""
FALLBACK: Final = "fallback"
"""The name of the protocol, and so of the route, that ``fallback_tcp`` or ``fallback_udp`` defines."""

_MATCH: Final = ProtocolMatch()


class AnyProtocol(Protocol):
    """The protocol `any`, which matches all bytes.

    A route of this protocol gets the clients that match no other route: directly after every other protocol
    has answered `NO`, or at the peek timeout.

    Args:
        transport: the transport of the clients.
        name: the name of the protocol, `ANY` or `FALLBACK`.
    """

    aliases = (FALLBACK, "default")
    strength = Strength.WEAK
    max_bytes = 1
    summary = "all traffic that no other route matches"

    def __init__(self, transport: Transport = Transport.TCP, name: str = ANY) -> None:
        self.transport = transport
        self.name = name

    def identify(self, data: bytes) -> Identification:  # noqa: ARG002 - the protocol matches all bytes
        return _MATCH


ANY_PROTOCOLS: Final = tuple(AnyProtocol(transport) for transport in Transport)
"""The protocol `any` for each transport."""
