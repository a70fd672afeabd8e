"""A proxy in a separate thread, and the invariants that must hold at the end of a test."""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import re
import resource
import socket
import stat
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import uvloop

from refractium import (
    NEED_MORE,
    NO,
    Identification,
    ListenerRules,
    Protocol,
    ProtocolMatch,
    Refractium,
    Settings,
    Strength,
    Transport,
    define_protocol,
)
from support.clients import PATIENCE, connect
from support.process import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from typing import Self

    from refractium import Route
    from refractium.hooks import HookUse
    from refractium.observe.status import Status
    from refractium.proxy.counters import TcpCounters
    from refractium.proxy.summary import Summary
    from refractium.proxy.tcp import TcpService

    LoopKind = Literal["uvloop", "asyncio"]

HOOKS_OF_ALL: Sequence[HookUse] = ()
"""Packet hooks of every proxy; `support.paths` may set it."""
HOST = "127.0.0.1"
"""The default address of proxies; `support.paths` may set it."""

_IDLE: Final = 0.1
"""Seconds for which a proxy must be idle; a spinning proxy uses the processor all that time."""
_TCP_CLOSE_WAIT: Final = 8
"""The value of ``tcpi_state``, the first byte of TCP_INFO, for CLOSE_WAIT (Linux, net/tcp_states.h)."""


