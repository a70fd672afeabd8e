"""A running proxy for tests, with clients."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import socket
import threading
from typing import TYPE_CHECKING, Any, Final, TypeVar
from typing import Protocol as StructuralType

from refractium.contract import Protocol, Transport
from refractium.engine.engine import Refractium
from refractium.routing import Member, Route
from refractium.settings import Settings
from refractium.testing.backend import HOST, PATIENCE, Backend
from refractium.testing.laws import show

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
    from types import TracebackType

    from refractium.hooks import HookUse
    from refractium.observe.status import Status
    from refractium.proxy.summary import Summary

_SETTINGS: Final = Settings(max_connections_per_ip=10_000, max_udp_sessions_per_ip=10_000)
"""The default settings: all clients of a test have one address."""
_BUFFER: Final = 65_536
_TURNS: Final = 3
"""Number of turns of the event loop after which the proxy has read all bytes that had arrived."""
_MOST_SHOWN: Final = 10

R = TypeVar("R")


class Serve(StructuralType):
    """The type of the fixture ``refractium_serve``: like `serve`, but the end of the test stops the proxy."""

    def __call__(
        self,
        *routes: Route | Protocol,
        fallback_tcp: str | Sequence[str] = (),
        fallback_udp: str | Sequence[str] = (),
        hooks: Sequence[HookUse] = (),
        settings: Settings = ...,
    ) -> Proxy:
        """Start a proxy; the arguments are those of `serve`."""


def serve(
    *routes: Route | Protocol,
    fallback_tcp: str | Sequence[str] = (),
    fallback_udp: str | Sequence[str] = (),
    hooks: Sequence[HookUse] = (),
    settings: Settings = _SETTINGS,
) -> Serving:
    r"""Run a proxy on a free port of this machine while the block runs.

    ::

        with serve(knock) as proxy:
            assert proxy.ask(b"KNOCK\n") == b"KNOCK\n"

        async with serve(knock) as proxy:
            assert await proxy.ask(b"KNOCK\n") == b"KNOCK\n"

    The proxy has a thread and an event loop of its own. `serve` also runs each `Backend` in its arguments, if
    this `Backend` does not run yet. If the block raises an exception, a note of the exception lists the
    sessions and the warnings of the proxy.

    Args:
        routes: the routes. A protocol stands for a route to an echo backend.
        fallback_tcp: see `EngineSpec.fallback_tcp`.
        fallback_udp: see `EngineSpec.fallback_udp`.
        hooks: see `EngineSpec.hooks`.
        settings: limits and timeouts. By default, one address may open 10,000 connections.

    Returns:
        A context manager, which gives a `Proxy`; as an async context manager, it gives an `AsyncProxy`.

    Raises:
        AssertionError: at the end of the block: a plugin has failed in the proxy, or a backend with a script
            has received other bytes.
        ConfigError: at the beginning of the block: an argument is not valid.
    """
    return Serving(routes, fallback_tcp, fallback_udp, hooks, settings)


class Proxy:
    """A running proxy, for blocking clients. The end of the block closes the sockets of the clients.

    Attributes:
        address: the IP address and the port, for TCP and UDP.
    """

    address: tuple[str, int]

    def __init__(self, running: Running) -> None:
        self.address = running.address
        self._running = running
        self._clients: list[socket.socket] = []

    def ask(self, *pieces: bytes, transport: Transport | None = None) -> bytes:
        """Send the bytes of a new client, and return the answer.

        Over TCP, this method ends the sending side after the pieces, and returns all bytes until the proxy
        ends the connection. The proxy reads each piece before the next piece comes. Over UDP, each piece is a
        datagram, and the answer is one datagram.

        Args:
            pieces: the bytes.
            transport: the transport of the client; by default TCP, if the proxy serves TCP.

        Raises:
            ConnectionResetError: the proxy has reset the connection.
            TimeoutError: no answer, or no end of the answer, within 30 seconds.
        """
        answer = bytearray()
        with self.connect(*pieces, transport=transport) as client:
            try:
                if client.type is socket.SOCK_DGRAM:
                    return client.recv(_BUFFER)
                with contextlib.suppress(OSError):  # the proxy has closed the connection
                    client.shutdown(socket.SHUT_WR)
                while data := client.recv(_BUFFER):
                    answer += data
            except TimeoutError:
                came = f"received {show(bytes(answer))}" if answer else "received nothing"
                sent = show(b"".join(pieces))
                raise TimeoutError(
                    f"no end of the answer to {sent} within {PATIENCE:g} s: {came}; {self._described}"
                ) from None
        return bytes(answer)

    def connect(self, *pieces: bytes, transport: Transport | None = None) -> socket.socket:
        """Return the socket of a new client, which has sent these bytes.

        Args:
            pieces: the first bytes, in the form of `ask`.
            transport: the transport of the client; by default TCP, if the proxy serves TCP.

        Raises:
            ConnectionError: the proxy has closed or reset the connection before the last piece.
            ValueError: the proxy does not serve the transport.
        """
        kind = self._running.kind_of(transport)
        client = socket.socket(socket.AF_INET, kind)
        self._clients.append(client)
        client.settimeout(PATIENCE)
        client.connect(self.address)
        if kind is socket.SOCK_STREAM:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number, piece in enumerate(pieces):
            if number:
                self._running.call(self._running.settle())
            client.sendall(piece)
        return client

    def pair(self, backend: Backend, *pieces: bytes) -> tuple[socket.socket, socket.socket]:
        """Return both ends of a new TCP connection through the proxy: of the client, and of the backend.

        Args:
            backend: the backend that the connection reaches, made by ``Backend()``.
            pieces: the first bytes of the client, which decide the route. The backend's end receives them.

        Raises:
            TimeoutError: no connection has reached the backend within 30 seconds.
        """
        client = self.connect(*pieces)
        return client, backend.accept()

    def ended(self) -> Summary:
        """Wait for the end of the next connection or UDP session, and return its line of the access log.

        Raises:
            TimeoutError: nothing has ended within 30 seconds.
        """
        return self._running.ended()

    def release(self, client: socket.socket) -> socket.socket:
        """Return the socket of a client, which the end of the block then does not close."""
        self._clients.remove(client)
        client.setblocking(False)  # noqa: FBT003 - positional by its nature
        return client

    def close(self) -> None:
        """Close the sockets of all clients."""
        for client in self._clients:
            client.close()

    def __repr__(self) -> str:
        return self._described

    @property
    def _described(self) -> str:
        return f"<Proxy {HOST}:{self.address[1]}: {'; '.join(self._running.sessions())}>"


class AsyncProxy:
    """A running proxy, for a test that is a coroutine. The methods do not block the event loop of the test.

    Attributes:
        address: the IP address and the port, for TCP and UDP.
    """

    address: tuple[str, int]

    def __init__(self, proxy: Proxy) -> None:
        self.address = proxy.address
        self._proxy = proxy
        self._writers: list[asyncio.StreamWriter] = []

    async def ask(self, *pieces: bytes, transport: Transport | None = None) -> bytes:
        """Send the bytes of a new client, and return the answer: see `Proxy.ask`."""
        return await asyncio.to_thread(self._proxy.ask, *pieces, transport=transport)

    async def connect(self, *pieces: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return the streams of a new TCP client, which has sent these bytes: see `Proxy.connect`."""
        client = await asyncio.to_thread(self._proxy.connect, *pieces, transport=Transport.TCP)
        reader, writer = await asyncio.open_connection(sock=self._proxy.release(client))
        self._writers.append(writer)
        return reader, writer

    async def ended(self) -> Summary:
        """Wait for the end of the next connection or UDP session: see `Proxy.ended`."""
        return await asyncio.to_thread(self._proxy.ended)

    async def close(self) -> None:
        """Close the streams of all clients."""
        for writer in self._writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def __repr__(self) -> str:
        return repr(self._proxy)


