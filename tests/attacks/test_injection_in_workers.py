"""System calls of a supervisor and of its workers sometimes fail: afterwards everything works again."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import pytest

from refractium.errors import RefractiumError
from refractium.observe.control import ask, decode
from support.backends import Backend, echo
from support.clients import PATIENCE, connect, payload, receive_all, sending
from support.injection import injecting
from support.process import children, free_port, serving
from support.proxy import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refractium.observe.status import Status
    from support.process import Running

pytestmark = pytest.mark.slow

WORKERS: Final = 2
CONFIGURATION: Final = """
fallback_tcp = "{tcp}"
[server]
bind = "127.0.0.1"
port = {port}
workers = 2
control = "{control}"
max_connections_per_ip = 5000
connect_timeout_ms = 2000
[[protocols]]
name = "local"
patterns = ["UNIX"]
forward_to = "{unix}"
transport = "tcp"
"""
_INJECTED_SECONDS: Final = 3.0
"""Most seconds in which calls of the supervisor fail, while it replaces a worker and reloads."""
OF_WORKERS: Final = [
    *(f"accept4:{error}:3" for error in ("EMFILE", "ENOBUFS", "ECONNABORTED", "EPERM", "EIO")),
    *(f"connect:{error}:4" for error in ("ENOMEM", "EINTR", "EADDRNOTAVAIL")),
    *(f"recvfrom:{error}:9" for error in ("ENOMEM", "EIO")),
    *(f"sendto:{error}:9" for error in ("ENOMEM", "ENOBUFS", "EIO")),
    # EAGAIN is left out: a kernel that returns it announces later, by an event, that the call can go on.
    # strace does not.
    *(f"splice:{error}:5" for error in ("ENOMEM", "EIO")),
    *(f"epoll_ctl:{error}:7" for error in ("ENOMEM", "ENOSPC")),
    *(f"socket:{error}:3" for error in ("EMFILE", "ENOBUFS")),
    *(f"shutdown:{error}:3" for error in ("ENOTCONN", "ENOBUFS")),
    *("setsockopt:ENOMEM:5", "getsockopt:ENOBUFS:3", "getsockname:ENOBUFS:3", "getpeername:ENOBUFS:2"),
    *("ioctl:EIO:3", "pipe2:EMFILE:1", "epoll_pwait:EINTR:3", "epoll_wait:EINTR:3"),
    *("fcntl:ENOLCK:5", "fcntl:EINTR:5", "recvmsg:ENOMEM:5"),
]
"""System calls, each with the error that it returns and the n of "every n-th call".

