"""Mixed traffic for a chosen time, while the program is reloaded and its workers are killed.

python tests/attacks/soak.py [--seconds 1800]

TCP, TLS and UDP clients send questions without end, each with its own bytes. Every five seconds the
configuration is reloaded, every twenty seconds a worker is killed, and one of the backends comes and goes. A
client may fail only if a worker was killed while it was connected. The soak prints memory, descriptors and
threads as they change.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import re
import signal
import socket
import ssl
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, cast

import trustme

if not TYPE_CHECKING and __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from support.process import Running, children, free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

HOST: Final = "127.0.0.1"
WORKERS: Final = 3
CLIENTS: Final = {"tcp": 6, "tls": 3, "udp": 3}
"""Number of concurrent clients of each kind."""
MAGIC: Final = b"SOAK"
NAME: Final = "soak.example"
PAUSE: Final = 0.01
"""Seconds between two questions of a client."""
ANSWERED_WITHIN: Final = 20.0
"""Seconds in which a question must be answered; a killed worker is replaced in less time."""
RELOAD_EVERY: Final = 5.0
KILL_EVERY: Final = 20.0
FLAP_EVERY: Final = 3.0


class Sample(NamedTuple):
    """The resources that all processes use together, except memory, which is that of the largest worker."""

    seconds: float
    supervisor_kib: int
    worker_kib: int
    descriptors: int
    threads: int
    processes: int


@dataclass
class Outcome:
    """The results of a soak.

    Attributes:
        asked: number of questions that were answered in full, by kind.
        excused: number of failures of clients that were connected when a worker was killed, by kind.
        flapped: failures, by kind, of clients that were connected when the backend stopped listening;
            connections that the backend has not accepted yet are reset then.
        failures: all other failures, in words.
        reloads: number of reloads.
        kills: times at which workers were killed (s, monotonic clock).
        flaps: times at which the backend stopped listening (s, monotonic clock).
        samples: the resources of the processes during the soak.
    """

    asked: Counter[str] = field(default_factory=Counter)
    excused: Counter[str] = field(default_factory=Counter)
    flapped: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    reloads: int = 0
    kills: list[float] = field(default_factory=list)
    flaps: list[float] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)


class EchoDatagrams(asyncio.DatagramProtocol):
    """A server that sends each datagram back."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._transport.sendto(data, addr)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send all bytes back, then the end."""
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.close()


async def listen_now_and_then(port: int, flaps: list[float]) -> None:
    """Echo on a TCP port, with breaks in which nobody listens; open connections last through the breaks."""
    while True:
        server = await asyncio.start_server(echo, HOST, port, reuse_address=True)
        await asyncio.sleep(FLAP_EVERY)
        flaps.append(time.monotonic())
        server.close()
        await asyncio.sleep(FLAP_EVERY)


async def ask_tcp(port: int, data: bytes, context: ssl.SSLContext | None = None) -> bytes:
    reader, writer = await asyncio.open_connection(
        HOST, port, ssl=context, server_hostname=None if context is None else NAME
    )
    try:
        writer.write(data)
        if context is None:
            writer.write_eof()
            return await reader.read(-1)
        return await reader.readexactly(len(data))
    finally:
        writer.transport.abort()


async def ask_udp(port: int, data: bytes) -> bytes:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)  # noqa: FBT003 - setblocking takes only positional arguments
        sock.connect((HOST, port))
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(sock, data)
        return await loop.sock_recv(sock, 65_536)


async def client(kind: str, ask: Callable[[bytes], Awaitable[bytes]], seed: str, seen: Outcome) -> None:
    """Ask question after question, and judge each answer."""
    chance = random.Random(seed)  # noqa: S311 - test data
    while True:
        size = 600 if kind == "udp" else chance.choice((1, 500, 20_000, 300_000))
        data = MAGIC + chance.randbytes(size)
        begun, failure = time.monotonic(), ""
        try:
            async with asyncio.timeout(ANSWERED_WITHIN):
                answer = await ask(data)
            if answer != data:
                failure = f"{len(answer)} of {len(data)} bytes, alike {data.startswith(answer)}"
        except (OSError, EOFError, TimeoutError) as error:
            failure = repr(error)
        now = time.monotonic()
        if not failure:
            seen.asked[kind] += 1
        elif any(begun <= at <= now for at in seen.kills):
            seen.excused[kind] += 1
        elif kind == "tcp" and any(begun <= at <= now for at in seen.flaps):
            seen.flapped[kind] += 1
        else:
            seen.failures.append(f"{kind} after {now - begun:.2f} s: {failure}")
        await asyncio.sleep(PAUSE)


def configuration(port: int, ports: dict[str, int], number: int) -> str:
    """Return a configuration for these ports; each number gives a different file with the same meaning."""
    return f"""
fallback_udp = "{HOST}:{ports["udp"]}"
[server]
bind = "{HOST}"
port = {port}
workers = {WORKERS}
hot_reload = false
max_connections_per_ip = 5000
max_udp_sessions_per_ip = 5000
udp_session_timeout_ms = 1000
idle_timeout_ms = {3_600_000 - number}
[[protocols]]
name = "https"
sni = "{NAME}"
forward_to = "{HOST}:{ports["tls"]}"
[[protocols]]
name = "soak"
patterns = [{{ hex = "{MAGIC.hex()}" }}]
forward_to = ["{HOST}:{ports["tcp"]}", "{HOST}:{ports["flapping"]}"]
transport = "tcp"
"""