class Serving:
    """The context manager that `serve` returns."""

    def __init__(
        self,
        routes: Sequence[Route | Protocol],
        fallback_tcp: str | Sequence[str],
        fallback_udp: str | Sequence[str],
        hooks: Sequence[HookUse],
        settings: Settings,
    ) -> None:
        self._given = routes
        self._fallbacks = {Transport.TCP: fallback_tcp, Transport.UDP: fallback_udp}
        self._hooks = hooks
        self._settings = settings
        self._backends = contextlib.ExitStack()

    def _prepared(self) -> Running:
        """Start the backends, and return the proxy, which does not run yet."""
        routes = [
            Route(one, Backend.echo(one.transport)) if isinstance(one, Protocol) else one
            for one in self._given
        ]
        named = [route.forward_to for route in routes] + list(self._fallbacks.values())
        try:
            for backend in {id(one): one for targets in named for one in _backends_in(targets)}.values():
                if not backend.is_running:
                    self._backends.enter_context(backend)
            return Running(routes, self._fallbacks, self._hooks, self._settings)
        except BaseException:
            self._backends.close()
            raise

    def _finish(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the backends, and report what has failed beside the block."""
        if error is not None:
            error.add_note(self._running.story())
        self._backends.__exit__(kind, error, trace)
        if error is None:
            self._running.raise_faults()

    def __enter__(self) -> Proxy:
        self._running = self._prepared()
        self._thread = _LoopThread()
        try:
            self._thread.call(self._running.start())
        except BaseException:
            self._thread.stop()
            self._backends.close()
            raise
        self._proxy = Proxy(self._running)
        return self._proxy

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._proxy.close()
        try:
            self._thread.call(self._running.stop())
        finally:
            self._thread.stop()
            self._finish(kind, error, trace)

    async def __aenter__(self) -> AsyncProxy:
        self._async_proxy = AsyncProxy(await asyncio.to_thread(self.__enter__))
        return self._async_proxy

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._async_proxy.close()
        finally:
            await asyncio.to_thread(self.__exit__, kind, error, trace)


class Running:
    """An engine with its sessions and warnings so far, for a `Proxy`.

    Attributes:
        address: the IP address and the port.
    """

    address: tuple[str, int]

    def __init__(
        self,
        routes: Sequence[Route],
        fallbacks: Mapping[Transport, str | Sequence[str]],
        hooks: Sequence[HookUse],
        settings: Settings,
    ) -> None:
        by_transport = {one: [route for route in routes if route.transport is one] for one in Transport}
        self._transports = [one for one in Transport if by_transport[one] or fallbacks[one]]
        if not self._transports:
            raise ValueError("a proxy needs a route or a fallback")
        self._report = _Report()
        self._warnings = _Warnings()
        self._failures: list[str] = []
        self._engine = Refractium(
            by_transport[Transport.TCP],
            by_transport[Transport.UDP],
            fallback_tcp=fallbacks[Transport.TCP],
            fallback_udp=fallbacks[Transport.UDP],
            hooks=hooks,
            settings=settings,
            report=self._report,
        )

    async def start(self) -> None:
        """Listen on a free port, which is the same port for each transport."""
        self._loop = asyncio.get_running_loop()
        sockets = _bound(self._transports)
        self.address = sockets[0].getsockname()
        self._warnings.begin()
        try:
            while sockets:
                await self._engine.start_on(sockets.pop(0))
        except BaseException:
            for sock in sockets:
                sock.close()
            self._warnings.end()
            raise

    async def stop(self) -> None:
        """Stop the engine, after the ends of its clients have arrived."""
        try:
            await self.settle()
            await self._engine.stop(0)
            self._failures = list(_failures_in(self._engine.status_now()))
        finally:
            self._warnings.end()

    async def settle(self) -> None:
        """Wait until the engine has read everything that has arrived."""
        for _ in range(_TURNS):
            await asyncio.sleep(0)

    def call(self, coroutine: Coroutine[Any, Any, R]) -> R:
        """Run a coroutine in the event loop of the engine, from another thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE)

    def kind_of(self, transport: Transport | None) -> socket.SocketKind:
        """Return the kind of socket for clients of a transport; None stands for the first transport."""
        transport = transport or self._transports[0]
        if transport not in self._transports:
            raise ValueError(f"the proxy has no route for {transport}")
        return socket.SOCK_STREAM if transport is Transport.TCP else socket.SOCK_DGRAM

    def ended(self) -> Summary:
        """Wait for the next session to end: see `Proxy.ended`."""
        try:
            return self._report.ended.get(timeout=PATIENCE)
        except queue.Empty:
            raise TimeoutError(
                f"no session has ended within {PATIENCE:g} s; {self._engine.active} sessions are open"
            ) from None

    def sessions(self) -> list[str]:
        """Return a line for each of the last sessions that have ended; one line if none has ended."""
        ended = [_line(summary) for summary in self._report.summaries[-_MOST_SHOWN:]]
        return ended or ["no session has ended"]

    def story(self) -> str:
        """Return the sessions and warnings, for the note of an error."""
        lines = [f"the proxy on {HOST}:{self.address[1]}:", *self.sessions(), *self._warnings.lines]
        return "\n  ".join(lines)

    def raise_faults(self) -> None:
        """Raise an `AssertionError` if a plugin has failed."""
        if self._failures:
            lines = ["a plugin has failed in the proxy:", *self._failures]
            raise AssertionError("\n  ".join([*lines, self.story()]))


