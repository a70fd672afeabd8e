"""A plugin of a third party: one of each kind that the contract knows, and its author's tests."""

from collections.abc import Iterable, Sequence

import click
from msgspec import Struct

from refractium.contract import (
    NEED_MORE,
    NO,
    BalancedT,
    Balancer,
    Direction,
    Endpoint,
    Event,
    EventKind,
    HealthCheck,
    HookContext,
    Identification,
    PacketHook,
    Protocol,
    ProtocolMatch,
    SessionStats,
    Strength,
    Transport,
    hookimpl,
)
from refractium.testing import assert_identifies, assert_lawful, assert_rejects, run_hook

MAGIC = b"TYPED"


class Typed(Protocol):
    name = "typed"
    transports = frozenset({Transport.TCP})
    strength = Strength.EXACT
    max_bytes = len(MAGIC)
    prefixes = (MAGIC,)

    def identify(self, data: bytes) -> Identification:
        if data.startswith(MAGIC):
            return ProtocolMatch()
        return NEED_MORE if MAGIC.startswith(data) else NO


class CheckSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of the health check."""

    greeting: str = "220"


class GreetingCheck(HealthCheck[CheckSettings]):
    name = "typed-greeting"
    settings = CheckSettings

    async def check(self, endpoint: Endpoint, settings: CheckSettings, timeout: float) -> str | None:  # noqa: ASYNC109
        family, address = endpoint.target
        where = address if isinstance(address, str) else f"{address[0]} port {address[1]}"
        return f"{family.name} {where} does not say {settings.greeting} within {timeout} s"

    def problems(self, settings: CheckSettings) -> Iterable[tuple[str, str]]:
        if not settings.greeting:
            yield "greeting", "is empty"


class Last(Balancer):
    name = "typed-last"

    def order(self, backends: Sequence[BalancedT], client: str) -> Iterable[BalancedT]:
        del client
        return reversed(backends)


class HookSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of the packet hook."""

    unit: int = 1


class Total(PacketHook[HookSettings]):
    name = "typed-total"
    settings_type = HookSettings

    def __init__(self, settings: HookSettings) -> None:
        super().__init__(settings)
        self.total = 0
        self.ends: list[str] = []
        self._unit = settings.unit

    def on_packet(self, context: HookContext, direction: Direction, data: bytes) -> None:
        del context, direction
        self.total += len(data) // self._unit

    def on_close(self, context: HookContext, stats: SessionStats) -> None:
        del context
        self.ends.append(stats.ended)


class Batches(PacketHook[HookSettings]):
    name = "typed-batches"
    settings_type = HookSettings

    def on_batch(self, events: Sequence[Event]) -> None:
        assert all(isinstance(event.kind, EventKind) for event in events)


@hookimpl
def refractium_protocols() -> list[Protocol]:
    return [Typed()]


@hookimpl
def refractium_health_checks() -> list[HealthCheck[CheckSettings]]:
    return [GreetingCheck()]


@hookimpl
def refractium_balancers() -> list[type[Balancer]]:
    return [Last]


@hookimpl
def refractium_hooks() -> list[type[PacketHook[HookSettings]]]:
    return [Total, Batches]


@hookimpl
def refractium_commands() -> list[click.Command]:
    return [click.Command("typed-command")]


def test_it() -> None:
    protocol = Typed()
    assert_lawful(protocol, MAGIC)
    assert_identifies(protocol, MAGIC)
    assert_rejects(protocol, b"UNTYPED")
    hook = run_hook(Total, inbound=[b"12"], outbound=[b"345"], settings=HookSettings())
    assert hook.total == 5


if __name__ == "__main__":
    test_it()
