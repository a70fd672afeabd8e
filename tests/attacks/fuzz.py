"""A seeded fuzz of both ends of connections through a running ``refractium``.

uv run python tests/attacks/fuzz.py [--seed S] [--connections N] [--seconds T] [--scenario I] [--first K]

Each connection follows a random program at both ends (`fuzz_programs`), hundreds of connections at once.
Meanwhile the fuzz reloads the file and kills workers, as the scenario says. `fuzz_oracle` has the rules for
what both ends must see. At the end of each scenario nothing is left: no connection, no descriptor, no use of
the processor, no unexpected line in the log. A failure prints the seed, both programs, and the command that
runs them again. Times are not seeded: a failure that depends on them needs several runs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import secrets
import signal
import socket
import struct
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

sys.path.insert(0, str(Path(__file__).parents[1]))

from attacks.fuzz_ends import End, Loop
from attacks.fuzz_oracle import problems
from attacks.fuzz_programs import NUMBER, PEEK_MS, Plan
from support.process import TESTS, Running, children, environment, serving
from support.proxy import eventually
from support.status import status_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from refractium.observe.status import Status

_PATIENCE: Final = 60.0
"""Seconds after which an open connection hangs. The proxy itself waits for 30 s for an end that takes no byte
before its reset."""
_LONG_MS: Final = 3_600_000
"""Timeout (ms) of half-closed connections. A timeout shorter than `_PATIENCE` could hide a hang."""
_AT_ONCE: Final = 300
_MOST_FAILURES: Final = 5
_FIRST_OF_ALL: Final = range(90_000_000, 90_000_100)
"""Numbers of the connections that run before anything is measured."""
_RELOADS_AT: Final = range(100, sys.maxsize, 300)
_KILLS_AT: Final = range(150, sys.maxsize, 1_500)
"""Counts of connections at which a reload or kill happens. A worker that dies young is replaced after a
pause, in which its clients wait."""
_MEMORY: Final = 64 << 20
"""Bytes by which a process may grow: the buffers of all connections, and memory that the allocator keeps."""
_IDLE_SECONDS: Final = 0.5
_TICK: Final = 1 / os.sysconf("SC_CLK_TCK")
_IP_BIND_ADDRESS_NO_PORT: Final = 24
"""The constant of linux/in.h, which Python lacks. With it the kernel chooses a port that is free for this
connection."""
_PROXY_V2: Final = b"\r\n\r\n\0\r\nQUIT\n"
_LISTEN_EVENTS: Final = 1  # EPOLLIN, level-triggered
_ZOMBIE: Final = "Z"
_STALL: Final = re.compile(r"hook \S+ (?:has taken no packet for .*|takes packets again)")


@dataclass(frozen=True)
class Scenario:
    """The settings of an instance: its workers, its hook, and the disturbances during the run."""

    workers: int
    hook: str = ""
    reloads: bool = False
    kills: bool = False

    def __str__(self) -> str:
        words = [f"{self.workers} worker{'s' * (self.workers > 1)}"]
        if self.hook:
            words.append(f"hook {self.hook}")
        words += [word for word in ("reloads", "kills") if getattr(self, word)]
        return ", ".join(words)


SCENARIOS: Final = (
    Scenario(1),
    Scenario(3, reloads=True, kills=True),
    Scenario(1, "passing", reloads=True),
    Scenario(3, "reading", kills=True),
    Scenario(1, "reading", reloads=True),
    Scenario(3, "passing", reloads=True, kills=True),
    Scenario(3),
)


@dataclass
class Pair:
    """A connection: both of its ends.

    Attributes:
        plan: the programs of both ends.
        began: monotonic time (s) before the client's connect.
        client: the end of the client.
        backend: the end of the backend, once a backend has accepted the connection.
        finished: monotonic time (s) at which the second end was over.
    """

    plan: Plan
    began: float
    client: End
    backend: End | None = None
    finished: float = 0.0


class Fuzz:
    """A run of connections through one instance, each of which is judged.

    Args:
        seed: the seed of all random choices.
        scenario: how the instance runs.
        folder: the folder for the files of the instance.
        say: called with each failure.

    Attributes:
        failures: the number of failures.
        count: the number of connections that have been judged.
        strangers: the number of connections to backends that ended before their number arrived.
        longest: seconds that the longest connection took, and its number.
    """

    def __init__(self, seed: int, scenario: Scenario, folder: Path, say: Callable[[str], None]) -> None:
        self._seed = seed
        self._scenario = scenario
        self._folder = folder
        self._say = say
        self._rng = random.Random(f"{seed} {scenario}")  # noqa: S311 - test data
        self._loop = Loop()
        self._open: dict[int, Pair] = {}
        self._alone: dict[int, Pair] = {}
        self._by_address: dict[tuple[str, int], int] = {}
        self._kills: list[tuple[float, float]] = []
        self._started = 0
        self._program: Running
        self._target: tuple[str, int]
        self.failures = self.count = self.strangers = self.reloads = 0
        self.longest = 0.0, 0

    @property
    def kills(self) -> int:
        return len(self._kills)

    def run(self, numbers: Iterator[int], deadline: float) -> None:
        """Run connections with these numbers, until no number is left or the deadline has passed."""
        with ExitStack() as stack:
            stack.callback(self._loop.end)
            self._listen(stack)
            log = stack.enter_context((self._folder / "log").open("w+b"))
            self._configure()
            program = self._program = stack.enter_context(
                serving(
                    *("tcp", "-c", self._folder / "refractium.toml", "--log-format", "json"),
                    env=_environment_with_hooks(self._folder),
                    stderr=log.fileno(),
                )
            )
            self._target = program.address
            eventually(program.watches_files, "the configuration is watched")
            # This imports and allocates everything before the first measurement.
            self._connect_all(iter(_FIRST_OF_ALL), deadline)
            before = [measure(pid) for pid in self._processes()]
            self._connect_all(numbers, deadline)
            self._judge_alone()
            if self.failures >= _MOST_FAILURES:
                return  # connections are still open
            for problem in self._problems_at_the_end(before):
                self._fail(problem)
            if (code := program.terminate()) != 0:
                self._fail(f"the exit code is {code}")
            for line in _unexpected(self._folder / "log", kills=self.kills):
                self._fail(f"in the log: {line}")

    # The instance

    def _configure(self) -> None:
        """Write a configuration that differs from the one before."""
        rng = self._rng
        spread = self._backends[:]
        rng.shuffle(spread)
        first, second, third = spread[:3]
        hooks = f'hooks = ["{self._scenario.hook}"]' if self._scenario.hook else ""
        regex = f"""