class _Report:
    """A receiver of summaries, in place of the access log."""

    def __init__(self) -> None:
        self.summaries: list[Summary] = []
        self.ended: queue.SimpleQueue[Summary] = queue.SimpleQueue()

    def is_wanted(self) -> bool:
        return True

    def write(self, summary: Summary) -> None:
        self.summaries.append(summary)
        self.ended.put(summary)


class _Warnings(logging.Handler):
    """A log handler that keeps the warnings of Refractium.

    Attributes:
        lines: the warnings and errors.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def begin(self) -> None:
        logging.getLogger("refractium").addHandler(self)

    def end(self) -> None:
        logging.getLogger("refractium").removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname.lower()}: {record.getMessage()}")


class _LoopThread:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self._over = asyncio.Event()
        self._started: queue.SimpleQueue[asyncio.AbstractEventLoop] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="refractium", daemon=True)
        self._thread.start()
        self._loop = self._started.get()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(self._main())

    async def _main(self) -> None:
        self._started.put(asyncio.get_running_loop())
        await self._over.wait()

    def call(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine to its end."""
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE)

    def stop(self) -> None:
        """End the loop and the thread."""
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(PATIENCE)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """Return the event loop of the program: uvloop, or asyncio's own loop where uvloop is not installed."""
    try:
        from uvloop import new_event_loop  # noqa: PLC0415 - optional
    except ImportError:
        return asyncio.new_event_loop
    return new_event_loop


