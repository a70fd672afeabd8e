"""The supervisor's handle of one worker process."""

from __future__ import annotations

import asyncio
import itertools
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final

from refractium.contract import Transport
from refractium.workers.channel import Channel
from refractium.workers.messages import Ask, Done, Told, WorkerMessage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from refractium.observe.status import Status
    from refractium.workers.messages import (
        ClientFailed,
        ClientReached,
        Configure,
        Listen,
        Order,
        Stop,
        StopAccepting,
        StopListening,
    )
    from refractium.workers.shared_limiter import LimitTable

_EXIT_SECONDS: Final = 5.0
"""Seconds that a worker may run after the end of its channel. Then the supervisor kills the process."""
_FIRST_LOOK: Final = 0.001
_LONGEST_LOOK: Final = 0.05
"""Longest time (s) between two checks whether a process has ended. The first check is after `_FIRST_LOOK`."""


class WorkerHandle:
    """The handle of a worker process. The constructor starts the process and needs a running event loop.

    Args:
        number: the number of the worker, from 1.
        tables: the tables in which the worker counts its connections and sessions.
        client_met: the function to call with each `ClientFailed` and `ClientReached` of the worker.

    Attributes:
        number: the number of the worker, from 1.
        pid: the id of the process.
        since: the time at which the process was started (s since the epoch).
        status: the last status that the worker has sent; None before the first status.
        unanswered: the number of heartbeats sent since the last answer.
        is_serving: whether the worker is configured and serves on all its sockets.
        ended: the event that is set when the channel to the worker has ended.
    """

    def __init__(
        self,
        number: int,
        tables: Mapping[Transport, LimitTable],
        client_met: Callable[[ClientFailed | ClientReached], None],
    ) -> None:
        self.number = number
        self.since = time.time()
        self.status: Status | None = None
        self.unanswered = 0
        self.is_serving = False
        self.ended = asyncio.Event()
        self._client_met = client_met
        self._fault = ""
        self._numbers = itertools.count(1)
        self._calls: dict[int, asyncio.Future[Done | Told]] = {}
        ours, theirs = socket.socketpair()
        table_fds = [tables[transport].fd for transport in (Transport.TCP, Transport.UDP)]
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - nothing of the command comes from outside
                [
                    sys.executable,
                    "-P",  # import no module from the working directory
                    *("-m", "refractium.workers.worker"),
                    *map(str, (theirs.fileno(), *table_fds, number)),
                ],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), *table_fds),
                process_group=0,  # so that Ctrl-C reaches only the supervisor
            )
        self.pid = self._process.pid
        self._channel: Channel[WorkerMessage] = Channel(ours, WorkerMessage, self._received, self._end)

    def __str__(self) -> str:
        return f"worker {self.number} (process {self.pid})"

    def send(self, order: Order) -> None:
        """Send an order, without waiting for an answer."""
        self._channel.send(order)

    async def call(
        self,
        order: type[Configure | Listen | StopListening | StopAccepting | Stop],
        *fields: object,
        sock: socket.socket | None = None,
    ) -> Done:
        """Send an order and wait for the answer. If the worker ends before its answer, return a failure.

        Args:
            order: the type of the order.
            fields: the values for the fields of the order after `number`, which this method sets.
            sock: the socket whose descriptor to send with the order.
        """
        answer = await self._call(order, *fields, sock=sock)
        assert isinstance(answer, Done)  # noqa: S101 - workers answer these orders with `Done`
        return answer

    def beat(self) -> None:
        """Send a heartbeat, which the worker answers with its status."""
        self.unanswered += 1
        self._channel.send(Ask(0))

    async def ask(self) -> Status | None:
        """Ask the worker for its status. If the worker ends before its answer, return the last status."""
        await self._call(Ask)
        return self.status

    @property
    def is_well(self) -> bool:
        """Whether the worker still runs and was not killed."""
        return not self._fault and not self.ended.is_set()

    def kill(self, why: str) -> None:
        """Kill the process at once. `leave` then returns the reason `why`."""
        self._fault = why
        self._process.kill()

    async def leave(self) -> str:
        """Close the channel and wait for the worker to end. Kill the process if it does not end in time.

        Returns:
            The reason for the end of the worker.
        """
        self._channel.close()
        self._end()
        if (code := await self._wait(_EXIT_SECONDS)) is None:
            self._process.kill()
            while (code := await self._wait(_EXIT_SECONDS)) is None:
                pass  # the kernel has not yet finished a system call of the process
        how = f"it was killed by signal {-code}" if code < 0 else f"it ended with status {code}"
        return self._fault or how

    async def _wait(self, seconds: float) -> int | None:
        """Wait for the end of the process, without a thread, because a machine can run out of threads.

        Returns:
            The exit status of the process; None if the process has not ended after `seconds`.
        """
        deadline, pause = time.monotonic() + seconds, _FIRST_LOOK
        while (code := self._process.poll()) is None and time.monotonic() < deadline:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_LOOK)
        return code

    async def _call(
        self, order: type[Order], *fields: object, sock: socket.socket | None = None
    ) -> Done | Told:
        number = next(self._numbers)
        if self.ended.is_set():
            return Done(number, "it has ended")
        future: asyncio.Future[Done | Told] = asyncio.get_running_loop().create_future()
        self._calls[number] = future
        try:
            self._channel.send(order(number, *fields), sock)  # type: ignore[arg-type]
            return await future
        except OSError as error:
            return Done(number, f"it cannot be given a socket: {error.strerror}")
        finally:
            del self._calls[number]

    def _received(self, message: WorkerMessage) -> None:
        if isinstance(message, Told):
            self.unanswered = 0
            self.status = message.status or self.status
        if isinstance(message, Done | Told):
            if (future := self._calls.get(message.number)) is not None and not future.done():
                future.set_result(message)
        else:
            self._client_met(message)

    def _end(self) -> None:
        self.ended.set()
        for number, future in self._calls.items():
            if not future.done():
                future.set_result(Done(number, "it has ended"))