[[protocols]]
name = "regex"
patterns = [{{ regex = "^HELLO [0-9]+ " }}]
forward_to = ["{second}", "{third}"]
transport = "tcp"
"""
        text = f"""
fallback_tcp = "{rng.choice(spread)}"
[server]
bind = "127.0.0.1"
port = 0
workers = {self._scenario.workers}
max_connections = {rng.randint(5_000, 20_000)}
max_connections_per_ip = {rng.randint(150, 200)}
peek_timeout_ms = {PEEK_MS}
connect_timeout_ms = {rng.choice((2_000, 5_000))}
half_close_timeout_ms = {_LONG_MS}
{hooks}
[check]
ignore = ["too-few-descriptors"]
[[protocols]]
name = "exact"
patterns = [{{ hex = "f0 0d 01", offset = 0 }}]
forward_to = "{first}"
transport = "tcp"
{regex if rng.random() < 0.8 else ""}
[[protocols]]
name = "http"
host = "fuzz.example"
forward_to = "{rng.choice(spread)}"
{rng.choice(('proxy_protocol = "v1"', 'proxy_protocol = "v2"', ""))}
[[protocols]]
name = "silent"
patterns = [{{ hex = "f0 0d 05", offset = 0 }}]
on_timeout = true
forward_to = "{rng.choice(spread)}"
proxy_protocol = "{rng.choice(("v1", "v2"))}"
transport = "tcp"
"""
        for number, (name, address) in enumerate(self._bad_backends.items(), 2):
            text += f"""
