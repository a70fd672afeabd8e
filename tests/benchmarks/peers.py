"""Who is measured, on the same task: see peers/."""

from __future__ import annotations

import contextlib
import functools
import string
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from benchmarks import bare, streams
from benchmarks.clients import DNS_ADDRESS, DNS_NAME, reaches_dns, reaches_streams, reaches_web
from benchmarks.programs import Missing, Program, find_program, raise_descriptor_limit
from support.process import PROGRAM, free_port, is_listening

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OWN: Final = "refractium"
LOGGING: Final = "refractium-log"
"""Ourselves with an access log that is written to a file; the others write none."""
DIRECT: Final = "direct"
"""The backends without anybody before them: the limit."""

Ports: TypeAlias = Mapping[str, int]
"""Of ``http``, ``streams`` and ``dns``."""

_CONFIGURATIONS: Final = Path(__file__).with_name("peers")
_DESCRIPTORS: Final = 40_000
_NGINX_STREAM: Final = [
    Path(folder, "nginx/modules/ngx_stream_module.so") for folder in ("/usr/lib", "/usr/lib64")
]
_SELECT: Final = 1024
"""Descriptors that select(2) can take."""


_SPARE: Final = 500
"""Descriptors that a program needs besides two for each connection."""


def connections_with(descriptors: int) -> int:
    """How many connections a proxy can have open."""
    return (descriptors - _SPARE) // 2


class _Template(string.Template):
    delimiter = "@"


