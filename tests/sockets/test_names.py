"""Names: shared lookups, the bound on their number, and the clients served while name servers hang."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from refractium.addresses.address import Address
from refractium.backends import resolver
from refractium.backends.backend import Backend
from refractium.backends.resolver import Resolver
from refractium.sockets import names
from refractium.sockets.names import THREADS, Standing
from support.clients import PATIENCE
from support.lateness import fair_seconds_since
from support.proxy import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

IP = "192.0.2.1"


class NameServer:
    """A replacement of getaddrinfo; names that begin with ``hang`` are answered once the gate is open."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.asked: list[str] = []
        self.failing = False

    def __call__(self, host: str, port: int, *_: object, flags: int = 0, **__: object) -> Any:
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        self.asked.append(host)
        if host.startswith("hang"):
            assert self.gate.wait(PATIENCE)
        if self.failing or host.startswith("none"):
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (IP, port))]

    async def await_lookups(self, count: int) -> None:
        enough = len(self.asked) + count
        await turns(lambda: len(self.asked) >= enough)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    server = NameServer()
    monkeypatch.setattr(socket, "getaddrinfo", server)
    yield server
    server.gate.set()
    eventually(lambda: not lookups(), "the threads end")
    gc.collect()
    assert not dict(names._LOOKUPS._names), "a name is kept although nobody asks for it"
    assert not any(names._LOOKUPS._queued.values())
    assert not any(names._LOOKUPS._running.values())


def lookups() -> list[str]:
    """Return the names that threads look up at this moment."""
    return [one.name for one in threading.enumerate() if one.name.startswith("resolve ")]