class ProxyThread:
    """A `Refractium` that runs on an event loop in a separate thread while the block runs.

    If the block ends without an error, `ProxyThread` asserts the invariants: no client is connected or
    counted any more. Every accepted connection has finished or was refused. The thread is idle, no socket
    waits to be closed, and the log has no unexpected warning.

    Args:
        routes: the routes of the `Refractium`, for TCP and UDP.
        fallback: the fallback of the `Refractium` for TCP.
        fallback_udp: the fallback for UDP. With this fallback, or with a route for UDP, it also serves UDP.
        rules: the rules of the listeners.
        hooks: the hooks of every route and of the fallbacks.
        settings: limits and timeouts; by default, timeouts are short and one address may connect 10,000
            times.
        host: the address to listen on, instead of `HOST`.
        port: the port; 0 for any free port.
        expected: regular expressions for warnings that the test provokes.
        loop: the kind of event loop.

    Attributes:
        engine: the proxy.
        port: its port.
        address: the host and port for clients on this machine.
    """

    def __init__(
        self,
        *routes: Route,
        fallback: str | Sequence[str] = (),
        fallback_udp: str | Sequence[str] = (),
        rules: ListenerRules | None = None,
        hooks: Sequence[HookUse] = (),
        settings: Settings | None = None,
        host: str | None = None,
        port: int = 0,
        expected: Sequence[str] = (),
        loop: LoopKind = "uvloop",
    ) -> None:
        tcp = [route for route in routes if route.transport is Transport.TCP]
        udp = [route for route in routes if route.transport is Transport.UDP]
        self._serves_udp = bool(udp or fallback_udp)
        self.engine = Refractium(
            tcp,
            udp,
            fallback_tcp=fallback,
            fallback_udp=fallback_udp,
            settings=settings or quick(),
            listeners={"": rules or ListenerRules()},
            hooks=(*HOOKS_OF_ALL, *hooks),
        )
        self._host = host or HOST
        self._port = port
        self._expected = [re.compile(pattern) for pattern in expected]
        self._loop_kind: LoopKind = loop
        self._log = _Log()
        self._started: queue.SimpleQueue[tuple[str, ...] | BaseException] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._over = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop

    def __enter__(self) -> Self:
        self._log.attach()
        self._thread.start()
        started = self._started.get(timeout=PATIENCE)
        if isinstance(started, BaseException):
            self._log.detach()
            raise started
        self.addresses = started
        self.port = int(started[0].rpartition(":")[2])
        self.address = ("::1" if self._host == "::1" else "127.0.0.1", self.port)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.await_drained()
                self.await_idle()
                self._assert_nothing_counted()
                self._assert_nothing_waits_to_be_closed()
        finally:
            self.call(self.engine.stop(0))
            self._loop.call_soon_threadsafe(self._over.set)
            self._thread.join(PATIENCE)
            self._log.detach()
        assert not self._thread.is_alive()
        if kind is None:
            self._assert_nothing_unexpected_logged()

    def _run(self) -> None:
        factory = uvloop.new_event_loop if self._loop_kind == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(self._main())

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            port = free_port() if self._serves_udp and not self._port else self._port
            addresses = await self.engine.start_tcp(self._host, port)
            if self._serves_udp:
                await self.engine.start_udp(self._host, port)
        except BaseException as error:  # noqa: BLE001 - raised in the test
            self._started.put(error)
            return
        self._started.put(addresses)
        await self._over.wait()

    # Methods for tests

    def call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine in the proxy's loop and return its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE)

    def begin(self, coroutine: Coroutine[Any, Any, Any]) -> Callable[[], Any]:
        """Start a coroutine in the proxy's loop, and return a function that waits for its result."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return lambda: future.result(PATIENCE)

    def block(self, action: Callable[[], None]) -> None:
        """Do something while the proxy's loop is blocked, so that it gets all new events at once."""
        blocked, go_on = threading.Event(), threading.Event()

        def wait() -> None:
            blocked.set()
            go_on.wait(PATIENCE)

        self._loop.call_soon_threadsafe(wait)
        assert blocked.wait(PATIENCE)
        try:
            action()
        finally:
            go_on.set()

    def connect(self, *, source: str | None = None, receive_buffer: int = 0) -> socket.socket:
        """Return the socket of a new client."""
        return connect(self.address, source=source, receive_buffer=receive_buffer)

    @property
    def service(self) -> TcpService:
        """The TCP service, which only the invariants and their tests may inspect."""
        service = self.engine._tcp
        assert service is not None
        return service

    def status(self) -> Status:
        """Return the status of the engine."""

        async def told() -> Status:
            return self.engine.status_now()

        found: Status = self.call(told())
        return found

    @property
    def counters(self) -> TcpCounters:
        return self.engine.counters

    def next_end(self) -> Summary:
        """Wait for the next connection to end, and return its record in the access log."""
        return self._log.ended.get(timeout=PATIENCE)

    def next_open(self) -> Summary:
        """Wait for the next connection to be open for a second, and return its record in the access log."""
        return self._log.opened.get(timeout=PATIENCE)

    @property
    def warnings(self) -> list[str]:
        """The log lines so far at WARNING and above."""
        return list(self._log.lines)

    def await_active(self, count: int) -> None:
        """Wait until `count` connections are open; no event reports that."""
        eventually(lambda: self.engine.active == count, f"{count} connections")

    def await_drained(self) -> None:
        """Wait until no connection is open."""
        service = self.engine._tcp
        assert service is not None

        async def wait() -> None:
            with suppress(TimeoutError):
                await asyncio.wait_for(service.drained.wait(), PATIENCE / 2)

        self.call(wait())
        if self.engine._udp is not None:
            sessions = self.engine._udp.sessions
            eventually(lambda: not (sessions or self.engine.active), "the sessions have ended")
        assert not self.engine.active, f"still open: {service.connections}"

    def cpu_seconds(self) -> float:
        """Return the seconds of processor time that the proxy's thread has used."""
        assert self._thread.ident is not None
        return time.clock_gettime(time.pthread_getcpuclockid(self._thread.ident))

    def await_idle(self, seconds: float = _IDLE) -> None:
        """Wait until the proxy has used under a tenth of a processor for `seconds`.

        A spinning proxy uses a whole processor.
        """
        deadline = time.monotonic() + PATIENCE
        used = seconds
        while used > 0.1 * seconds:
            assert time.monotonic() < deadline, f"{used:.3f} s of processor time in {seconds} s"
            before = self.cpu_seconds()
            time.sleep(seconds)
            used = self.cpu_seconds() - before

    # Invariants

    def _assert_nothing_counted(self) -> None:
        service = self.engine._tcp
        assert service is not None
        assert service.limiter.active == 0
        assert service.limiter._by_origin == {}
        counters = service.counters
        assert counters.accepted == counters.finished + counters.refused, counters
        for now in service.snapshots.values():
            for queued in (now.peeking, now.connecting, *now.idle.values(), *now.half_closed.values()):
                assert not len(queued), "a timeout outlives its connection"
        assert not len(service.room) + len(service.room.silence), "a half-close outlives its connection"
        watched = len(service.listeners)
        if self.engine._udp is not None:
            watched += len(self.engine._udp.listeners)
            totals = self.engine.udp_counters
            assert totals.sessions == totals.finished, totals
        assert len(service.reactor._handlers) == watched, "somebody is still watched"

        async def lent() -> int:
            return service.descriptors.lent - 2 * len(service.welding.pipes._free)

        assert self.call(lent()) == 0, "descriptors were not given back"

    def _assert_nothing_waits_to_be_closed(self) -> None:
        assert not _sockets_in_close_wait(self.port)

    def _assert_nothing_unexpected_logged(self) -> None:
        unexpected = [line for line in self._log.lines if not any(one.search(line) for one in self._expected)]
        assert not unexpected