class Place:
    """Where programs are started from.

    Args:
        folder: for their files.

    Attributes:
        descriptors: how many each may have open.
        connections: how many they are enough for.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.descriptors = raise_descriptor_limit(_DESCRIPTORS)
        self.connections = connections_with(self.descriptors)

    def configure(self, name: str, port: int, ports: Ports | None = None, more: str = "") -> str:
        """Fill in one of the files of peers/, and add more text to it; where it lies then."""
        module = next((path for path in _NGINX_STREAM if path.exists()), None)
        values = {
            "port": port,
            "folder": self.folder,
            "descriptors": self.descriptors,
            "connections": self.connections,
            "load_stream": f"load_module {module};" if module else "",
            **(ports or {}),
        }
        path = self.folder / f"{port}-{name}"
        path.write_text(_Template((_CONFIGURATIONS / name).read_text()).substitute(values) + more)
        return str(path)


@contextlib.contextmanager
def running_backends(place: Place) -> Iterator[Ports]:
    """What stands behind all proxies.

    Raises:
        Missing: there is no nginx or no dnsmasq.
    """
    ports = {name: free_port() for name in ("http", "streams", "dns")}
    nginx = [find_program("nginx"), "-e", "stderr", "-c", place.configure("backend.conf", ports["http"])]
    dnsmasq = [
        *(find_program("dnsmasq"), "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file"),
        *("--log-facility=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces"),
        *("--listen-address=127.0.0.1", f"--port={ports['dns']}", f"--address=/{DNS_NAME}/{DNS_ADDRESS}"),
    ]
    with (
        Program(nginx, lambda: is_listening(ports["http"])),
        Program(
            [sys.executable, streams.__file__, str(ports["streams"])], lambda: is_listening(ports["streams"])
        ),
        Program(dnsmasq, lambda: is_listening(ports["dns"])),
    ):
        yield ports


@dataclass(frozen=True)
class Running:
    """A proxy that runs.

    Attributes:
        ports: where its clients reach what is behind it.
        program: its processes; without a proxy there are none.
    """

    ports: Ports
    program: Program | None


@dataclass(frozen=True)
class Peer:
    """A proxy that may be installed.

    Attributes:
        name: the column of the figures.
        transport: ``tcp`` or ``udp``.
        programs: any of these will do.
        configuration: a file of peers/.
        arguments: of the command line, with ``{}`` for the path of the file.
        by_select: whether it can have no more than `_SELECT` descriptors.
    """

    name: str
    transport: str
    programs: tuple[str, ...]
    configuration: str
    arguments: tuple[str, ...]
    by_select: bool = False

    @contextlib.contextmanager
    def start(self, place: Place, backends: Ports, more: str = "") -> Iterator[Running]:
        """Run it on a port of its own, with more text at the end of its configuration.

        Raises:
            Missing: it is not installed, or does not serve as it should.
        """
        port = free_port()
        path = place.configure(self.configuration, port, backends, more)
        is_ready: Callable[[int], bool] = is_listening if self.transport == "tcp" else reaches_dns
        with Program(
            [find_program(*self.programs), *(part.format(path) for part in self.arguments)],
            lambda: is_ready(port),
        ) as program:
            running = Running(dict.fromkeys(backends, port), program)
            check(running, self.transport)
            yield running


PEERS: Final = (
    Peer(OWN, "tcp", (PROGRAM,), "refractium.toml", ("tcp", "-c", "{}")),
    Peer(LOGGING, "tcp", ("sh",), "refractium.toml", ("-c", f"exec {PROGRAM} tcp -c {{0}} 2>{{0}}.log")),
    Peer("bare", "tcp", (sys.executable,), "bare.json", (bare.__file__, "{}")),
    Peer("haproxy", "tcp", ("haproxy",), "haproxy.cfg", ("-db", "-q", "-f", "{}")),
    Peer("nginx", "tcp", ("nginx",), "nginx.conf", ("-e", "stderr", "-c", "{}")),
    Peer("sslh-ev", "tcp", ("sslh-ev",), "sslh.cfg", ("-F{}",)),
    Peer("sslh-select", "tcp", ("sslh-select",), "sslh.cfg", ("-F{}",), by_select=True),
    Peer(OWN, "udp", (PROGRAM,), "refractium.toml", ("udp", "-c", "{}")),
    Peer("nginx", "udp", ("nginx",), "nginx.conf", ("-e", "stderr", "-c", "{}")),
)


@dataclass(frozen=True)
class Subject:
    """Who work is done through.

    Attributes:
        name: the column of the figures.
        transport: ``tcp`` or ``udp``.
        running: ready to be used, and used before.
        start: runs another one, fresh; nobody can where there is no proxy.
        most_connections: how many it can have open.
    """

    name: str
    transport: str
    running: Running
    start: Callable[[], contextlib.AbstractContextManager[Running]] | None
    most_connections: int


@contextlib.contextmanager
def running_subjects(place: Place, backends: Ports, note: Callable[[str], object]) -> Iterator[list[Subject]]:
    """All peers that are installed, and nobody.

    Args:
        place: where they are started from.
        backends: what is behind them.
        note: told who is left out, and why.
    """
    with ExitStack() as stack:
        subjects = []
        for transport in ("tcp", "udp"):
            subjects.append(Subject(DIRECT, transport, Running(backends, None), None, place.connections))
            for peer in PEERS:
                if peer.transport != transport:
                    continue
                start = functools.partial(peer.start, place, backends)
                try:
                    running = stack.enter_context(start())
                except Missing as reason:
                    note(f"{peer.name} ({transport}) is left out: {reason}")
                    continue
                most = (
                    min(place.connections, connections_with(_SELECT)) if peer.by_select else place.connections
                )
                subjects.append(Subject(peer.name, transport, running, start, most))
        yield subjects


def check(running: Running, transport: str) -> None:
    """Make sure that real requests reach the backends that they should.

    Raises:
        Missing: one does not.
    """
    reaches = (
        {"http": reaches_web, "streams": reaches_streams} if transport == "tcp" else {"dns": reaches_dns}
    )
    for name, reach in reaches.items():
        # More than once: sslh-select takes the first for the one that has just asked whether it listens.
        if not any(reach(running.ports[name]) for _ in range(3)):
            raise Missing(f"a request does not reach the backend {name}")