def sample(program: Running, begun: float) -> Sample:
    """Measure the supervisor and its present workers."""
    workers = children(program.pid)
    kib: dict[int, int] = {}
    descriptors = threads = 0
    for pid in (program.pid, *workers):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the worker is being replaced
            status = Path(f"/proc/{pid}/status").read_text()
            if "VmRSS:" not in status:  # the worker has been killed and not yet waited for
                continue
            kib[pid] = int(status.partition("VmRSS:")[2].split()[0])
            threads += int(status.partition("Threads:")[2].split()[0])
            descriptors += len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - only their number is wanted
    largest = max((kib[pid] for pid in workers if pid in kib), default=0)
    return Sample(time.monotonic() - begun, kib[program.pid], largest, descriptors, threads, len(kib))


async def reload_again_and_again(
    program: Running, path: Path, ports: dict[str, int], port: int, seen: Outcome
) -> None:
    while True:
        await asyncio.sleep(RELOAD_EVERY)
        seen.reloads += 1
        path.write_text(configuration(port, ports, seen.reloads))  # noqa: ASYNC240 - writes a few bytes
        program.signal(signal.SIGHUP)


async def kill_again_and_again(program: Running, seed: str, seen: Outcome) -> None:
    chance = random.Random(seed)  # noqa: S311 - test data
    while True:
        await asyncio.sleep(KILL_EVERY)
        if workers := children(program.pid):
            seen.kills.append(time.monotonic())
            os.kill(chance.choice(workers), signal.SIGKILL)


async def sample_again_and_again(program: Running, begun: float, every: float, seen: Outcome) -> None:
    while True:
        await asyncio.sleep(every)
        seen.samples.append(sample(program, begun))


@contextlib.asynccontextmanager
async def backends(flaps: list[float]) -> AsyncIterator[tuple[dict[str, int], ssl.SSLContext]]:
    """Run backends of all kinds; yield their ports and the certificate authority that a TLS client trusts."""
    authority = trustme.CA()
    serves, asks = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert(NAME).configure_cert(serves)
    authority.configure_trust(asks)
    loop = asyncio.get_running_loop()
    tcp = await asyncio.start_server(echo, HOST, 0)
    tls = await asyncio.start_server(echo, HOST, 0, ssl=serves)
    udp, _ = await loop.create_datagram_endpoint(EchoDatagrams, (HOST, 0))
    flapping = free_port()
    task = asyncio.create_task(listen_now_and_then(flapping, flaps))
    try:
        yield (
            {
                "tcp": tcp.sockets[0].getsockname()[1],
                "tls": tls.sockets[0].getsockname()[1],
                "udp": udp.get_extra_info("sockname")[1],
                "flapping": flapping,
            },
            asks,
        )
    finally:
        task.cancel()
        await asyncio.wait((task,))
        for server in (tcp, tls):
            server.close()
        udp.close()


async def soak(seconds: float, seed: str, folder: Path, sample_every: float = 60.0) -> Outcome:
    """Run the whole soak; the program logs into the file ``log`` of the folder."""
    seen = Outcome()
    async with backends(seen.flaps) as (ports, context):
        path, port = folder / "refractium.toml", free_port()
        path.write_text(configuration(port, ports, 0))
        asks: dict[str, Callable[[bytes], Awaitable[bytes]]] = {
            "tcp": lambda data: ask_tcp(port, data),
            "tls": lambda data: ask_tcp(port, data, context),
            "udp": lambda data: ask_udp(port, data),
        }
        with (
            (folder / "log").open("wb") as log,
            Running("-c", path, stderr=log.fileno()) as program,
        ):
            program.await_out(rf"Listening on udp://{HOST}:{port}")
            begun = time.monotonic()
            seen.samples.append(sample(program, begun))
            tasks = [
                *(
                    asyncio.create_task(client(kind, asks[kind], f"{seed} {kind} {number}", seen))
                    for kind, count in CLIENTS.items()
                    for number in range(count)
                ),
                asyncio.create_task(reload_again_and_again(program, path, ports, port, seen)),
                asyncio.create_task(kill_again_and_again(program, seed, seen)),
                asyncio.create_task(sample_again_and_again(program, begun, sample_every, seen)),
            ]
            done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            for task in done:
                task.result()  # a task ends by itself only with an error
            seen.samples.append(sample(program, begun))
            assert await asyncio.to_thread(program.terminate) == 0
    return seen


def told(log: Path) -> Counter[str]:
    """Return the lines of a log without the access log, times and numbers, and how often each occurs."""
    with log.open() as lines:
        rest = (line.split(maxsplit=1)[1] for line in lines if f" info {HOST}:" not in line)
        return Counter(re.sub(r"\d+", "N", line.rstrip()) for line in rest)


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=1_800)
    parser.add_argument("--seed", default=str(random.SystemRandom().randrange(1 << 32)))
    given = parser.parse_args()
    say(f"seed {given.seed}")
    with tempfile.TemporaryDirectory(prefix="refractium-soak-") as folder:
        seen = asyncio.run(soak(given.seconds, given.seed, Path(folder)))
        for line, count in told(Path(folder, "log")).most_common():
            say(f"{count:6} x {line}")
    say(f"answered {dict(seen.asked)}, {seen.reloads} reloads, {len(seen.kills)} workers killed")
    say(f"failed with a killed worker {dict(seen.excused)}, as a backend closed {dict(seen.flapped)}")
    say(f"failed otherwise {len(seen.failures)}")
    for failure in seen.failures:
        say(f"  {failure}")
    say("seconds  supervisor KiB  largest worker KiB  descriptors  threads  processes")
    for one in seen.samples:
        say("{:7.0f} {:15} {:19} {:12} {:8} {:10}".format(*one))
    return 1 if seen.failures else 0


if __name__ == "__main__":
    sys.exit(main())