def quick(**values: Any) -> Settings:
    """Return settings with short timeouts, and with limits that no single address reaches."""
    return Settings(
        **{
            "max_connections_per_ip": 10_000,
            "max_udp_sessions_per_ip": 10_000,
            "peek_timeout_ms": 2_000,
            "connect_timeout_ms": 2_000,
            "idle_timeout_ms": 20_000,
            **values,
        }
    )


def starting_with(
    magic: bytes, *, name: str = "magic", strength: Strength = Strength.EXACT, server_first: bool = False
) -> Protocol:
    """Return a protocol whose clients start with `magic`."""

    @define_protocol(
        name, max_bytes=len(magic), prefixes=(magic,), strength=strength, server_first=server_first
    )
    def identify(data: bytes) -> Identification:
        if data.startswith(magic):
            return ProtocolMatch()
        return NEED_MORE if magic.startswith(data) else NO

    return identify


def eventually(holds: Callable[[], bool], what: str) -> None:
    """Wait until a condition holds, if no event reports it; return at once when it does."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.001)


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


def open_descriptors() -> set[str]:
    """Return the file descriptors of this process, each with the target of its link in /proc."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names are wanted
        with suppress(OSError):
            found.add(f"{fd} {Path('/proc/self/fd', fd).readlink()}")
    return {one for one in found if "/proc/" not in one}


def _sockets_in_close_wait(port: int) -> list[int]:
    """Return the sockets of this process at a port whose peer has closed.

    The function asks each socket, because /proc/net/tcp lists all sockets of the machine: reading it takes
    20 ms while other tests run.
    """
    return [int(fd) for fd in os.listdir("/proc/self/fd") if _is_in_close_wait(int(fd), port)]  # noqa: PTH208


def _is_in_close_wait(fd: int, port: int) -> bool:
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            return False
        with socket.socket(fileno=os.dup(fd)) as sock:
            state: int = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
            return state == _TCP_CLOSE_WAIT and sock.getsockname()[1] == port
    except OSError:  # closed in the meantime, or no TCP socket
        return False


class _Log(logging.Handler):
    """A log handler that keeps warnings as text, and the ends of connections as records."""

    _LOGGERS: Final = ("refractium", "asyncio")

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []
        self.ended: queue.SimpleQueue[Summary] = queue.SimpleQueue()
        self.opened: queue.SimpleQueue[Summary] = queue.SimpleQueue()

    def attach(self) -> None:
        for name in self._LOGGERS:
            logging.getLogger(name).addHandler(self)
        access = logging.getLogger("refractium.access")
        access.setLevel(logging.DEBUG)
        access.addHandler(self)
        access.propagate = False

    def detach(self) -> None:
        access = logging.getLogger("refractium.access")
        access.setLevel(logging.NOTSET)
        access.removeHandler(self)
        access.propagate = True
        for name in self._LOGGERS:
            logging.getLogger(name).removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        summary: Summary | None = getattr(record, "connection", None)
        if summary is not None:
            (self.opened if summary.ended is None else self.ended).put(summary)
        if record.levelno >= logging.WARNING:
            self.lines.append(self.format(record))
