"""Programs that run for the time of a block, and their cost according to the kernel."""

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
"""Seconds of the unit in which /proc counts processor time."""
_GRACE: Final = 1.0
"""Seconds after SIGTERM after which a program is killed."""


class Missing(Exception):  # noqa: N818 - it is not always an error
    """A measurement that is impossible on this machine; the message gives the reason."""


class Cost(NamedTuple):
    """Processor time (s)."""

    user: float
    system: float

    def since(self, before: Cost) -> Cost:
        return Cost(self.user - before.user, self.system - before.system)


class Program:
    """A program that serves until the block ends, which also ends all processes that it has started.

    Args:
        command: the program and its arguments.
        is_ready: a function that is called until it returns True because the program serves.

    Raises:
        Missing: the program does not serve; raised at the start of the block.

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
            start_new_session=True,  # the session shows which processes belong to the program
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
        self._process.terminate()  # some programs must end the processes that they have started
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE)
        with contextlib.suppress(ProcessLookupError):  # no process is left
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(TIMEOUT)

    def _processes(self) -> Iterator[tuple[Path, list[str]]]:
        """Yield the folder in /proc of each process of the session, and the fields of stat from the state on.

        The fields are in proc(5).
        """
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    fields = (folder / "stat").read_text().rpartition(")")[2].split()
                except OSError:  # the process has ended in the meantime
                    continue
                if int(fields[3]) == self._process.pid:
                    yield folder, fields

    def cost(self) -> Cost:
        """Return the processor time that all processes of the program have used."""
        used = [(int(fields[11]), int(fields[12])) for _, fields in self._processes()]
        return Cost(sum(user for user, _ in used) * _TICK, sum(system for _, system in used) * _TICK)

    def memory(self) -> int:
        """Return the resident memory (bytes) of all processes of the program."""
        return sum(
            int((folder / "smaps_rollup").read_text().partition("\nRss:")[2].split()[0]) * 1024
            for folder, _ in self._processes()
        )


def find_program(*names: str) -> str:
    """Return the path of the first program that is installed.

    Raises:
        Missing: none of the programs is installed.
    """
    for name in names:
        if path := shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin"):
            return path
    raise Missing(f"{' or '.join(names)} is not installed")


def raise_descriptor_limit(wanted: int) -> int:
    """Raise the limit of descriptors for this process and the programs that it starts, and return the limit.

    If `wanted` is not allowed, the hard limit is used.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(wanted, hard)))
    except (ValueError, OSError):  # this process may not raise the hard limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
