"""The program as users start it: in a separate process, observed through stdout and stderr."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Self

PROGRAM: Final = str(Path(sys.executable).with_name("refractium"))
"""The command of the environment that the tests run in."""

TIMEOUT: Final = 60.0
"""Seconds after which anything counts as hung; no test waits for this time to pass."""

TESTS: Final = Path(__file__).parents[1]

RUNTIME: Final = tempfile.TemporaryDirectory(prefix="refractium-")
"""The folder for the control sockets of the instances that tests start."""

_WORKER: Final = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_LISTENING: Final = re.compile(r"^Listening on (?:tcp|udp)://(\S+)$", re.MULTILINE)
_NEVER_GIVEN: Final = range(12_000, 32_000)[_WORKER :: int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))]
"""Ports for this test process, below the default ip_local_port_range of Linux (ip(7))."""
_GIVEN: Final[set[int]] = set()
"""Ports that `free_port` has returned: two ports for one test must differ."""
_TICK: Final = 1 / os.sysconf("SC_CLK_TCK")
"""Seconds of the unit in which /proc counts processor time."""


class Finished(NamedTuple):
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str


def able_to_import_tests() -> dict[str, str]:
    """Return environment variables for an interpreter that can import the modules of the tests."""
    return {**os.environ, "PYTHONPATH": str(TESTS)}


def environment(**changed: str) -> dict[str, str]:
    """Return the environment of the tests, without variables that change how the program works or looks."""
    # PYTHONDONTWRITEBYTECODE would make each start compile everything; users wait for that only once.
    unwanted = (
        "PYTHONDONTWRITEBYTECODE",
        "REFRACTIUM_",
        "NO_COLOR",
        "FORCE_COLOR",
        "TTY_",
        "COLUMNS",
        "LINES",
    )
    kept = {key: value for key, value in os.environ.items() if not key.startswith(unwanted)}
    return {**kept, "COLUMNS": "200", "TERM": "xterm", "XDG_RUNTIME_DIR": RUNTIME.name, **changed}


def run(
    *arguments: object, cwd: Path | None = None, env: Mapping[str, str] | None = None, stdin: bytes = b""
) -> Finished:
    """Run ``refractium`` to its end, and return its exit code and output."""
    done = subprocess.run(
        [PROGRAM, *map(str, arguments)],
        cwd=cwd,
        env=env or environment(),
        input=stdin,
        capture_output=True,
        timeout=TIMEOUT,
        check=False,
    )
    return Finished(done.returncode, done.stdout.decode(), done.stderr.decode())


def free_port() -> int:
    """Return a port that is free for TCP and UDP, for a test that must know the port in advance.

    The port is outside of the range from which the kernel gives ports to clients, so no client can take it.
    """
    both = socket.has_dualstack_ipv6()
    host, family = ("::", socket.AF_INET6) if both else ("", socket.AF_INET)
    while True:
        port = secrets.choice(_NEVER_GIVEN)
        if port in _GIVEN:
            continue
        with (
            contextlib.suppress(OSError),
            socket.create_server((host, port), family=family, dualstack_ipv6=both),
            socket.socket(type=socket.SOCK_DGRAM) as udp,
        ):
            udp.bind(("0.0.0.0", port))
            _GIVEN.add(port)
            return port


def is_listening(port: int) -> bool:
    """Return whether a program accepts connections at a port, if it cannot report that in another way."""
    with contextlib.suppress(ConnectionError):
        socket.create_connection(("127.0.0.1", port), TIMEOUT).close()
        return True
    return False


def children(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    return [int(one) for children in of_threads(pid, "children") for one in children.split()]


def of_threads(pid: int, name: str) -> Iterator[str]:
    """Yield the text of a file of each thread of a process (proc(5)). A thread may end meanwhile."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            yield (thread / name).read_text()


def family(pid: int) -> list[int]:
    """Return a process with all its descendants."""
    return [pid, *(one for child in children(pid) for one in family(child))]


