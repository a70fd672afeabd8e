"""A plugin of a third party: a plugin object of each kind in the contract, use of the kit, and tests."""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import assert_type

import click
from click.testing import CliRunner
from msgspec import Struct

from refractium import Route, Settings
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
from refractium.kit import (
    Address,
    ConfigError,
    Network,
    Networks,
    OwnTable,
    Problem,
    RefractiumError,
    Throttled,
    config_option,
    console,
    is_host_name,
    parse_network,
    printable,
    table,
)
from refractium.testing import (
    AsyncProxy,
    Backend,
    Proxy,
    RecordedSession,
    Recorder,
    Serve,
    assert_identifies,
    assert_lawful,
    assert_rejects,
    cuts,
    run_balancer,
    run_check,
    run_hook,
    serve,
)

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


class LookUpError(RefractiumError):
    """An error of this plugin."""


class CommandSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of the command."""

    servers: tuple[str, ...] = ("127.0.0.1:80",)
    networks: tuple[str, ...] = ()


@click.command("typed-command")
@config_option("Where the servers are.")
def command(config: Path | None) -> None:
    own = OwnTable.read("typed", CommandSettings, config)
    assert_type(own, OwnTable[CommandSettings])
    assert_type(own.settings.servers, tuple[str, ...])
    if not own.settings.servers:
        problem = own.problem("are none", "servers")
        assert_type(problem, Problem)
        raise ConfigError([problem])
    try:
        addresses = [Address.parse(server) for server in own.settings.servers]
    except ValueError as error:
        raise LookUpError(printable(str(error))) from None
    near = Networks(own.settings.networks)
    rows = [
        (address.host, str(is_host_name(address.host)), str(address.host in near)) for address in addresses
    ]
    table("Servers", ("host", "name", "near"), rows)
    console(stderr=True).print("[all]")
    Throttled(logging.getLogger(__name__)).warning("%s servers", len(rows))


def size(text: str) -> int:
    network: Network = parse_network(text)
    assert_type(network, IPv4Network | IPv6Network)
    return network.num_addresses


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
    return [command]


def test_it() -> None:
    protocol = Typed()
    assert_lawful(protocol, MAGIC)
    assert_identifies(protocol, MAGIC)
    assert_rejects(protocol, b"UNTYPED")
    hook = run_hook(Total, inbound=[b"12"], outbound=[b"345"], settings=HookSettings())
    assert hook.total == 5
    for pieces in cuts(b"123"):
        assert run_hook(Total, inbound=pieces).total == 3
    reason = run_check(GreetingCheck(), Backend.echo(), CheckSettings("250"), timeout_ms=1000)
    assert assert_type(reason, str | None)
    assert run_balancer(Last, {"a": 1, "b": 2}, active={"a": 1}, clients=["192.0.2.1"]) == [("b", "a")]


def test_a_proxy() -> None:
    recorder, held = Recorder(), Backend()
    route = Route(Typed(), held, hooks=[recorder.hook])
    with serve(route, fallback_tcp=Backend.scripted((b"other", b"script"))) as proxy:
        assert_type(proxy, Proxy)
        assert proxy.ask(b"ot", b"her") == b"script"
        client, server = proxy.pair(held, MAGIC)
        assert server.recv(9) == MAGIC
        client.close()
        server.close()
        session = recorder.session()
        assert_type(session, RecordedSession)
        assert (session.inbound, session.context.route) == (MAGIC, "typed")
        assert proxy.ended().route == "fallback"


async def coroutine() -> None:
    async with serve(Typed()) as proxy:
        assert_type(proxy, AsyncProxy)
        assert await proxy.ask(MAGIC) == MAGIC
        reader, writer = await proxy.connect(MAGIC)
        assert await reader.readexactly(len(MAGIC)) == MAGIC
        writer.close()


def test_a_coroutine() -> None:
    asyncio.run(coroutine())


def test_fixtures(refractium_serve: Serve, refractium_recorder: Recorder) -> None:
    proxy = refractium_serve(
        Typed(), hooks=[refractium_recorder.hook], settings=Settings(peek_timeout_ms=500)
    )
    assert_type(proxy, Proxy)
    assert proxy.ask(MAGIC) == MAGIC


def test_the_command() -> None:
    assert size("10.0.0.0/30") == 4
    with TemporaryDirectory() as folder:
        config = Path(folder, "refractium.toml")
        arguments = ["--config", str(config)]
        config.write_text('[plugins.typed]\nservers = ["10.0.0.1:80"]\nnetworks = ["10.0.0.0/8"]\n')
        done = CliRunner().invoke(command, arguments)
        assert done.stdout.split() == ["Servers", "host", "name", "near", "10.0.0.1", "False", "True"]
        assert "[all]" in done.stderr
        config.write_text("[plugins.typed]\nservers = []\n")
        assert isinstance(CliRunner().invoke(command, arguments).exception, ConfigError)
        config.write_text('[plugins.typed]\nservers = [":80"]\n')
        assert isinstance(CliRunner().invoke(command, arguments).exception, LookUpError)


if __name__ == "__main__":
    test_it()
    test_a_proxy()
    test_a_coroutine()
    test_the_command()