[[protocols]]
name = "{name}"
patterns = [{{ hex = "f0 0d 0{number}", offset = 0 }}]
forward_to = "{address}"
transport = "tcp"
"""
        new = self._folder / "new.toml"
        new.write_text(text)
        new.replace(self._folder / "refractium.toml")

    def _reload(self) -> None:
        self._configure()
        self.reloads += 1
        if self._rng.random() < 0.7:  # otherwise the watch has to notice the change
            self._program.signal(signal.SIGHUP)

    def _kill(self) -> None:
        """Kill a worker, and wait until the kernel has closed its sockets."""
        workers = [pid for pid in children(self._program.pid) if _is_worker(pid)]
        if not workers:
            return
        victim = self._rng.choice(workers)
        begun = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        while _state(victim) not in {"", _ZOMBIE}:
            time.sleep(0.001)
        self._kills.append((begun, time.monotonic()))

    def _processes(self) -> list[int]:
        return [self._program.pid, *children(self._program.pid)]

    # Backends

    def _listen(self, stack: ExitStack) -> None:
        """Open the listeners of all backends, including the backends that misbehave."""
        tcp = [stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=4096)) for _ in range(3)]
        unix = [self._unix_listener(stack, name) for name in ("backend", "gone")]
        dead = stack.enter_context(socket.socket())
        dead.bind(("127.0.0.1", 0))
        self._backends = [*map(_address, tcp[:2]), _address(unix[0])]
        self._bad_backends = {"reset": _address(tcp[2]), "gone": _address(unix[1]), "dead": _address(dead)}
        for listener, take in (
            *((good, self._arrived) for good in (*tcp[:2], unix[0])),
            (tcp[2], _reset),
            (unix[1], socket.socket.close),
        ):
            listener.setblocking(False)  # noqa: FBT003 - setblocking takes only positional arguments
            self._loop.watch(listener, partial(_accept, listener, take), _LISTEN_EVENTS)

    def _unix_listener(self, stack: ExitStack, name: str) -> socket.socket:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(self._folder / name))
        listener.listen(4096)
        return listener

    def _arrived(self, sock: socket.socket) -> None:
        """Find out by the first bytes which connection a backend has accepted."""
        sock.setblocking(False)  # noqa: FBT003 - setblocking takes only positional arguments
        early = b""

        def read(_mask: int) -> None:
            nonlocal early
            found = None
            while found is None:
                try:
                    data = sock.recv(4096)
                except BlockingIOError:
                    return
                except OSError:
                    data = b""
                if not data:
                    self.strangers += 1
                    self._loop.close(sock)
                    return
                early += data
                found = self._find(early)
            self._begin_backend(sock, *found)

        self._loop.watch(sock, read)
        read(0)

    def _find(self, data: bytes) -> tuple[int, bytes] | None:
        """Return the number of the connection that begins with these bytes, and the bytes without a PROXY
        header."""
        header = _proxy_header(data)
        if header is None:
            return None
        size, client = header
        number = self._by_address.get(client) if client is not None else None
        if number is None and (match := NUMBER.search(data, size)):
            number = int(match[1])
        return None if number is None else (number, data[size:])

    def _begin_backend(self, sock: socket.socket, number: int, early: bytes) -> None:
        pair = self._open.get(number) or self._alone.get(number)
        if pair is None or pair.backend is not None:
            self._fail(f"connection {number} has come to a backend twice, or never was")
            self._loop.close(sock)
            return
        self._alone.pop(number, None)
        self._open[number] = pair
        plan = pair.plan
        _set_options(sock, plan.backend.receive_buffer, plan.backend.send_buffer, inline=plan.backend.inline)
        pair.backend = End(self._loop, sock, plan.backend, plan.down, plan.up, partial(self._end_over, pair))
        pair.backend.begin(early)

    # Clients

    def _connect_all(self, numbers: Iterator[int], deadline: float) -> None:
        """Run connections until no number is left, then wait until all of them are over."""
        is_over = False
        while not is_over or (self._open and self.failures < _MOST_FAILURES):
            now = time.monotonic()
            is_over = is_over or now > deadline or self.failures >= _MOST_FAILURES
            while not is_over and len(self._open) < _AT_ONCE:
                number = next(numbers, None)
                if number is None:
                    is_over = True
                else:
                    self._connect(number)
                    self._disturb()
            self._loop.turn()
            self._end_hanging(now)

    def _disturb(self) -> None:
        """Reload or kill if the count of connections is due for it."""
        self._started += 1
        if self._scenario.reloads and self._started in _RELOADS_AT:
            self._reload()
        if self._scenario.kills and self._started in _KILLS_AT:
            self._kill()

    def _connect(self, number: int) -> None:
        plan = Plan.random(self._seed, number)
        sock = socket.socket()
        sock.setblocking(False)  # noqa: FBT003 - setblocking takes only positional arguments
        _set_options(sock, plan.client.receive_buffer, plan.client.send_buffer, inline=plan.client.inline)
        sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((f"127.0.0.{2 + number % 250}", 0))
        began = time.monotonic()
        sock.connect_ex(self._target)
        pair = Pair(
            plan,
            began,
            End(self._loop, sock, plan.client, plan.up, plan.down, lambda: self._end_over(pair)),
        )
        self._open[number] = pair
        self._by_address[sock.getsockname()] = number
        pair.client.await_connected()

    def _end_over(self, pair: Pair) -> None:
        """Record that an end is over, and judge the connection if its other end is over as well."""
        if not pair.client.is_over or (pair.backend is not None and not pair.backend.is_over):
            return
        pair.finished = time.monotonic()
        number = pair.plan.number
        self._open.pop(number, None)
        if pair.backend is None:
            self._alone[number] = pair
        else:
            self._judge(pair)

    def _end_hanging(self, now: float) -> None:
        """Give up a connection that has been open for too long."""
        while self._open:
            number, pair = next(iter(self._open.items()))
            if now - pair.began < _PATIENCE:
                return
            self._fail(f"hangs\n{self._shown(pair)}")
            del self._open[number]

    # Judgement

    def _judge_alone(self) -> None:
        for pair in self._alone.values():
            self._judge(pair)
        self._alone.clear()

    def _judge(self, pair: Pair) -> None:
        self.count += 1
        self.longest = max(self.longest, (pair.finished - pair.began, pair.plan.number))
        was_killed = any(begun <= pair.finished and pair.began <= over for begun, over in self._kills)
        for problem in problems(pair.plan, pair.client, pair.backend, was_killed=was_killed):
            self._fail(f"{problem}\n{self._shown(pair)}")

    def _shown(self, pair: Pair) -> str:
        lines = [str(pair.plan), f"  client seen: {pair.client}", f"  backend seen: {pair.backend}"]
        index = SCENARIOS.index(self._scenario) if self._scenario in SCENARIOS else 0
        first = max(0, pair.plan.number - 2 * _AT_ONCE)
        lines.append(
            f"  again: python tests/attacks/fuzz.py --seed {self._seed} --scenario {index}"
            f" --first {first} --connections {pair.plan.number - first + _AT_ONCE}"
        )
        return "\n".join(lines)

    def _fail(self, what: str) -> None:
        self.failures += 1
        self._say(f"FAILURE (seed {self._seed}, {self._scenario}): {what}")

    def _problems_at_the_end(self, before: Sequence[Measured]) -> Iterator[str]:
        program = self._program
        try:
            eventually(lambda: _is_drained(status_of(program)), "no connection is open")
        except AssertionError as error:
            yield str(error)
        status = status_of(program)
        refused = sum(status.tcp.refused.values())
        if refused or status.tcp.accepted != status.tcp.finished:
            yield f"counted wrongly: {status.tcp}"
        if paused := [one.address for one in status.listeners if one.paused]:
            yield f"deaf: {paused}"
        if faults := sum(route.ended.get("fault", 0) for route in status.tcp.routes):
            yield f"{faults} connections ended by an internal error"
        if self._scenario.reloads and (status.reloads_failed or (self.reloads and status.generation < 2)):
            yield f"reloads: {status.generation} generations, {status.last_reload}"
        yield from self._problems_of_processes(before)

    def _problems_of_processes(self, before: Sequence[Measured]) -> Iterator[str]:
        most = [max(getattr(one, what) for one in before) for what in ("descriptors", "memory")]

        def descriptors() -> int:
            return max(measure(pid).descriptors for pid in self._processes())

        try:
            eventually(lambda: descriptors() <= most[0], "descriptors at the baseline")
        except AssertionError as error:
            yield f"{error}: {descriptors()}, before {most[0]}"
        now = {pid: measure(pid) for pid in self._processes()}
        if (memory := max(one.memory for one in now.values())) > most[1] + _MEMORY:
            yield f"{memory >> 20} MiB of memory, before {most[1] >> 20}"
        time.sleep(_IDLE_SECONDS)
        for pid, former in now.items():
            used = measure(pid).seconds - former.seconds
            if used > max(0.1 * _IDLE_SECONDS, 2 * _TICK):
                yield f"process {pid} spins: {used:.2f} s in {_IDLE_SECONDS} s"


@dataclass(frozen=True)
class Measured:
    """The resources of a process: descriptors, resident memory (bytes), used processor time (s)."""

    descriptors: int
    memory: int
    seconds: float


def measure(pid: int) -> Measured:
    proc = Path("/proc", str(pid))
    fields = (proc / "stat").read_text().rpartition(")")[2].split()
    # The process opens its configuration once a second, for a moment; the minimum leaves that descriptor
    # out.
    descriptors = min(len(os.listdir(proc / "fd")) for _ in range(3))  # noqa: PTH208 - names are wanted
    memory = int((proc / "status").read_text().partition("VmRSS:")[2].split()[0]) << 10
    return Measured(descriptors, memory, (int(fields[11]) + int(fields[12])) * _TICK)


def _environment_with_hooks(folder: Path) -> dict[str, str]:
    """Make a distribution of `attacks.fuzz_hooks`, and return the environment in which programs find it."""
    information = folder / "refractium_fuzz_hooks-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: refractium-fuzz-hooks\nVersion: 1\n")
    (information / "entry_points.txt").write_text("[refractium]\nfuzz = attacks.fuzz_hooks\n")
    paths = (folder, TESTS, os.environ.get("PYTHONPATH", ""))
    return environment(PYTHONPATH=os.pathsep.join(str(path) for path in paths if path))


def _is_drained(status: Status) -> bool:
    tallies = [tally for hook in status.hooks for tally in (hook.inbound, hook.outbound)]
    return not status.tcp.active and all(one.seen == one.delivered + one.dropped for one in tallies)


def _unexpected(path: Path, *, kills: int) -> Iterator[str]:
    """Yield the lines of a log that are not expected."""
    deaths = 0
    for line in path.read_bytes().splitlines():
        if not line.startswith(b"{"):
            yield line.decode(errors="replace")
        elif b'"level":"info"' not in line:
            said = json.loads(line)
            if said["level"] == "warning" and "cannot be reached" in str(said):
                continue
            # Some clients end within their first bytes, or lose some of these bytes as urgent bytes.
            if said["level"] == "warning" and "refused a connection from" in said["message"]:
                continue
            # Hooks have the lowest priority. On a busy machine a hook may stall and then go on.
            if said["level"] == "warning" and _STALL.fullmatch(said["message"]):
                continue
            if "was killed by signal 9" in str(said):
                deaths += 1
                continue
            yield str(said)
    if deaths > kills:
        yield f"{deaths} workers were killed, {kills} of them by the fuzz"


def _is_worker(pid: int) -> bool:
    try:
        return b"refractium.workers.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _state(pid: int) -> str:
    """Return the state letter of a process (proc(5)); empty if the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _address(listener: socket.socket) -> str:
    name = listener.getsockname()
    return f"unix:{name}" if isinstance(name, str) else f"{name[0]}:{name[1]}"


