"""The supervisor: what listens for several workers, starts them, watches them and speaks for them."""

from __future__ import annotations

import asyncio
import logging
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
from refractium.sockets.bind import addresses_of, bind, copies, prepare
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
from refractium.workers.shared_limits import LimitTable
from refractium.workers.totals import paused, with_active

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from typing import Self

    from refractium.backends.state import BackendState
    from refractium.engine.spec import EngineSpec
    from refractium.proxy.outcome import Reporter
    from refractium.settings import Settings
    from refractium.workers.worker_process import WorkerProcess

log = logging.getLogger("refractium")

Build: TypeAlias = "Callable[[], EngineSpec]"
"""Makes what is to be served: a function at the top of a module, or another object that pickle takes."""

_STATUS_SECONDS: Final = 1.0
"""How long workers may take to tell their status before what they have told last is taken."""


def _nothing() -> Reporter | None:
    return None


@dataclass(eq=False)
class _Listener:
    """An address listened on, with a socket for each worker.

    The supervisor keeps them all, so clients that have connected to a worker that dies wait for its
    replacement.
    """

    transport: Transport
    name: str
    address: str
    sockets: Sequence[socket.socket | None]
    labels: tuple[str, ...] = ()

    def follow(self, plan: Plan) -> None:
        """Serve by other rules, if there are any for it; else by those it had, until it is closed."""
        router = plan.routers[self.transport].get(self.name)
        self.labels = router.labels if router is not None else self.labels

    def close(self) -> None:
        for sock in self.sockets:
            if sock is not None:
                sock.close()