def run(main: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(PATIENCE):
            await main

    asyncio.run(limited())


@contextmanager
def asking(hosts: list[str]) -> Iterator[list[asyncio.Task[Any]]]:
    tasks = [asyncio.create_task(names.name(host).look_up("test")) for host in hosts]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()


def backends(*addresses: str) -> list[Backend]:
    return [Backend(Address.parse(address)) for address in addresses]


async def turns(holds: Callable[[], object]) -> None:
    """Let the loop run other tasks until a condition holds that threads bring about."""
    while not holds():  # noqa: ASYNC110 - no event tells of it
        await asyncio.sleep(0.001)


def test_all_requests_for_a_name_share_one_lookup(server: NameServer) -> None:
    async def ask() -> None:
        with asking(["hang.test"] * 20) as tasks:
            await turns(lambda: server.asked)
            await asyncio.sleep(0)
            others = [threading.Thread(target=asyncio.run, args=(ask_once(),)) for _ in range(3)]
            for other in others:
                other.start()
            name = names.name("hang.test")
            await turns(lambda: len(name.waiters) == 23)
            assert lookups() == ["resolve hang.test"]
            server.gate.set()
            assert {(await task)[0][1][0] for task in tasks} == {IP}
            for other in others:
                other.join(PATIENCE)
        assert server.asked == ["hang.test"]

    async def ask_once() -> None:
        assert await names.name("hang.test").look_up("test")

    run(ask())


def test_a_queued_lookup_without_waiters_never_begins(server: NameServer) -> None:
    async def ask() -> None:
        hosts = [f"hang{number}.test" for number in range(500)]
        with asking(hosts):
            await turns(lambda: len(server.asked) == THREADS[Standing.NEW])
        await turns(lambda: len(asyncio.all_tasks()) <= 2)
        assert len(lookups()) == THREADS[Standing.NEW]
        assert not any(names._LOOKUPS._queued.values())
        gc.collect()
        assert len(names._LOOKUPS._names) == len(lookups())
        server.gate.set()
        await turns(lambda: not lookups())
        assert len(server.asked) == THREADS[Standing.NEW]

    run(ask())


def test_names_that_hang_leave_room_for_new_names_and_for_answered_ones(
    server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "_SLOW", 0.0)

    async def ask() -> None:
        slow = [names.name(f"hang-slow{number}.test") for number in range(100)]
        for one in slow:
            one.standing = Standing.SLOW
        prompt = names.name("prompt.test")
        prompt.standing = Standing.PROMPT
        with asking([one.host for one in slow]):
            await turns(lambda: len(lookups()) == THREADS[Standing.SLOW])
            assert await names.name("new.test").look_up("test")
            with asking([f"hang-new{number}.test" for number in range(100)]):
                await turns(lambda: len(lookups()) == THREADS[Standing.NEW])
                assert await prompt.look_up("test")
                hosts = [f"hang-prompt{number}.test" for number in range(100)]
                known = [names.name(host) for host in hosts]
                for one in known:
                    one.standing = Standing.PROMPT
                with asking(hosts):
                    await turns(lambda: len(lookups()) == THREADS[Standing.PROMPT])
                    assert len(server.asked) == THREADS[Standing.PROMPT] + 2

    run(ask())


def test_a_name_counts_as_slow_after_a_hung_lookup_and_as_prompt_after_a_quick_one(
    server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask() -> None:
        name = names.name("hang.test")
        standings = [name.standing]
        server.gate.set()
        for slow in (PATIENCE, 0.0):
            monkeypatch.setattr(names, "_SLOW", slow)
            await name.look_up("test")
            standings.append(name.standing)
        assert standings == [Standing.NEW, Standing.PROMPT, Standing.SLOW]

    run(ask())


def test_a_lookup_without_a_free_thread_fails_with_that_reason(
    server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(_: object) -> None:
        raise RuntimeError("can't start new thread")

    async def ask() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", none_left)
            with pytest.raises(OSError, match="can't start new thread"):
                await names.name("full.test").look_up("test")
        assert await names.name("full.test").look_up("test")

    run(ask())
    assert server.asked == ["full.test"]


def test_a_closed_loop_does_not_keep_the_answer_from_other_loops(server: NameServer) -> None:
    async def give_up() -> None:
        with asking(["hang.test"]):
            await turns(lambda: server.asked)

    async def leave_behind() -> None:
        waiter: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        names._LOOKUPS.ask(names.name("hang.test"), waiter)

    async def ask() -> None:
        with asking(["hang.test"]) as (task,):
            await asyncio.sleep(0)
            server.gate.set()
            assert await task

    run(give_up())
    run(leave_behind())
    run(ask())
    assert server.asked == ["hang.test"]


def test_addresses_are_never_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def thread(*_: object, **__: object) -> None:
        raise AssertionError("a thread is started for an address")

    async def ask() -> None:
        assert await names.addresses("127.0.0.1", "test") == ((socket.AF_INET, ("127.0.0.1", 0)),)
        assert await names.addresses("::", "test") == ((socket.AF_INET6, ("::", 0, 0, 0)),)

    monkeypatch.setattr(threading, "Thread", thread)
    run(ask())


def test_a_timeout_names_the_cause(server: NameServer) -> None:
    async def ask() -> None:
        with pytest.raises(OSError, match=r"name server.* 0\.05 s$"):
            await names.addresses("hang.test", "test", 0.05)
        server.gate.set()
        assert await names.addresses("hang.test", "test", PATIENCE)

    run(ask())


# Backends


async def generations(
    count: int, hosts: Callable[[int], list[str]], timeout_ms: int
) -> AsyncIterator[Resolver]:
    """Yield the resolver of one configuration after another; each starts before its predecessor ends."""
    former = None
    for number in range(count):
        current = Resolver(backends(*hosts(number)))
        await current.start(timeout_ms)
        if former is not None:
            await former.stop()
        yield current
        former = current
    assert former is not None
    await former.stop()


@pytest.mark.parametrize("are_new", [False, True], ids=["the same names", "other names each time"])
def test_a_hundred_reloads_with_names_that_hang_add_no_thread(server: NameServer, *, are_new: bool) -> None:
    def hosts(number: int) -> list[str]:
        return [f"hang{index}-{number if are_new else 0}.test:80" for index in range(20)]

    async def reload() -> None:
        async for _ in generations(100, hosts, 1):
            await asyncio.sleep(0)
            assert len(lookups()) <= (THREADS[Standing.NEW] if are_new else 20)
        await asyncio.sleep(0)  # drops the results of the last wait
        assert len(names._LOOKUPS._names) == len(lookups())
        assert len(asyncio.all_tasks()) <= 2

    run(reload())
    assert len(server.asked) == (THREADS[Standing.NEW] if are_new else 20)


def test_a_reload_does_not_wait_for_known_names_or_names_already_waited_for(server: NameServer) -> None:
    hosts = [*(f"known{number}.test" for number in range(5)), "hang.test"]

    async def reload() -> None:
        first = Resolver(backends(*(f"{host}:80" for host in hosts)))
        await first.start(100)
        again = backends(*(f"{host}:{port}" for host in hosts for port in (80, 443)))
        second = Resolver(again)
        begun = time.monotonic()
        await second.start(100)
        assert fair_seconds_since(begun) < 0.1
        for one in again:
            is_known = one.address.host != "hang.test"
            assert one.socket_addresses == ((socket.AF_INET, (IP, one.address.port)),) * is_known
        await first.stop()
        await second.stop()

    run(reload())
    assert sorted(server.asked) == sorted(hosts)


def test_the_last_good_answer_survives_failures_and_reloads(
    server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver, "_REFRESH", 0.01)

    async def reload() -> None:
        async for current in generations(5, lambda _: ["moves.test:80"], 1_000):
            server.failing = True
            await server.await_lookups(3)
            (known,) = current.names
            assert known.found

    run(reload())


def test_a_stop_does_not_wait_for_names_that_hang(server: NameServer) -> None:
    del server

    async def stop() -> None:
        one = Resolver(backends(*(f"hang{number}.test:80" for number in range(100))))
        await one.start(1)
        begun = time.monotonic()
        await one.stop()
        assert fair_seconds_since(begun) < 1

    run(stop())


def test_names_that_hang_are_logged_with_their_backends_and_not_too_often(
    server: NameServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    del server
    monkeypatch.setattr(names, "_SLOW", 0.01)

    async def hang() -> None:
        async for _ in generations(20, lambda _: ["hang.test:80", "hang.test:81"], 1):
            await turns(lambda: caplog.records)
            await asyncio.sleep(0.001)  # lets the tasks of this generation log too

    with caplog.at_level(logging.WARNING, "refractium"):
        run(hang())
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "backend hang.test:80, hang.test:81: the name has not been answered"
    )


def test_names_that_fail_are_logged_with_their_backends_and_not_too_often(
    server: NameServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(resolver, "_REFRESH", 0.01)

    async def fail() -> None:
        async for _ in generations(5, lambda _: ["none.test:81", "none.test:82"], 1):
            await server.await_lookups(3)

    with caplog.at_level(logging.WARNING, "refractium"):
        run(fail())
    (record,) = caplog.records
    reason = "Temporary failure in name resolution"
    assert record.getMessage() == (
        f"backend none.test:81, none.test:82: the name cannot be resolved: {reason}"
    )