class Running:
    """A ``refractium`` process, which the end of the block kills if it still runs.

    Args:
        arguments: the arguments of the command line.
        cwd: the working folder.
        env: the environment, instead of `environment`.
        stdout: a file descriptor instead of a pipe; `out` then stays empty.
        stderr: a file descriptor instead of a pipe; `err` then stays empty.
        shell: a line for ``sh`` that starts the program as ``"$@"``, for example with closed streams.
        pass_fds: descriptors that stay open in the process.

    Attributes:
        pid: the process id.
    """

    def __init__(
        self,
        *arguments: object,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdout: int = subprocess.PIPE,
        stderr: int = subprocess.PIPE,
        shell: str | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        command = [PROGRAM, *map(str, arguments)]
        self._process = subprocess.Popen(
            command if shell is None else ["sh", "-c", shell, "sh", *command],
            cwd=cwd,
            env=env or environment(),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            pass_fds=pass_fds,
        )
        self.pid = self._process.pid
        self._changed = threading.Condition()
        self._text = {"out": "", "err": ""}
        self._ended: set[str] = set()
        self._readers = [
            threading.Thread(target=self._read, args=(name, pipe), daemon=True)
            for name, pipe in (("out", self._process.stdout), ("err", self._process.stderr))
            if pipe is not None
        ]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(TIMEOUT)
        for reader in self._readers:
            reader.join(TIMEOUT)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def _read(self, name: str, pipe: IO[bytes]) -> None:
        for line in pipe:
            with self._changed:
                self._text[name] += line.decode(errors="surrogateescape")
                self._changed.notify_all()
        with self._changed:
            self._ended.add(name)
            self._changed.notify_all()

    @property
    def out(self) -> str:
        """The stdout so far."""
        return self._text["out"]

    @property
    def err(self) -> str:
        """The stderr so far."""
        return self._text["err"]

    def await_out(self, pattern: str) -> re.Match[str]:
        """Wait until stdout matches a pattern."""
        return self._await("out", pattern)

    def await_err(self, pattern: str) -> re.Match[str]:
        """Wait until stderr matches a pattern."""
        return self._await("err", pattern)

    def _await(self, name: str, pattern: str) -> re.Match[str]:
        found = re.compile(pattern, re.MULTILINE)
        with self._changed:
            self._changed.wait_for(lambda: found.search(self._text[name]) or name in self._ended, TIMEOUT)
        match = found.search(self._text[name])
        assert match, f'no "{pattern}" in std{name} of {self}'
        return match

    @property
    def addresses(self) -> list[str]:
        """The addresses ``HOST:PORT`` on which it listens, from the stdout so far."""
        return _LISTENING.findall(self.out)

    @property
    def port(self) -> int:
        """The port on which it listens."""
        return int(self.addresses[0].rpartition(":")[2])

    @property
    def address(self) -> tuple[str, int]:
        """The address and port for IPv4 clients on this machine."""
        return "127.0.0.1", self.port

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def await_exit(self) -> int:
        """Wait until the process ends, like `wait`, but not until its children have closed their output."""
        try:
            return self._process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running: {self}") from None

    def wait(self) -> int:
        """Wait until the process ends, and return the exit code, negative for a signal that killed it."""
        code = self.await_exit()
        for reader in self._readers:
            reader.join(TIMEOUT)
        return code

    def terminate(self) -> int:
        """Send SIGTERM, as a service manager does, and return the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    # Figures from proc(5)

    def cpu_seconds(self) -> float:
        """Return the seconds of processor time that the process has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * _TICK

    def memory(self) -> int:
        """Return the resident memory in bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    def descriptors(self) -> int:
        """Return the number of open file descriptors.

        The configuration, which the program opens once a second, does not count.
        """
        return min(len(list(Path(f"/proc/{self.pid}/fd").iterdir())) for _ in range(3))

    def watches_files(self) -> bool:
        """Return whether it watches its configuration; it begins to watch a moment after it listens."""
        for fd in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed in the meantime
                if str(fd.readlink()) == "anon_inode:inotify":
                    return True
        return False

    def is_idle(self, seconds: float = 0.3) -> bool:
        """Return whether it uses under a tenth of a processor for `seconds`; a spinning loop uses all."""
        before = self.cpu_seconds()
        time.sleep(seconds)
        return self.cpu_seconds() - before <= max(0.1 * seconds, 2 * _TICK)

    def __repr__(self) -> str:
        state = self._process.poll()
        return f"<refractium {'running' if state is None else state}>\n{self.out}\n{self.err}"


@contextlib.contextmanager
def serving(
    *arguments: object,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stderr: int = subprocess.PIPE,
) -> Iterator[Running]:
    """Yield a ``refractium`` that listens.

    Its arguments or file must name port 0, unless the port itself is tested.
    """
    with Running(*arguments, cwd=cwd, env=env, stderr=stderr) as running:
        running.await_out(_LISTENING.pattern)
        yield running
