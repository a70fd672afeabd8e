"""The supervisor of several workers.

It opens the listening sockets of the workers, starts and watches the workers, and returns their status.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import socket
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from refractium._version import __version__
from refractium.addresses.address import join_host_port
from refractium.contract import Transport
from refractium.engine.plan import Plan
from refractium.errors import ConfigError
from refractium.hooks import against_several
from refractium.observe import collect, status
from refractium.problems import Problem
from refractium.sockets.bind import addresses_of, bind, copies, duplicates, prepare
from refractium.workers.crew import Crew
from refractium.workers.messages import (
    Belief,
    Believe,
    ClientFailed,
    ClientReached,
    Configure,
    Know,
    KnownName,
    Listen,
    StopListening,
)
from refractium.workers.shared_limiter import LimitTable
from refractium.workers.totals import paused, with_active, with_faults

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from typing import Self

    from refractium.backends.state import BackendState
    from refractium.engine.spec import EngineSpec
    from refractium.proxy.summary import Reporter
    from refractium.settings import Settings
    from refractium.workers.worker_handle import WorkerHandle

log = logging.getLogger("refractium")

Build: TypeAlias = "Callable[[], EngineSpec]"
"""A callable that returns the spec to serve. Workers receive the callable by pickle, so it must be a function
at the top level of a module, or a picklable object with `__call__`."""

_STATUS_SECONDS: Final = 1.0
"""Seconds to wait for the statuses of workers. For a slower worker, its previous status counts."""


def _nothing() -> Reporter | None:
    return None


@dataclass(eq=False)
class _SharedListener:
    """An address on which the workers listen, with a socket for each worker.

    The supervisor keeps all these sockets open. So clients in the accept queue of a dead worker wait for the
    replacement of this worker.
    """

    transport: Transport
    name: str
    address: str
    sockets: Sequence[socket.socket | None]
    is_shared: bool
    labels: tuple[str, ...] = ()

    def follow(self, plan: Plan) -> None:
        """Adopt the rules of another plan.

        If that plan has no rules for this listener, the listener keeps its former rules until its close.
        """
        router = plan.routers[self.transport].get(self.name)
        self.labels = router.labels if router is not None else self.labels

    def close(self) -> None:
        for sock in self.sockets:
            if sock is not None:
                sock.close()


class Supervisor:
    """A proxy like `refractium.Refractium`, but with several processes.

    ::

        supervisor = Supervisor(build, workers=4)
        await supervisor.start_tcp("0.0.0.0", 8081)

    Like an engine, a supervisor cannot start again after its stop, installs no signal handlers and configures
    no logging. A supervisor needs a running event loop from the first call of a ``start`` or ``run`` method.

    Args:
        build: the function that returns the spec to serve. This process and every worker call the function.
            Workers receive the function by pickle, so the function must be at the top level of a module that
            workers can import.
        workers: the number of worker processes.
        begin: the function that every worker calls once, before the first call of `build`, for instance to
            configure logging. It returns the ``report`` of the worker's engine. Workers receive the function
            by pickle, like `build`.

    Raises:
        ConfigError: routes cannot be used together, an address is not valid, or a hook cannot run in several
            workers.
        ValueError: workers cannot import `build` or `begin`.
    """

    def __init__(self, build: Build, workers: int, begin: Callable[[], Reporter | None] = _nothing) -> None:
        self._begin = _pickled(begin)
        self._build = _pickled(build)
        self._count = workers
        self._plan = Plan(build())
        self._refuse_hooks(self._plan)
        self._tables = LimitTable.create_all(workers, self.settings)
        self._crew = Crew(workers, self._tables, self._have_serve, self._client_met)
        self._started = status.now()
        self._listeners: list[_SharedListener] = []
        self._reserved: dict[socket.socket, Sequence[socket.socket | None]] = {}
        self._believers: list[_Believer] = []
        # While a task holds this lock, no other task changes the configuration of a worker.
        self._changing = asyncio.Lock()
        self._stopped = asyncio.Event()
        self._generation = 1
        self._reloads_failed = 0
        self._last_reload: status.Reload | None = None

    @property
    def settings(self) -> Settings:
        """The limits and timeouts for new connections."""
        return self._plan.settings

    @property
    def active(self) -> int:
        """The number of connections and UDP sessions that are open now."""
        return 0 if self._stopped.is_set() else sum(table.active for table in self._tables.values())

    @property
    def generation(self) -> int:
        """The number of configurations so far: 1 at the start, and one more after each `apply`."""
        return self._generation

    async def start_tcp(self, host: str, port: int, listener: str = "") -> tuple[str, ...]:
        """Serve TCP clients on an address, like `Refractium.start_tcp`. Return when all workers serve.

        Raises:
            ListenError: the supervisor cannot listen on the address.
            RefractiumError: a worker does not start.
            RuntimeError: the supervisor was stopped.
            ValueError: no listener rules have this name.
        """
        return await self._start(Transport.TCP, host, port, listener)

    async def start_udp(self, host: str, port: int, listener: str = "") -> tuple[str, ...]:
        """Serve UDP clients on an address, like `start_tcp`. All datagrams of a client go to one worker.

        Raises:
            ListenError: the supervisor cannot listen on the address.
            RefractiumError: a worker does not start.
            RuntimeError: the supervisor was stopped.
            ValueError: no listener rules have this name.
        """
        return await self._start(Transport.UDP, host, port, listener)

    async def run_tcp(self, host: str, port: int, listener: str = "") -> None:
        """Serve TCP clients until `stop` is called or this task is cancelled, like `Refractium.run_tcp`.

        Raises:
            Exception: the errors of `start_tcp`.
        """
        await self._run(self.start_tcp(host, port, listener))

    async def run_udp(self, host: str, port: int, listener: str = "") -> None:
        """Serve UDP clients until `stop` is called or this task is cancelled, like `Refractium.run_udp`.

        Raises:
            Exception: the errors of `start_udp`.
        """
        await self._run(self.start_udp(host, port, listener))

    async def start_on(self, sock: socket.socket, listener: str = "", *, is_shared: bool = False) -> str:
        """Serve on a bound socket, like `Refractium.start_on`. Return when all workers serve.

        All workers accept TCP clients from a shared socket. The first worker serves all clients of a shared
        UDP socket.

        Raises:
            RefractiumError: a worker does not start.
            RuntimeError: the supervisor was stopped.
            ValueError: no listener rules have this name.
        """
        self._refuse_if_stopped()
        self._plan.refuse_unknown(listener)
        transport = Transport.TCP if sock.type == socket.SOCK_STREAM else Transport.UDP
        address = join_host_port(*sock.getsockname()[:2])
        if is_shared:
            # If each worker had a socket of its own, the clients in the queue of this socket would be lost
            # when the worker ends.
            prepare(sock)
            self._reserved[sock] = duplicates(sock, self._count)
        self.reserve(sock)
        self._start_workers()
        await self._plan.prepare(transport)
        one = _SharedListener(transport, listener, address, self._reserved.pop(sock), is_shared)
        async with self._changing:
            one.follow(self._plan)
            self._listeners.append(one)
            await asyncio.gather(*(self._listen(worker, one) for worker in self._crew.serving))
        await self._crew.all_have_served()
        return address

    def reserve(self, sock: socket.socket) -> None:
        """Open the sockets of all workers on the address of a bound socket, for a later `start_on`.

        `start_on` calls this method itself. A program that is about to give up the rights to open these
        sockets calls this method first.
        """
        if sock not in self._reserved:
            prepare(sock)
            self._reserved[sock] = copies(sock, self._count)

    async def stop_listening(self, transport: Transport | Literal["tcp", "udp"], address: str) -> None:
        """Close the listener on an address, like `Refractium.stop_listening`.

        This method returns when all workers have closed their sockets.

        Raises:
            ValueError: the supervisor does not listen on the address.
        """
        for one in self._listeners:
            if (one.transport, one.address) == (Transport(transport), address):
                self._listeners.remove(one)
                one.close()  # first, so that the workers are the last to close a socket of this address
                # The supervisor kills a worker that does not answer, and the worker's end also ends the call.
                calls = [worker.call(StopListening, one.transport, one.address) for worker in self._crew]
                await asyncio.gather(*calls)
                return
        raise ValueError(f"{transport}://{address} is not listened on")

    async def apply(self, build: Build) -> None:
        """Let all workers serve another spec.

        This process first does every step that may fail. If a worker fails later, the supervisor replaces it.

        Raises:
            ConfigError: the spec is not valid; the supervisor has changed nothing.
            RuntimeError: the supervisor was stopped.
            ValueError: workers cannot import `build`.
        """
        serve = await self.prepare(build)
        await serve()

    async def prepare(self, build: Build) -> Callable[[], Awaitable[None]]:
        """Prepare `apply` without any change, like `Refractium.prepare`.

        Raises:
            ConfigError: the spec is not valid.
            RuntimeError: the supervisor was stopped.
            ValueError: workers cannot import `build`.
        """
        pickled = _pickled(build)
        plan = Plan(await asyncio.to_thread(build), successor_of=self._plan)
        try:
            self._refuse_hooks(plan)
            for transport in self._plan.prepared:
                await plan.prepare(transport)
            self._refuse_if_stopped()
        except BaseException:
            await plan.stop()
            raise
        return partial(self._serve_by, plan, pickled)

    async def _serve_by(self, plan: Plan, pickled: bytes) -> None:
        async with self._changing:
            former, self._plan, self._build = self._plan, plan, pickled
            self._watch_states()
            for one in self._listeners:
                one.follow(plan)
            await asyncio.gather(*map(self._configure, self._crew.serving))
        self._generation += 1
        self._last_reload = status.Reload(status.now(), ok=True)
        await former.stop()

    def reload_failed(self, errors: Sequence[str]) -> None:
        """Record for `status` that a new configuration was refused, like `Refractium.reload_failed`."""
        self._reloads_failed += 1
        self._last_reload = status.Reload(status.now(), ok=False, errors=tuple(errors))

    async def stop_accepting(self) -> None:
        """Let no worker accept further clients, like `Refractium.stop_accepting`."""
        await self._crew.stop_accepting()

    async def stop(self, drain_timeout_ms: int | None = None) -> int:
        """Stop all workers at the same time, like `Refractium.stop`, and end their processes."""
        timeout_ms = self.settings.drain_timeout_ms if drain_timeout_ms is None else drain_timeout_ms
        already_stopping = self._crew.is_stopping
        listeners, self._listeners = self._listeners, []
        # UDP sockets stay open: with one socket less, the kernel would send datagrams to the wrong worker.
        kept = [one for one in listeners if one.transport is Transport.UDP]
        for one in listeners:
            if one not in kept:
                one.close()
        cut = await self._crew.drain(timeout_ms)
        if already_stopping:
            await self._stopped.wait()
        else:
            try:
                await self._crew.dismiss()
                await self._plan.stop()
            finally:
                for one in kept:
                    one.close()
                for sock in (sock for found in self._reserved.values() for sock in found if sock is not None):
                    sock.close()
                for table in self._tables.values():
                    table.close()
                self._stopped.set()
        return cut

    async def status(self) -> status.Status:
        """Return the present status of all workers together."""
        told = await self._crew.told(_STATUS_SECONDS)
        counts = self._crew.counts(told)
        return status.Status(
            version=__version__,
            pid=os.getpid(),
            started=self._started,
            at=status.now(),
            generation=self._generation,
            reloads_failed=self._reloads_failed,
            last_reload=self._last_reload,
            listeners=tuple(
                status.ListenerStatus(
                    one.transport, one.address, one.labels, paused(one.transport, one.address, told)
                )
                for one in self._listeners
            ),
            routes=tuple(
                with_active(
                    (
                        found
                        for transport, those in self._plan.pools.items()
                        for found in collect.routes(transport, those)
                    ),
                    told,
                )
            ),
            # The supervisor checks the backends, so it also counts the faults of the checks.
            tcp=with_faults(counts.tcp, self._plan.faults[Transport.TCP]),
            udp=with_faults(counts.udp, self._plan.faults[Transport.UDP]),
            hooks=counts.hooks,
            workers=self._crew.status(),
        )

    # Messages to and from workers

    def _start_workers(self) -> None:
        if not self._crew.has_started:
            self._watch_states()
            self._crew.start()

    async def _have_serve(self, worker: WorkerHandle) -> bool:
        async with self._changing:
            await self._configure(worker)
            for one in self._listeners:
                if one.name in self._plan.routers[one.transport]:  # else the listener will be closed
                    await self._listen(worker, one)
            if worker.is_well and not self._crew.is_stopping:
                worker.is_serving = True
            return worker.is_serving

    async def _configure(self, worker: WorkerHandle) -> None:
        beliefs = [_belief(transport, state) for transport, state in self._plan.states]
        self._tell_names(worker)
        answer = await worker.call(Configure, sys.path, self._begin, self._build, beliefs)
        self._replace_if_failed(worker, answer.error)

    async def _listen(self, worker: WorkerHandle, one: _SharedListener) -> None:
        sock = one.sockets[worker.number - 1]
        if sock is not None:
            self._tell_names(worker)
            answer = await worker.call(Listen, one.name, one.is_shared, sock=sock)
            self._replace_if_failed(worker, answer.error)

    def _tell_names(self, worker: WorkerHandle) -> None:
        """Send a worker the addresses of resolved names, so that the worker need not ask a name server."""
        names = [KnownName(name.host, name.found, name.asked, name.looked_up) for name in self._plan.names]
        worker.send(Know(names))

    def _replace_if_failed(self, worker: WorkerHandle, error: str) -> None:
        if error and worker.is_well and not self._crew.is_stopping:
            worker.kill(error)

    def _refuse_hooks(self, plan: Plan) -> None:
        hooks = [hook for hook, _ in plan.hooks.in_use]
        if self._count > 1 and (reasons := list(against_several(hooks))):
            raise ConfigError(Problem(reason, where="hooks") for reason in reasons)

    def _refuse_if_stopped(self) -> None:
        if self._crew.is_stopping:
            raise RuntimeError("the supervisor was stopped: make a new one")

    def _watch_states(self) -> None:
        self._believers = [_Believer(transport, state, self._tell) for transport, state in self._plan.states]

    def _tell(self, belief: Belief) -> None:
        for worker in self._crew:
            worker.send(Believe(belief))

    def _client_met(self, what: ClientFailed | ClientReached) -> None:
        state = self._plan.pools[what.transport].states.get(what.key)
        if state is None:  # the backend belongs to a former configuration
            return
        if isinstance(what, ClientFailed):
            state.client_failed(what.reason)
        else:
            state.client_reached()

    async def _start(self, transport: Transport, host: str, port: int, listener: str) -> tuple[str, ...]:
        self._refuse_if_stopped()
        self._plan.refuse_unknown(listener)
        sockets = bind(transport, host, port, await addresses_of(transport, host, port))
        return tuple([await self.start_on(sock, listener) for sock in sockets])

    async def _run(self, start: Awaitable[object]) -> None:
        try:
            await start
            await self._stopped.wait()
        finally:
            await self.stop(drain_timeout_ms=0)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def __repr__(self) -> str:
        return f"<Supervisor of {self._count} workers>"


class _Believer:
    """A watcher that sends every change of one backend's state to the workers."""

    def __init__(self, transport: Transport, state: BackendState, tell: Callable[[Belief], None]) -> None:
        self._transport = transport
        self._state = state
        self._tell = tell
        state.watch(self)

    def refresh(self) -> None:
        self._tell(_belief(self._transport, self._state))


def _belief(transport: Transport, state: BackendState) -> Belief:
    return Belief(transport, state.key, str(state.availability), state.since, state.reason)


def _pickled(what: Callable[..., Any]) -> bytes:
    """Pickle a function, so that workers can load the function.

    Raises:
        ValueError: workers cannot load the function.
    """
    try:
        if getattr(what, "__module__", None) == "__main__":
            raise pickle.PicklingError("it is defined in the program itself, which workers do not run")  # noqa: TRY301
        return pickle.dumps(what)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        name = getattr(what, "__qualname__", type(what).__qualname__)
        raise ValueError(
            f"workers cannot import {name}: {error}: take a function at the top of a module"
        ) from None
