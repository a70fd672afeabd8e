"""The rules for health checks: the answer, the end at a cancellation, and the sockets that stay open."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from refractium.audit.loading import subject_of
from refractium.contract import Endpoint, Transport
from refractium.contract.words import shown
from refractium.guard.faults import text_of

if TYPE_CHECKING:
    from msgspec import Struct

    from refractium.audit.report import Report
    from refractium.contract import HealthCheck
    from refractium.plugins.installed import Given

_WAIT: Final = 0.1
"""Time (s) after which the check of a silent server is cancelled."""
_TIMEOUT: Final = 1.0
"""The argument `timeout` of the check (s)."""
_TURNS: Final = 10
"""Turns of the event loop after the check: asyncio closes a stream in several turns."""
_PATIENCE: Final = 1.0
"""Time (s) that a check may keep the event loop from running while the processor is free."""
_SCHEDSTAT: Final = Path("/proc/thread-self/schedstat")
"""Two numbers: the time (ns) of this thread on a processor, and in the queue for a processor."""


def check_health_checks(given: Given, report: Report) -> None:
    """Check the health checks of a plugin with servers on the loopback address."""
    for check in given.health_checks:
        subject = subject_of("health check", check.name)
        try:
            settings = check.settings()
        except TypeError:  # a field without a default: only the user knows a value
            report.fact("not_run", {subject: "the default settings are not complete"})
            continue
        try:
            problems = [(str(key), str(message)) for key, message in check.problems(settings)]
        except BaseException as error:  # noqa: BLE001 - the code of a plugin may raise any exception
            report.raised("settings-problems", subject, error, "for the default settings")
            continue
        if problems:
            report.fact("not_run", {subject: f"the default settings are not valid: {problems[0][1]}"})
            continue
        for transport in sorted(check.transports):
            _check(check, settings, transport, report, subject)


def _check(
    check: HealthCheck[Any], settings: Struct, transport: Transport, report: Report, subject: str
) -> None:
    kind = socket.SOCK_STREAM if transport is Transport.TCP else socket.SOCK_DGRAM
    with socket.socket(type=kind) as silent, socket.socket(type=kind) as closed:
        for one in (silent, closed):
            one.bind(("127.0.0.1", 0))
        if transport is Transport.TCP:
            silent.listen()
        # The bound socket that does not listen holds its port: nobody else can listen there meanwhile.
        for server, who in ((closed, "a port without a server"), (silent, "a silent server")):
            if server is closed and transport is Transport.UDP:
                continue
            endpoint = Endpoint(transport, (socket.AF_INET, server.getsockname()))
            report.stage(subject, f"check of {who} over {transport.upper()}")
            _Case(check, settings, endpoint, report, subject, who, must_fail=server is closed).run()


@dataclass(frozen=True, slots=True)
class _Case:
    """One call of a health check.

    Attributes:
        check: the health check.
        settings: its default settings.
        endpoint: the address of the server.
        report: the report of findings.
        subject: the health check, as the subject of a finding.
        who: the server in words.
        must_fail: whether the check cannot pass.
    """

    check: HealthCheck[Any]
    settings: Struct
    endpoint: Endpoint
    report: Report
    subject: str
    who: str
    must_fail: bool

    def run(self) -> None:
        """Run the check once, in an event loop of its own."""
        loop = asyncio.new_event_loop()
        before, threads = _descriptors(), threading.active_count()
        try:
            ended = loop.run_until_complete(self._run())
        except BaseException as error:  # noqa: BLE001 - SystemExit in a task ends the event loop
            self._broken("health-answer", f"check raises {text_of(error)}")
            return
        if not ended:
            return  # without a close of the loop, which the task would outlive
        # A function in a thread may still use its socket.
        if threading.active_count() <= threads and (left := _descriptors() - before) > 0:
            self._broken("health-leaks", f"{left} descriptors stay open")
        loop.close()

    def _broken(self, code: str, found: str) -> None:
        self.report.broken(code, self.subject, f"{found} for {self.who}")

    async def _run(self) -> bool:
        """Run the check, cancel a check that waits, and return whether it has ended."""
        task = asyncio.ensure_future(self.check.check(self.endpoint, self.settings, _TIMEOUT))
        began = _idle()
        await asyncio.wait({task}, timeout=_WAIT)
        if _idle() - began - _WAIT > _PATIENCE:
            self._broken("health-blocks", "check blocks the event loop")
        if not task.done():
            task.cancel()
            began = _idle()
            while not task.done() and _idle() - began < _PATIENCE:
                await asyncio.wait({task}, timeout=_WAIT)
            if not task.done():
                self._broken("health-blocks", "check ignores its cancellation")
                return False
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        if not task.cancelled():
            self._judge(task)
        return True

    def _judge(self, task: asyncio.Task[object]) -> None:
        error = task.exception()
        if error is not None:
            if not isinstance(error, OSError | EOFError):
                self._broken("health-answer", f"check raises {text_of(error)}")
        elif not (task.result() is None or isinstance(task.result(), str)):
            self._broken("health-answer", f"check returns {shown(task.result())}")
        elif self.must_fail and task.result() is None:
            self._broken("health-answer", "check passes")


def _idle() -> float:
    """Return a clock (s) that stands still while this thread waits for a processor or uses it.

    On a busy machine, a thread may wait for a processor for a long time, which is no fault of a plugin.
    """
    try:
        running, queued, _ = map(int, _SCHEDSTAT.read_text().split())
    except (OSError, ValueError):
        return time.monotonic()
    return time.monotonic() - (running + queued) / 1e9


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
