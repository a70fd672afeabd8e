"""The crew: the worker processes of a supervisor, from their start to their end."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from refractium.errors import RefractiumError
from refractium.observe import status
from refractium.workers.messages import Stop, StopAccepting
from refractium.workers.totals import total, without_open
from refractium.workers.worker_handle import WorkerHandle

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from refractium.contract import Transport
    from refractium.workers.messages import ClientFailed, ClientReached
    from refractium.workers.shared_limiter import LimitTable
    from refractium.workers.totals import Counts

log = logging.getLogger("refractium")

_BEAT: Final = 1.0
"""Seconds from one heartbeat of a worker to the next."""
_MISSED_BEATS: Final = 8
"""Missed heartbeats after which the supervisor replaces a worker that serves."""
_START_BEATS: Final = 60
"""Missed heartbeats after which the supervisor replaces a worker that still starts. Imports take seconds."""
_FIRST_PAUSE: Final = 0.1
"""Seconds from the early end of a worker to its replacement. Each further early end doubles the pause."""
_LONGEST_PAUSE: Final = 5.0
_LONG: Final = 10.0
"""The end of a worker is early if it comes within this time (s) after the start. If a worker ends later, the
supervisor replaces the worker at once."""
_TRIES: Final = 3
"""Failed starts of a worker that has never served, after which the supervisor gives up."""
_GRACE: Final = 12.0
"""Seconds after the drain timeout within which a worker must report that it has stopped. The worker's hooks
may take 10 s to stop."""


class Crew:
    """A fixed number of workers. The crew replaces each worker that ends or stops answering.

    Args:
        count: the number of workers.
        tables: the tables of the shared limits; each worker has its own cells in each table.
        have_serve: the function that configures a new worker and returns whether the worker serves now.
        client_met: the function to call with each `ClientFailed` and `ClientReached` of a worker.

    Attributes:
        is_stopping: whether the crew is stopping and replaces no worker any more.
    """

    def __init__(
        self,
        count: int,
        tables: Mapping[Transport, LimitTable],
        have_serve: Callable[[WorkerHandle], Awaitable[bool]],
        client_met: Callable[[ClientFailed | ClientReached], None],
    ) -> None:
        self.is_stopping = False
        self._tables = tables
        self._have_serve = have_serve
        self._client_met = client_met
        self._workers: dict[int, WorkerHandle] = {}
        self._restarts = dict.fromkeys(range(1, count + 1), 0)
        self._have_served: set[int] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._past = total([])
        self._changed = asyncio.Event()
        self._failure: RefractiumError | None = None

    def __iter__(self) -> Iterator[WorkerHandle]:
        """Iterate over the workers that are alive, including workers that do not serve yet."""
        return iter(list(self._workers.values()))

    @property
    def serving(self) -> list[WorkerHandle]:
        """The workers that serve."""
        return [worker for worker in self if worker.is_serving]

    @property
    def has_started(self) -> bool:
        """Whether `start` has been called."""
        return bool(self._tasks)

    def start(self) -> None:
        """Start the workers, in a running event loop."""
        self._tasks = [asyncio.create_task(self._keep(number)) for number in self._restarts]

    async def all_have_served(self) -> None:
        """Wait until each worker has served at least once, or until the crew stops.

        A worker that has served and has ended since then counts as well.

        Raises:
            RefractiumError: a worker cannot be started.
        """
        while len(self._have_served) < len(self._restarts) and not self.is_stopping:
            if self._failure is not None:
                raise self._failure
            self._changed.clear()
            await self._changed.wait()

    async def told(self, seconds: float) -> list[status.Status]:
        """Ask every worker for its status. Return the latest status of each worker.

        Args:
            seconds: the time to wait for answers (s). For a worker that has not answered by then, the result
                contains the previous status.
        """
        asked = [asyncio.create_task(worker.ask()) for worker in self]
        if asked:
            _, late = await asyncio.wait(asked, timeout=seconds)
            for task in late:
                task.cancel()
        return [worker.status for worker in self if worker.status is not None]

    def counts(self, told: list[status.Status]) -> Counts:
        """Return the sums of the counts in `told` and of the counts of workers that have ended."""
        return total([*told, self._past])

    def status(self) -> tuple[status.WorkerStatus, ...]:
        """Return the state of each worker, in the order of the workers' numbers."""
        return tuple(
            _worker_status(number, restarts, self._workers.get(number))
            for number, restarts in self._restarts.items()
        )

    async def stop_accepting(self) -> None:
        """Return when no worker accepts clients any more, or when `_GRACE` has passed."""
        calls = [asyncio.wait_for(worker.call(StopAccepting), _GRACE) for worker in self]
        await asyncio.gather(*calls, return_exceptions=True)

    async def drain(self, timeout_ms: int) -> int:
        """Stop all workers. Return the number of connections that the workers cut.

        Args:
            timeout_ms: the time for open connections to finish (ms).
        """
        self.is_stopping = True
        self._changed.set()
        patience = timeout_ms / 1000 + _GRACE
        calls = [asyncio.wait_for(worker.call(Stop, timeout_ms), patience) for worker in self]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        return sum(answer.cut for answer in answers if not isinstance(answer, BaseException))

    async def dismiss(self) -> None:
        """End the processes of all workers."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*map(self._end, self))

    async def _keep(self, number: int) -> None:
        """Keep one worker running until the crew stops, or until the first `_TRIES` starts have failed."""
        pause = _FIRST_PAUSE
        tries_left = _TRIES
        while True:
            begun = time.monotonic()
            try:
                worker = WorkerHandle(number, self._tables, self._client_met)
            except OSError as error:
                how = error.strerror or str(error)
                log.error("worker %d cannot be started: %s", number, how)  # noqa: TRY400 - the machine's fault
            else:
                self._workers[number] = worker
                how = await self._watch(worker)
            if self.is_stopping:
                return
            if number not in self._have_served:
                tries_left -= 1
                if not tries_left:
                    self._failure = RefractiumError(f"worker {number} does not start: {how}")
                    self._changed.set()
                    return
            if time.monotonic() - begun > _LONG:
                pause = _FIRST_PAUSE
            else:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            self._restarts[number] += 1

    async def _watch(self, worker: WorkerHandle) -> str:
        """Let a worker serve until it ends. Return the reason for the worker's end."""
        configuring = asyncio.create_task(self._begin(worker))
        while not worker.ended.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(worker.ended.wait(), _BEAT)
                break
            if worker.unanswered >= (_MISSED_BEATS if worker.is_serving else _START_BEATS):
                worker.kill("it does not answer")
                break
            worker.beat()
        configuring.cancel()
        how = await self._end(worker)
        if not self.is_stopping:
            log.error("%s: %s", worker, how)
        return how

    async def _begin(self, worker: WorkerHandle) -> None:
        if await self._have_serve(worker):
            self._have_served.add(worker.number)
        self._changed.set()

    async def _end(self, worker: WorkerHandle) -> str:
        how = await worker.leave()
        if self._workers.get(worker.number) is worker:
            del self._workers[worker.number]
            for table in self._tables.values():
                table.forget(worker.number - 1)
            if worker.status is not None:
                self._past = total([self._past, without_open(worker.status)])
        return how


def _worker_status(number: int, restarts: int, worker: WorkerHandle | None) -> status.WorkerStatus:
    if worker is None:
        return status.WorkerStatus(number, None, None, restarts, 0)
    told = worker.status
    active = told.tcp.active + told.udp.active if told is not None else 0
    return status.WorkerStatus(number, worker.pid, status.moment(worker.since), restarts, active)
