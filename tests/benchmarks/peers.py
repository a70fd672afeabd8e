"""The measured proxies, which all have the same task, see peers/."""

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
"""Refractium with an access log in a file; the other proxies write no access log."""
DIRECT: Final = "direct"
"""The backends without a proxy: the limit for all proxies."""

Ports: TypeAlias = Mapping[str, int]
"""The ports of ``http``, ``streams`` and ``dns``."""

_CONFIGURATIONS: Final = Path(__file__).with_name("peers")
_DESCRIPTORS: Final = 40_000
_NGINX_STREAM: Final = [
    Path(folder, "nginx/modules/ngx_stream_module.so") for folder in ("/usr/lib", "/usr/lib64")
]
_SELECT: Final = 1024
"""Descriptors that select(2) can take."""


_SPARE: Final = 500
"""Descriptors that a program needs in addition to two for each connection."""


def connections_with(descriptors: int) -> int:
    """Return the number of connections for which `descriptors` of a proxy are enough."""
    return (descriptors - _SPARE) // 2


class _Template(string.Template):
    delimiter = "@"


class Place:
    """The folder and the limits of the started programs.

    Args:
        folder: the folder for the files of programs.

    Attributes:
        folder: the folder for the files of programs.
        descriptors: the number of descriptors that each program may have open.
        connections: the number of connections for which these descriptors are enough.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.descriptors = raise_descriptor_limit(_DESCRIPTORS)
        self.connections = connections_with(self.descriptors)

    def configure(self, name: str, port: int, ports: Ports | None = None, more: str = "") -> str:
        """Fill in a file of peers/, add more text to it, and return the path of the new file."""
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
    """Run the backends of all proxies, and yield their ports.

    Raises:
        Missing: nginx or dnsmasq is not installed, or a backend does not serve.
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
    """A running proxy, or the backends without a proxy.

    Attributes:
        ports: the ports at which clients reach the backends.
        program: the processes of the proxy; None without a proxy.
    """

    ports: Ports
    program: Program | None


@dataclass(frozen=True)
class Peer:
    """A proxy that may be installed.

    Attributes:
        name: the name of the column with its figures.
        transport: ``tcp`` or ``udp``.
        programs: names of programs, of which the first one that is installed runs.
        configuration: the name of a file in peers/.
        arguments: the arguments of the command line, with ``{}`` for the path of the file.
        by_select: whether it uses select(2), and so at most `_SELECT` descriptors.
    """

    name: str
    transport: str
    programs: tuple[str, ...]
    configuration: str
    arguments: tuple[str, ...]
    by_select: bool = False

    @contextlib.contextmanager
    def start(self, place: Place, backends: Ports, more: str = "") -> Iterator[Running]:
        """Run the proxy on a free port, with more text at the end of its configuration.

        Raises:
            Missing: it is not installed, does not serve, or requests do not reach the right backends.
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
    """A proxy that is measured, or the backends without a proxy.

    Attributes:
        name: the name of the column with its figures.
        transport: ``tcp`` or ``udp``.
        running: the running proxy, which has served requests before.
        start: a function that runs a fresh proxy; None without a proxy.
        most_connections: the largest number of connections that it can have open.
    """

    name: str
    transport: str
    running: Running
    start: Callable[[], contextlib.AbstractContextManager[Running]] | None
    most_connections: int


@contextlib.contextmanager
def running_subjects(place: Place, backends: Ports, note: Callable[[str], object]) -> Iterator[list[Subject]]:
    """Run all installed peers, and yield them together with the backends without a proxy.

    Args:
        place: the folder and the limits of the started programs.
        backends: the ports of the backends.
        note: called with the name of each peer that is left out, and the reason.
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
    """Check that real requests reach the right backends.

    Raises:
        Missing: a request does not reach its backend.
    """
    reaches = (
        {"http": reaches_web, "streams": reaches_streams} if transport == "tcp" else {"dns": reaches_dns}
    )
    for name, reach in reaches.items():
        # Up to three times: sslh-select mixes up the first connection with the earlier check that it listens.
        if not any(reach(running.ports[name]) for _ in range(3)):
            raise Missing(f"a request does not reach the backend {name}")
