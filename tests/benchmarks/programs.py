"""Programs that run while a block does, and what the kernel says they cost."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from support.process import TIMEOUT, environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Self

_TICK: Final = 1 / os.sysconf("SC_CLK_TCK")
"""Seconds in which /proc counts processor time."""
_GRACE: Final = 1.0
"""Seconds that a program has to end of its own."""


class Missing(Exception):  # noqa: N818 - it is not always an error
    """Something cannot be measured on this machine; the message says why."""


class Cost(NamedTuple):
    """Processor time (s)."""

    user: float
    system: float

    def since(self, before: Cost) -> Cost:
        return Cost(self.user - before.user, self.system - before.system)


class Program:
    """A program that serves until the block ends, and is ended there with all that it has started.

    Args:
        command: the program and its arguments.
        is_ready: asked until it says that the program serves.

    Raises:
        Missing: when the block begins, and the program does not serve.

    Attributes:
        started: seconds from the start of the process until it was ready.
    """

    def __init__(self, command: Sequence[str], is_ready: Callable[[], bool]) -> None:
        self._command = command
        self._is_ready = is_ready
        self.started = 0.0

    def __enter__(self) -> Self:
        began = time.perf_counter()
        self._process = subprocess.Popen(
            self._command,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # so that its processes can be told from all others
        )
        try:
            self._wait(began + TIMEOUT)
        except BaseException:
            self._kill()
            raise
        self.started = time.perf_counter() - began
        return self

    def _wait(self, until: float) -> None:
        while not self._is_ready():
            if self._process.poll() is not None or time.perf_counter() > until:
                raise Missing(f"does not serve: {' '.join(self._command)}")
            time.sleep(0.001)

    def __exit__(self, *_: object) -> None:
        self._kill()

    def _kill(self) -> None:
        self._process.terminate()  # some must see to the processes that they have started
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE)
        with contextlib.suppress(ProcessLookupError):  # none is left
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(TIMEOUT)

    def _processes(self) -> Iterator[tuple[Path, list[str]]]:
        """The folder in /proc of each process of the session, and its stat from the state on (proc(5))."""
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    fields = (folder / "stat").read_text().rpartition(")")[2].split()
                except OSError:  # ended meanwhile
                    continue
                if int(fields[3]) == self._process.pid:
                    yield folder, fields

    def cost(self) -> Cost:
        """Processor time that all its processes have used."""
        used = [(int(fields[11]), int(fields[12])) for _, fields in self._processes()]
        return Cost(sum(user for user, _ in used) * _TICK, sum(system for _, system in used) * _TICK)

    def memory(self) -> int:
        """Bytes of memory that are resident, in all its processes."""
        return sum(
            int((folder / "smaps_rollup").read_text().partition("\nRss:")[2].split()[0]) * 1024
            for folder, _ in self._processes()
        )


def find_program(*names: str) -> str:
    """The path of the first of some programs that is installed.

    Raises:
        Missing: none is.
    """
    for name in names:
        if path := shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin"):
            return path
    raise Missing(f"{' or '.join(names)} is not installed")


def raise_descriptor_limit(wanted: int) -> int:
    """Allow this process and what it starts that many descriptors, or as many as may be had; how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(wanted, hard)))
    except (ValueError, OSError):  # not ours to raise
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