def _accept(listener: socket.socket, take: Callable[[socket.socket], object], _mask: int) -> None:
    while True:
        try:
            sock, _ = listener.accept()
        except BlockingIOError:
            return
        take(sock)


def _reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def _set_options(sock: socket.socket, receive_buffer: int, send_buffer: int, *, inline: bool) -> None:
    for option, value in (
        (socket.SO_RCVBUF, receive_buffer),
        (socket.SO_SNDBUF, send_buffer),
        (socket.SO_OOBINLINE, inline),
    ):
        if value:
            sock.setsockopt(socket.SOL_SOCKET, option, value)


def _proxy_header(data: bytes) -> tuple[int, tuple[str, int] | None] | None:
    """Return the size of the PROXY header before data, and its client; None if more bytes are needed."""
    if data.startswith(b"PROXY "):
        line, end, _ = data.partition(b"\r\n")
        words = line.decode().split()
        return (len(line) + 2, (words[2], int(words[4]))) if end else None
    if data.startswith(_PROXY_V2):
        if len(data) < 16 or len(data) < (size := 16 + int.from_bytes(data[14:16])):
            return None
        host, _, port = struct.unpack_from("!4s4sH", data, 16)
        return size, (socket.inet_ntoa(host), port)
    is_cut = b"PROXY ".startswith(data) or _PROXY_V2.startswith(data)
    return None if is_cut else (0, None)