class Supervisor:
    """Serves with several processes what `refractium.Refractium` serves with one.

    ::

        supervisor = Supervisor(build, workers=4)
        await supervisor.start_tcp("0.0.0.0", 8081)

    Like an engine it serves once, installs no signal handlers and configures no logging. It needs a running
    event loop from its first start on.

    Args:
        build: called in this process and in every worker; makes what is to be served. It goes to the workers
            by pickle: a function at the top of a module that they can import.
        workers: how many processes serve.
        begin: called once in every worker before anything else, for instance to configure logging; what it
            returns is the ``report`` of its engine. It goes there as `build` does.

    Raises:
        ConfigError: routes that cannot be used together, a bad address, a hook that can be there only once.
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
        self._listeners: list[_Listener] = []
        self._reserved: dict[socket.socket, Sequence[socket.socket | None]] = {}
        self._believers: list[_Believer] = []
        # Whoever holds it may rely on what workers have been told.
        self._changing = asyncio.Lock()
        self._stopped = asyncio.Event()
        self._generation = 1
        self._reloads_failed = 0
        self._last_reload: status.Reload | None = None

    @property
    def settings(self) -> Settings:
        """Limits and timeouts, as they are for connections to come."""
        return self._plan.settings

    @property
    def active(self) -> int:
        """Connections and UDP sessions open now."""
        return 0 if self._stopped.is_set() else sum(table.active for table in self._tables.values())

    @property
    def generation(self) -> int:
        """How many configurations have been in force."""
        return self._generation

    async def start_tcp(self, host: str, port: int, listener: str = "") -> tuple[str, ...]:
        """As of the engine; it returns when all workers serve.

        Raises:
            ListenError: the address cannot be listened on.
            RefractiumError: the workers do not start.
        """
        return await self._start(Transport.TCP, host, port, listener)

    async def start_udp(self, host: str, port: int, listener: str = "") -> tuple[str, ...]:
        """The same for datagrams. A client's datagrams all go to one worker."""
        return await self._start(Transport.UDP, host, port, listener)

    async def run_tcp(self, host: str, port: int, listener: str = "") -> None:
        """As of the engine: serves until `stop` has been called, or this task is cancelled."""
        await self._run(self.start_tcp(host, port, listener))

    async def run_udp(self, host: str, port: int, listener: str = "") -> None:
        """The same for datagrams."""
        await self._run(self.start_udp(host, port, listener))

    async def start_on(self, sock: socket.socket, listener: str = "") -> str:
        """As of the engine; it returns when all workers serve."""
        self._refuse_if_stopped()
        self._plan.refuse_unknown(listener)
        transport = Transport.TCP if sock.type == socket.SOCK_STREAM else Transport.UDP
        self.reserve(sock)
        self._start_workers()
        await self._plan.prepare(transport)
        address = join_host_port(*sock.getsockname()[:2])
        one = _Listener(transport, listener, address, self._reserved.pop(sock))
        async with self._changing:
            one.follow(self._plan)
            self._listeners.append(one)
            await asyncio.gather(*(self._listen(worker, one) for worker in self._crew.serving))
        await self._crew.all_have_served()
        return address

    def reserve(self, sock: socket.socket) -> None:
        """Open the sockets of all workers on the address of a bound one, for `start_on` to serve there.

        `start_on` does so by itself. A program that is about to give up the rights for it does it before.
        """
        if sock not in self._reserved:
            prepare(sock)
            self._reserved[sock] = copies(sock, self._count)

    async def stop_listening(self, transport: Transport | Literal["tcp", "udp"], address: str) -> None:
        """Same as `Refractium.stop_listening`; it returns when all workers have closed their sockets."""
        for one in self._listeners:
            if (one.transport, one.address) == (Transport(transport), address):
                self._listeners.remove(one)
                one.close()  # before the workers do, so that they see the end of it
                # A worker that does not answer is killed, which answers as well.
                calls = [worker.call(StopListening, one.transport, one.address) for worker in self._crew]
                await asyncio.gather(*calls)
                return
        raise ValueError(f"{transport}://{address} is not listened on")

    async def apply(self, build: Build) -> None:
        """Serve by something else from now on, with all workers.

        Everything that may fail is done here first; a worker that cannot do the same is replaced.

        Raises:
            ConfigError: nothing has changed.
            RuntimeError: the supervisor was stopped.
            ValueError: workers cannot import `build`.
        """
        serve = await self.prepare(build)
        await serve()

    async def prepare(self, build: Build) -> Callable[[], Awaitable[None]]:
        """Same as `Refractium.prepare`, with the argument of `apply`."""
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
        """As of the engine."""
        self._reloads_failed += 1
        self._last_reload = status.Reload(status.now(), ok=False, errors=tuple(errors))

    async def stop(self, drain_timeout_ms: int | None = None) -> int:
        """As of the engine, with all workers at once; then there are none any more."""
        timeout_ms = self.settings.drain_timeout_ms if drain_timeout_ms is None else drain_timeout_ms
        already_stopping = self._crew.is_stopping
        listeners, self._listeners = self._listeners, []
        # For datagrams it keeps its sockets: with one less, the kernel would send those of sessions astray.
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
        """All that is known at this moment, of all workers together."""
        told = await self._crew.told(_STATUS_SECONDS)
        counts = self._crew.counts(told)
        return status.Status(
            version=__version__,
            started=self._started,
            at=status.now(),
            generation=self._generation,
            reloads_failed=self._reloads_failed,
            last_reload=self._last_reload,
            listeners=tuple(
                status.Listener(
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
            tcp=counts.tcp,
            udp=counts.udp,
            hooks=counts.hooks,
            workers=self._crew.status(),
        )

    # What workers are told, and tell

    def _start_workers(self) -> None:
        if not self._crew.has_started:
            self._watch_states()
            self._crew.start()

    async def _have_serve(self, worker: WorkerProcess) -> bool:
        async with self._changing:
            await self._configure(worker)
            for one in self._listeners:
                if one.name in self._plan.routers[one.transport]:  # else it is about to be closed
                    await self._listen(worker, one)
            if worker.is_well and not self._crew.is_stopping:
                worker.is_serving = True
            return worker.is_serving

    async def _configure(self, worker: WorkerProcess) -> None:
        beliefs = [_belief(transport, state) for transport, state in self._plan.states]
        self._tell_names(worker)
        answer = await worker.call(Configure, sys.path, self._begin, self._build, beliefs)
        self._replace_if_failed(worker, answer.error)

    async def _listen(self, worker: WorkerProcess, one: _Listener) -> None:
        sock = one.sockets[worker.number - 1]
        if sock is not None:
            self._tell_names(worker)
            answer = await worker.call(Listen, one.name, sock=sock)
            self._replace_if_failed(worker, answer.error)

    def _tell_names(self, worker: WorkerProcess) -> None:
        """Tell a worker which names are resolved, so that it waits for none by itself."""
        names = [KnownName(name.host, name.found, name.asked, name.looked_up) for name in self._plan.names]
        worker.send(Know(names))

    def _replace_if_failed(self, worker: WorkerProcess, error: str) -> None:
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
        if state is None:  # of a configuration that is not in force any more
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
    """Tells of every change of one backend's state."""

    def __init__(self, transport: Transport, state: BackendState, tell: Callable[[Belief], None]) -> None:
        self._transport = transport
        self._state = state
        self._tell = tell
        state.watch(self)

    def refresh(self) -> None:
        self._tell(_belief(self._transport, self._state))


def _belief(transport: Transport, state: BackendState) -> Belief:
    return Belief(transport, state.key, str(state.status), state.since, state.reason)


def _pickled(what: Callable[..., Any]) -> bytes:
    """What a worker can make the same of.

    Raises:
        ValueError: it cannot.
    """
    try:
        if getattr(what, "__module__", None) == "__main__":
            raise pickle.PicklingError("it is defined in the program itself, which workers do not run")  # noqa: TRY301
        return pickle.dumps(what)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"workers cannot import {what!r}: {error}: take a function at the top of a module"
        ) from None