Errors that no kernel returns are left out: of a `close` that leaves the descriptor open, as it does under
strace, and of a read or write of an eventfd, at which libuv aborts. The epoll of the supervisor is left out
as well: only libuv uses it.
"""
OF_SUPERVISOR: Final = [
    *(f"recvmsg:{error}:4" for error in ("ENOMEM", "EINTR")),
    *(f"sendto:{error}:3" for error in ("ENOBUFS", "ENOMEM", "EAGAIN")),
    *(f"sendmsg:{error}:2" for error in ("ENOBUFS", "ETOOMANYREFS", "EAGAIN")),
    *(f"socket:{error}:2" for error in ("EMFILE", "ENOBUFS")),
    *(
        "bind:EADDRINUSE:2",
        "bind:ENOMEM:2",
        "listen:EADDRINUSE:2",
        "setsockopt:ENOMEM:4",
        "getsockname:ENOBUFS:2",
    ),
    *("socketpair:EMFILE:2", "pipe2:EMFILE:2", "vfork:EAGAIN:2", "wait4:ECHILD:2"),
    *("clone3:EAGAIN:1", "fcntl:ENOMEM:3", "dup:EMFILE:1", "epoll_pwait:EINTR:3", "accept4:EMFILE:2"),
    *("openat:EMFILE:3", "openat:EIO:2", "newfstatat:EACCES:3"),
    *("inotify_init1:EMFILE:1", "inotify_add_watch:ENOSPC:1", "unlink:EACCES:1", "getdents64:EIO:1"),
]


class Instance(NamedTuple):
    """A running supervisor, the path of its configuration, and the names that fill the configuration."""

    program: Running
    path: Path
    names: dict[str, str]

    @property
    def workers(self) -> list[int]:
        return [pid for pid in children(self.program.pid) if _is_worker(pid)]

    def status(self) -> Status:
        """Return the status of the program, waiting until it answers."""
        told: list[bytes] = []

        def is_told() -> bool:
            with suppress(RefractiumError):
                told.append(ask([Path(self.names["control"])]))
            return bool(told)

        eventually(is_told, "the program tells its status")
        return decode(told[0])

    def configure(self, port: int) -> None:
        self.path.write_text(CONFIGURATION.format(port=port, **self.names))


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[Instance]:
    path = tmp_path / "refractium.toml"
    with Backend(echo) as tcp, Backend(echo, path=tmp_path / "backend") as unix:
        names = {"tcp": tcp.address, "unix": unix.address, "control": str(tmp_path / "control")}
        path.write_text(CONFIGURATION.format(port=free_port(), **names))
        with serving("tcp", "-c", path) as program:
            eventually(program.watches_files, "the configuration is watched")
            yield Instance(program, path, names)


def exchange(address: tuple[str, int], number: int) -> Literal["whole", "reset"]:
    """Send bytes and read the echo; an incomplete echo must be a prefix without an orderly end."""
    data = (b"UNIX" if number % 3 == 2 else b"?") + payload(
        number, (10, 3_000, 200_000, 1_500_000)[number % 4]
    )
    try:
        with connect(address) as sock, sending(sock, data) as sent:
            received = receive_all(sock)
    except ConnectionError:
        return "reset"
    assert data.startswith(received.data), "the client received bytes that it did not send"
    if received.data == data:
        return "whole"
    # A send that meets the reset takes its error; the next receive then looks like an orderly end.
    assert received.end == "reset" or not sent.is_set(), "the echo was cut off but ended in order"
    return "reset"


def all_serve(instance: Instance, count: int = 24) -> bool:
    """Return whether the newest listener serves each of `count` clients."""
    address = "127.0.0.1", int(instance.program.addresses[-1].rpartition(":")[2])
    with ThreadPoolExecutor(8) as pool:
        return set(pool.map(lambda number: exchange(address, number), range(count))) == {"whole"}


def assert_well(instance: Instance, before: dict[str, int]) -> None:
    """Assert that all workers serve and apply a reload, that no process spins, and that nothing is left
    over."""
    program = instance.program
    # The program has no status while its control socket is missing. The socket comes back within five
    # seconds.
    eventually(lambda: len(instance.workers) == WORKERS, "all workers are there")
    eventually(lambda: sorted(instance.workers) == _told_workers(instance), "all workers are known")
    port = free_port()
    instance.configure(port)
    program.signal(signal.SIGHUP)
    program.await_out(rf":{port}$")
    eventually(lambda: len(instance.status().listeners) == 1, "only the newest listener is left")
    assert all_serve(instance)
    eventually(lambda: not instance.status().tcp.active, "no client is connected")
    status = instance.status()
    assert not [one.paused for one in status.listeners if one.paused]
    eventually(
        lambda: program.descriptors() <= before["supervisor"],
        "the supervisor has as many descriptors as before",
    )
    for pid in instance.workers:
        eventually(
            lambda pid=pid: _descriptors(pid) <= before["worker"],  # type: ignore[misc]
            "a worker has as many descriptors as before",
        )
    eventually(lambda: _are_idle([program.pid, *instance.workers]), "all processes are idle")
    assert program.terminate() == 0


def counted(instance: Instance) -> dict[str, int]:
    assert all_serve(instance, 12)
    instance.status()
    eventually(lambda: _are_idle(instance.workers), "idle")
    return {
        "supervisor": instance.program.descriptors(),
        "worker": max(map(_descriptors, instance.workers)),
    }


@pytest.mark.parametrize("call", OF_WORKERS)
def test_failing_system_calls_of_workers_leave_nothing_broken(instance: Instance, call: str) -> None:
    before = counted(instance)
    address = instance.program.address
    with injecting(call, *instance.workers), ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: exchange(address, number), range(40)))
        instance.program.signal(signal.SIGHUP)
        list(pool.map(lambda number: exchange(address, number), range(8)))
    assert_well(instance, before)


@pytest.mark.parametrize("call", OF_SUPERVISOR)
def test_failing_system_calls_of_the_supervisor_leave_nothing_broken(instance: Instance, call: str) -> None:
    before = counted(instance)
    program = instance.program
    address = program.address
    # Some clients wait for the killed worker, whose replacement may start only when the calls succeed
    # again.
    with ThreadPoolExecutor(17) as pool:
        with injecting(call, program.pid):
            os.kill(instance.workers[0], signal.SIGKILL)
            program.await_err("killed by signal 9|ended with status")
            asked = [pool.submit(exchange, address, number) for number in range(16)]
            told = pool.submit(instance.status)
            instance.configure(free_port())
            program.signal(signal.SIGHUP)
            wait(asked, timeout=_INJECTED_SECONDS, return_when=FIRST_EXCEPTION)
        for answer in asked:
            answer.result(PATIENCE)
        told.result(PATIENCE)
    assert_well(instance, before)


def _told_workers(instance: Instance) -> list[int]:
    pids = [one.pid for one in instance.status().workers]
    return sorted(pid for pid in pids if pid is not None)


def _is_worker(pid: int) -> bool:
    with suppress(OSError):
        return b"refractium.workers.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - only their number is wanted


def _used(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _are_idle(pids: list[int], seconds: float = 0.3) -> bool:
    """Return whether processes use next to no processor time for that many seconds."""
    before = sum(map(_used, pids))
    time.sleep(seconds)
    return sum(map(_used, pids)) - before <= 0.1 * seconds * len(pids) + 0.02