def run(
    seed: int,
    *,
    connections: int,
    seconds: float = float("inf"),
    first: int = 0,
    each: int = 5_000,
    scenarios: Sequence[Scenario] = SCENARIOS,
    say: Callable[[str], None] = print,
) -> int:
    """Run connections, a fixed number of each scenario in turn, up to the given number.

    Returns:
        The number of failures.
    """
    begun, number, failures, turn = time.monotonic(), first, 0, 0
    deadline = begun + seconds
    while number < first + connections and time.monotonic() < deadline and failures < _MOST_FAILURES:
        scenario = scenarios[turn % len(scenarios)]
        turn += 1
        end = min(first + connections, number + each)
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            fuzz = Fuzz(seed, scenario, Path(folder), say)
            since = time.monotonic()
            fuzz.run(iter(range(number, end)), deadline)
            took = time.monotonic() - since
        failures += fuzz.failures
        say(
            f"{scenario}: from connection {number}, {fuzz.count} in {took:.1f} s ({fuzz.count / took:.0f}/s),"
            f" {fuzz.reloads} reloads, {fuzz.kills} kills, {fuzz.strangers} strangers,"
            f" longest {fuzz.longest[0]:.1f} s ({fuzz.longest[1]}), {fuzz.failures} failures"
        )
        number = end
    return failures


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32), help="[any]")
    parser.add_argument("--connections", type=int, default=sys.maxsize, help="[until --seconds]")
    parser.add_argument("--seconds", type=float, help="[60, if --connections does not say]")
    parser.add_argument("--first", type=int, default=0, help="number of the first connection [0]")
    parser.add_argument("--each", type=int, default=5_000, help="connections of a scenario in a row [5000]")
    parser.add_argument("--scenario", type=int, choices=range(len(SCENARIOS)), help="only this one [all]")
    arguments = parser.parse_args()
    seconds = arguments.seconds
    if seconds is None:
        seconds = 60.0 if arguments.connections == sys.maxsize else float("inf")
    say = partial(print, flush=True)
    say(f"seed {arguments.seed}")
    failures = run(
        arguments.seed,
        connections=arguments.connections,
        seconds=seconds,
        first=arguments.first,
        each=arguments.each,
        scenarios=SCENARIOS if arguments.scenario is None else (SCENARIOS[arguments.scenario],),
        say=say,
    )
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
