"""Routes as an operator or a program writes them: a protocol, conditions, backends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from refractium.address import Address
from refractium.contract import Protocol, Transport
from refractium.errors import ConfigError, Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

Names: TypeAlias = "str | Sequence[str]"


@dataclass(frozen=True, eq=False)
class Route:
    """A protocol, the conditions under which the route applies, and where its clients go.

    Args:
        protocol: the protocol, or several that are one protocol by different evidence (all of one name and
            transport).
        forward_to: ``HOST:PORT``, ``[IPV6]:PORT`` or ``unix:PATH``; several are balanced.
        sni: names of which the client's must be one; ``*.example.org`` covers one label.
        alpn: application protocols of which the client must offer one.
        host: as `sni`, for protocols that carry a host.
        on_timeout: whether the route gets the clients that stay silent. By default it does if the protocol
            is one whose server speaks first.
        udp_session_timeout_ms: how long a UDP session may be silent (ms); by default as in the settings.

    Raises:
        ConfigError: an argument is not valid, or asks for what the protocol cannot tell.
    """

    protocol: Protocol | Sequence[Protocol]
    forward_to: Names
    sni: Names = ()
    alpn: Names = ()
    host: Names = ()
    on_timeout: bool | None = None
    udp_session_timeout_ms: int | None = None

    def __post_init__(self) -> None:
        problems = []
        for backend in _several(self.forward_to):
            try:
                Address.parse(backend)
            except ValueError as error:
                problems.append(Problem(str(error), where="forward_to"))
        if not _several(self.forward_to):
            problems.append(Problem("no backend is given", where="forward_to"))
        if len({(one.name, one.transport) for one in self.protocols}) != 1:
            problems.append(Problem("not one protocol of one name and transport", where="protocol"))
        for key, names in self.conditions.items():
            if names and not all(key in one.metadata_keys for one in self.protocols):
                problems.append(Problem(f"{self.name} tells no {key}, so no client would match", where=key))
        if problems:
            raise ConfigError(problems)

    @property
    def protocols(self) -> tuple[Protocol, ...]:
        return (self.protocol,) if isinstance(self.protocol, Protocol) else tuple(self.protocol)

    @property
    def name(self) -> str:
        return self.protocols[0].name

    @property
    def transport(self) -> Transport:
        return self.protocols[0].transport

    @property
    def backends(self) -> tuple[Address, ...]:
        return tuple(Address.parse(backend) for backend in _several(self.forward_to))

    @property
    def conditions(self) -> dict[str, tuple[str, ...]]:
        """The names asked for, by metadata key; host names in lower case."""
        return {
            "sni": tuple(name.lower().removesuffix(".") for name in _several(self.sni)),
            "alpn": _several(self.alpn),
            "host": tuple(name.lower().removesuffix(".") for name in _several(self.host)),
        }

    @property
    def takes_silent(self) -> bool:
        """Whether the clients that stay silent are this route's."""
        if self.on_timeout is None:
            return any(protocol.server_first for protocol in self.protocols)
        return self.on_timeout

    def __str__(self) -> str:
        conditions = [f"{key}={','.join(names)}" for key, names in self.conditions.items() if names]
        return " ".join((self.name, *conditions))


def _several(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)
