"""A program of a user, with every public name of the library that a program needs."""

import asyncio
from typing import assert_type

from refractium import (
    NEED_MORE,
    NO,
    ConfigError,
    Direction,
    Health,
    HookContext,
    Identification,
    ListenError,
    ListenerRules,
    Member,
    Problem,
    Protocol,
    ProtocolMatch,
    Refractium,
    RefractiumError,
    Route,
    Settings,
    Strength,
    Transport,
    __version__,
    define_hook,
    define_protocol,
)

GREETING = b"HELLO\n"


@define_protocol("hello", max_bytes=6, prefixes=(GREETING,), strength=Strength.EXACT, transport=Transport.TCP)
def hello(data: bytes) -> Identification:
    if data.startswith(GREETING):
        return ProtocolMatch({"host": "a.example"})
    return NEED_MORE if GREETING.startswith(data) else NO


assert_type(hello, Protocol)
seen = 0


@define_hook("counting")
def counting(context: HookContext, direction: Direction, data: bytes) -> None:
    global seen  # noqa: PLW0603 - a program of one page
    assert_type(context.protocol, str)
    if direction is Direction.INBOUND:
        seen += len(data)


def routes(address: str) -> list[Route]:
    health = Health(kind="tcp", interval_ms=1_000, timeout_ms=200, rise=1, fall=3)
    spare = Member("127.0.0.1:9", backup=True)
    return [Route(hello, [address, spare], balance="first", health=health, hooks=[counting], id="hello")]


def problems_of(address: str) -> tuple[Problem, ...]:
    try:
        Refractium(routes(address))
    except ConfigError as error:
        return tuple(error.problems)
    return ()


async def converse(address: str) -> bytes:
    """Send a greeting through an engine to `address`, and return the answer."""
    engine = Refractium(
        routes(address),
        settings=Settings(peek_timeout_ms=500),
        listeners={"public": ListenerRules(["hello"], allow=["127.0.0.0/8"])},
    )
    addresses = await engine.start_tcp("127.0.0.1", 0, "public")
    assert_type(addresses, tuple[str, ...])
    host, _, port = addresses[0].rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(GREETING)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    status = await engine.status()
    assert_type(status.tcp.accepted, int)
    assert status.tcp.accepted == 1
    await engine.stop()
    return answer


async def main() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read())
        writer.close()

    async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        assert await converse(f"{host}:{port}") == GREETING
    assert seen == len(GREETING)
    assert [problem.message for problem in problems_of("no port")]
    assert issubclass(ListenError, RefractiumError)
    print(__version__)  # noqa: T201 - the test reads that the whole program has run


if __name__ == "__main__":
    asyncio.run(main())
