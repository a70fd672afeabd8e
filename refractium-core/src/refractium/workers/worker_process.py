"""One worker process, as its supervisor sees it."""

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
from refractium.workers.messages import Ask, Done, Report, Told

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
        StopListening,
    )
    from refractium.workers.shared_limits import LimitTable

_EXIT_SECONDS: Final = 5.0
"""From the end of a worker's channel to the end of its process, before it is killed."""
_FIRST_LOOK: Final = 0.001
_LONGEST_LOOK: Final = 0.05
"""Seconds between looks at whether the process has ended."""


class WorkerProcess:
    """Started at once; there is an event loop.

    Args:
        number: which worker it is, from 1.
        tables: where it counts its connections and sessions.
        client_met: called with what its clients have met with.

    Attributes:
        number: the same.
        pid: of the process.
        since: when it was started (s since the epoch).
        status: what it has told last.
        unanswered: how many beats it has not answered since then.
        is_serving: whether it has been told everything, and has done it.
        ended: set when it is gone.
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
                    "-P",  # no module from the working directory
                    *("-m", "refractium.workers.worker"),
                    *map(str, (theirs.fileno(), *table_fds, number)),
                ],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), *table_fds),
                process_group=0,  # Ctrl-C goes to the group of the supervisor
            )
        self.pid = self._process.pid
        self._channel: Channel[Report] = Channel(ours, Report, self._received, self._end)

    def __str__(self) -> str:
        return f"worker {self.number} (process {self.pid})"

    def send(self, order: Order) -> None:
        """Tell it something."""
        self._channel.send(order)

    async def call(
        self,
        order: type[Configure | Listen | StopListening | Stop],
        *fields: object,
        sock: socket.socket | None = None,
    ) -> Done:
        """Tell it something, and wait until that is done; a worker that ends meanwhile has failed.

        Args:
            order: the type.
            fields: of the order, after the number of the call.
            sock: what goes along with it.
        """
        answer = await self._call(order, *fields, sock=sock)
        assert isinstance(answer, Done)  # noqa: S101 - these are answered so
        return answer

    def beat(self) -> None:
        """Ask whether it is well; its status is the answer."""
        self.unanswered += 1
        self._channel.send(Ask(0))

    async def ask(self) -> Status | None:
        """What it tells now, or has told last, if it does not answer any more."""
        await self._call(Ask)
        return self.status

    @property
    def is_well(self) -> bool:
        """Whether it is there, and nobody has had a reason to kill it."""
        return not self._fault and not self.ended.is_set()

    def kill(self, why: str) -> None:
        """End it at once."""
        self._fault = why
        self._process.kill()

    async def leave(self) -> str:
        """Close the channel, at which it ends, and wait for that; what is left of it is killed.

        Returns:
            Why it has ended.
        """
        self._channel.close()
        self._end()
        if (code := await self._wait(_EXIT_SECONDS)) is None:
            self._process.kill()
            while (code := await self._wait(_EXIT_SECONDS)) is None:
                pass  # the kernel has to finish what it does for the process
        how = f"it was killed by signal {-code}" if code < 0 else f"it ended with status {code}"
        return self._fault or how

    async def _wait(self, seconds: float) -> int | None:
        """Wait for the end of the process without a thread, which a machine may not have left.

        Returns:
            How it ended; None if it has not ended in so many seconds.
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

    def _received(self, report: Report) -> None:
        if isinstance(report, Told):
            self.unanswered = 0
            self.status = report.status or self.status
        if isinstance(report, Done | Told):
            if (future := self._calls.get(report.number)) is not None and not future.done():
                future.set_result(report)
        else:
            self._client_met(report)

    def _end(self) -> None:
        self.ended.set()
        for number, future in self._calls.items():
            if not future.done():
                future.set_result(Done(number, "it has ended"))