def _bound(transports: Sequence[Transport]) -> list[socket.socket]:
    """Return a socket for each transport, all on one free port."""
    while True:
        sockets: list[socket.socket] = []
        port = 0
        try:
            for transport in transports:
                kind = socket.SOCK_STREAM if transport is Transport.TCP else socket.SOCK_DGRAM
                sockets.append(sock := socket.socket(socket.AF_INET, kind))
                sock.bind((HOST, port))
                port = sock.getsockname()[1]
                if transport is Transport.TCP:
                    sock.listen()
        except OSError:
            for sock in sockets:
                sock.close()
            if not port:
                raise
            continue  # another program uses the port for the other transport
        return sockets


def _backends_in(targets: str | Member | Sequence[str | Member]) -> Iterator[Backend]:
    for target in [targets] if isinstance(targets, str | Member) else targets:
        address = target.address if isinstance(target, Member) else target
        if isinstance(address, Backend):
            yield address


def _failures_in(status: Status) -> Iterator[str]:
    """Yield a line for each plugin that has failed."""
    for faults in (status.tcp.faults, status.udp.faults):
        for name, count in faults.items():
            yield f"{name}: {count} {'fault' if count == 1 else 'faults'}"
    for hook in status.hooks:
        if hook.failures or hook.reason:
            yield f"hook {hook.name}: {hook.failures} exceptions; {hook.reason or 'not detached'}"


def _line(summary: Summary) -> str:
    """Return a session in one line."""
    protocol = summary.protocol or "no protocol"
    way = f"route {summary.route} to {summary.backend}" if summary.route else "no route"
    count = f"{summary.up} bytes in, {summary.down} bytes out"
    return f"{summary.client} {protocol}: {way}: {count}: {summary.ended}"
