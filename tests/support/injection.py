"""System calls of running programs that fail, by the fault injection of strace."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from support.clients import PATIENCE
from support.programs import require_program
from support.proxy import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def injecting(call: str, *pids: int) -> Iterator[None]:
    """Make every n-th call of each thread of these processes fail while the block runs.

    The calls of child processes do not fail: strace cannot detach from a process that waits in vfork(2) for a
    child that strace has stopped.
    """
    name, error, each = call.split(":")
    threads = {pid: os.listdir(f"/proc/{pid}/task") for pid in pids}  # noqa: PTH208 - names
    with tempfile.NamedTemporaryFile("r") as output:
        command = [
            *(require_program("strace"), "-qqq", "-o", output.name),
            *(word for those in threads.values() for thread in those for word in ("-p", thread)),
            *("-e", f"trace={name}", "-e", f"inject={name}:error={error}:when={each}+{each}"),
        ]
        with subprocess.Popen(command) as strace:
            try:
                eventually(lambda: all(map(_is_traced, pids)), "strace has attached")
                yield
                # If strace detaches from a thread in the middle of a call that fails, the call returns
                # ENOSYS, and libuv aborts. So stop the threads before strace detaches.
                _signal(pids, signal.SIGSTOP)
                eventually(
                    lambda: _count_stops(output.name) >= _count_left(threads), "all threads stand still"
                )
            finally:
                strace.terminate()
                strace.wait(PATIENCE)
                _signal(pids, signal.SIGCONT)


def _signal(pids: tuple[int, ...], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _count_stops(output: str) -> int:
    return Path(output).read_text().count("--- stopped by SIGSTOP ---")


def _count_left(threads: dict[int, list[str]]) -> int:
    """Return the number of these threads that have not ended."""
    return sum(Path(f"/proc/{pid}/task/{one}").exists() for pid, those in threads.items() for one in those)


def _is_traced(pid: int) -> bool:
    return "TracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text()
