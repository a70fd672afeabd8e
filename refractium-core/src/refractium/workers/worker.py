"""A worker process: ``python -m refractium.workers.worker CHANNEL TCP UDP NUMBER``.

CHANNEL is the descriptor of the channel to the supervisor. TCP and UDP are the descriptors of the tables of
shared limits. NUMBER is the number of the worker, from 1.

A worker carries out the orders of its supervisor. It ends when the supervisor has closed the channel, or has
died. A worker ignores SIGINT, SIGTERM and SIGHUP: a service manager sends these signals to all processes, but
only the supervisor acts on them.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import signal
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from refractium.backends.state import Availability
from refractium.contract import Transport
from refractium.engine.engine import Refractium, Shared
from refractium.engine.loop import run
from refractium.errors import RefractiumError
from refractium.guard.faults import is_ours, text_of
from refractium.sockets import names
from refractium.system import oom
from refractium.workers.channel import Channel
from refractium.workers.messages import (
    Ask,
    Belief,
    Believe,
    ClientFailed,
    ClientReached,
    Configure,
    Done,
    Know,
    Listen,
    Order,
    Stop,
    StopAccepting,
    StopListening,
    Told,
)
from refractium.workers.shared_limiter import LimitTable, SharedLimiter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from refractium.backends.state import BackendState
    from refractium.engine.spec import EngineSpec
    from refractium.proxy.summary import Reporter
    from refractium.sockets.names import HostName
    from refractium.workers.messages import StateKey

log = logging.getLogger("refractium")


class Worker:
    """A worker. It carries out `Configure`, `Listen` and `StopListening` in turn, and other orders at once.

    Args:
        sock: the socket of the channel.
        tables: the tables in which the worker counts its connections and sessions.
        number: the number of the worker, from 1.
    """

    def __init__(self, sock: socket.socket, tables: Mapping[Transport, LimitTable], number: int) -> None:
        self._tables = tables
        self._number = number
        self._orders: asyncio.Queue[Order] = asyncio.Queue()
        self._ended = asyncio.Event()
        self._stops: set[asyncio.Task[None]] = set()
        self._engine: Refractium | None = None
        self._names: list[HostName] = []
        self._channel: Channel[Order] = Channel(sock, Order, self._received, self._ended.set)
        self._beliefs = {transport: _Beliefs(transport, self._channel) for transport in Transport}

    async def run(self) -> None:
        """Work until the channel to the supervisor ends. Then let open connections finish."""
        working = asyncio.create_task(self._work())
        await self._ended.wait()
        working.cancel()
        await asyncio.gather(working, *self._stops, return_exceptions=True)
        if self._engine is not None:
            await self._engine.stop()

    def _received(self, order: Order) -> None:
        if isinstance(order, Ask):
            status = None if self._engine is None else self._engine.status_now()
            self._channel.send(Told(order.number, status))
        elif isinstance(order, Believe):
            self._beliefs[order.belief.transport].hold(order.belief)
        elif isinstance(order, Know):
            # The list keeps the names alive until the engine asks for them. So the engine need not wait for a
            # name server, and a worker has addresses even if no name server answers while the worker starts.
            self._names = [names.told(one.host, one.found, one.asked, one.looked_up) for one in order.names]
        elif isinstance(order, StopAccepting):
            self._stops.add(asyncio.create_task(self._answer(order.number, self._stop_accepting, order)))
        elif isinstance(order, Stop):
            # A second `Stop` may come while the first `Stop` waits for connections, to shorten the wait.
            self._stops.add(asyncio.create_task(self._stop(order)))
        else:
            self._orders.put_nowait(order)

    async def _work(self) -> None:
        while True:
            order = await self._orders.get()
            if isinstance(order, Configure):
                await self._answer(order.number, self._configure, order)
            elif isinstance(order, Listen):
                await self._answer(order.number, self._listen, order)
            elif isinstance(order, StopListening):
                await self._answer(order.number, self._stop_listening, order)

    async def _answer(self, number: int, carry_out: Callable[[Any], Any], order: Order) -> None:
        error = ""
        try:
            await carry_out(order)
        except RefractiumError as problem:
            error = str(problem)
        except BaseException as problem:
            if is_ours(problem):
                raise
            log.exception("worker %d cannot carry out the order %s", self._number, type(order).__name__)
            error = text_of(problem)
        self._channel.send(Done(number, error))

    async def _configure(self, order: Configure) -> None:
        for transport, beliefs in self._beliefs.items():
            beliefs.hold_only([one for one in order.beliefs if one.transport is transport])
        sys.path[:] = order.path
        build: Callable[[], EngineSpec] = pickle.loads(order.build)  # noqa: S301 - from its own supervisor
        if self._engine is None:
            begin: Callable[[], Reporter | None] = pickle.loads(order.begin)  # noqa: S301 - from its own supervisor
            report = begin()
            # In a thread: loading a large configuration takes time, and the worker must answer heartbeats.
            spec = await asyncio.to_thread(build)
            limiters = {
                transport: SharedLimiter(table, self._number - 1, spec.settings, transport)
                for transport, table in self._tables.items()
            }
            shared = Shared(limiters, self._beliefs)
            self._engine = Refractium.of(spec, report=report, _shared=shared)
        else:
            # In a thread, because the worker serves connections meanwhile.
            await self._engine.apply(await asyncio.to_thread(build))

    async def _listen(self, order: Listen) -> None:
        assert self._engine is not None  # noqa: S101 - `Configure` always comes first
        sock = socket.socket(fileno=self._channel.fds.popleft())
        try:
            await self._engine.start_on(sock, order.listener, is_shared=order.is_shared)
        except BaseException:
            sock.close()
            raise

    async def _stop_listening(self, order: StopListening) -> None:
        if self._engine is not None:
            with suppress(ValueError):  # the worker could not listen on the address
                await self._engine.stop_listening(order.transport, order.address)

    async def _stop_accepting(self, _: StopAccepting) -> None:
        if self._engine is not None:
            await self._engine.stop_accepting()

    async def _stop(self, order: Stop) -> None:
        cut = 0 if self._engine is None else await self._engine.stop(order.drain_timeout_ms)
        if self._engine is not None:
            self._channel.send(Told(0, self._engine.status_now()))
        self._channel.send(Done(order.number, cut=cut))


class _Beliefs:
    """The states of the backends of one transport, as the supervisor has decided them.

    This object reports to the supervisor when a client cannot reach a backend, and when a client reaches the
    backend again.
    """

    def __init__(self, transport: Transport, channel: Channel[Order]) -> None:
        self._transport = transport
        self._channel = channel
        self._held: dict[StateKey, Belief] = {}
        self._states: WeakValueDictionary[StateKey, BackendState] = WeakValueDictionary()

    def hold_only(self, beliefs: Sequence[Belief]) -> None:
        """Keep these beliefs and forget all others."""
        self._held.clear()
        for belief in beliefs:
            self.hold(belief)

    def hold(self, belief: Belief) -> None:
        """Keep the belief about a backend, and apply the belief to the backend's state if there is one."""
        self._held[belief.key] = belief
        if (state := self._states.get(belief.key)) is not None:
            _tell(state, belief)

    def adopt(self, state: BackendState) -> None:
        self._states[state.key] = state
        state.authority = self
        if (belief := self._held.get(state.key)) is not None:
            _tell(state, belief)

    def client_failed(self, state: BackendState, reason: str) -> None:
        self._channel.send(ClientFailed(self._transport, state.key, reason))

    def client_reached(self, state: BackendState) -> None:
        self._channel.send(ClientReached(self._transport, state.key))


def _tell(state: BackendState, belief: Belief) -> None:
    found = Availability(belief.availability), belief.since, belief.reason
    if found != (state.availability, state.since, state.reason):
        state.believe(*found)


def main() -> None:
    """Run a worker until the channel to the supervisor ends."""
    oom.volunteer(oom.WORKER)
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    channel, tcp, udp, number = map(int, sys.argv[1:])
    tables = {Transport.TCP: LimitTable(tcp), Transport.UDP: LimitTable(udp)}

    async def work() -> None:
        await Worker(socket.socket(fileno=channel), tables, number).run()

    run(work)


if __name__ == "__main__":
    main()
