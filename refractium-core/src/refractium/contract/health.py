"""What a health check is: a kind, the settings it takes, and one question asked of one backend."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, TypeAlias, TypeVar

from refractium.contract.protocol import Transport, problems_of_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from socket import AddressFamily

    from msgspec import Struct

SocketAddress: TypeAlias = "tuple[AddressFamily, str | tuple[str, int] | tuple[str, int, int, int]]"
"""A family and what `socket.connect` takes for it."""

S = TypeVar("S", bound="Struct")

SHARED_KEYS: Final = frozenset({"kind", "interval_ms", "timeout_ms", "rise", "fall"})
"""The keys of every health check, whatever its kind; the settings of a kind have other names."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a backend is reached now. Names have been looked up.

    Attributes:
        transport: how clients reach it.
        target: family and address, as `socket.connect` takes it.
        preface: bytes that it must be sent ahead of everything else, in one datagram with what follows: the
            PROXY header that it waits for.
    """

    transport: Transport
    target: SocketAddress
    preface: bytes = b""


class HealthCheck(ABC, Generic[S]):
    """One kind of health check. It keeps no state: the same object checks every backend of its kind."""

    name: str
    """What `kind` says: lower-case letters, digits, ``_`` and ``-``, starting with a letter."""
    transports: frozenset[Transport] = frozenset({Transport.TCP})
    """Whose backends it can check."""
    settings: type[S]
    """What the kind takes beside `SHARED_KEYS`: a Struct that is frozen and forbids unknown fields."""
    summary: str = ""

    @abstractmethod
    async def check(self, endpoint: Endpoint, settings: S, timeout: float) -> str | None:  # noqa: ASYNC109 - for checks in a thread
        """Ask one backend whether it is well.

        It is cancelled once `timeout` has passed, and must then close what it has opened. An `OSError` that
        tells of a shortage on this machine (`EMFILE`, `EADDRNOTAVAIL` ...) counts neither way.

        Args:
            endpoint: where it is.
            settings: those of the route.
            timeout: how long it may take (s).

        Returns:
            None if it is well, else why it is not, in a few words.

        Raises:
            Exception: it is not well; the exception says why.
        """

    def problems(self, settings: S) -> Iterable[tuple[str, str]]:
        """What is wrong with settings whose types are right: pairs of a key and a message."""
        del settings
        return ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


def problems_of_health_check(check: object) -> Iterator[str]:
    """What is wrong with an object that a plugin hands out as a health check; nothing if it is one."""
    if not isinstance(check, HealthCheck):
        yield f"{check!r} is not a HealthCheck"
        return
    name = getattr(check, "name", None)
    yield from problems_of_name(name)
    if not check.transports or not all(isinstance(one, Transport) for one in check.transports):
        yield f"{name}: transports {check.transports!r} is not a set of Transport"
    settings = getattr(check, "settings", None)
    config = getattr(settings, "__struct_config__", None)
    if config is None or not (config.frozen and config.forbid_unknown_fields):
        yield f"{name}: settings {settings!r} is not a Struct that is frozen and forbids unknown fields"
    elif taken := SHARED_KEYS.intersection(settings.__struct_fields__):  # type: ignore[union-attr]
        yield f"{name}: settings has {', '.join(sorted(taken))}, which every health check has already"
