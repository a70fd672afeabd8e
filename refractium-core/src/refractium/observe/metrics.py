"""Metrics for Prometheus, made from the status of the engine at each scrape.

A separate thread serves the metrics, so a slow scraper delays no client. ``docs/reference/metrics.md`` lists
all metrics. The value of a label never comes from the wire.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import threading
import time
from contextlib import suppress
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.registry import Collector

from refractium.addresses.address import is_ip_address, join_host_port
from refractium.contract import Transport
from refractium.errors import ListenError
from refractium.proxy.counters import DENIED
from refractium.proxy.limiter import NAMES
from refractium.sockets import names

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from prometheus_client.metrics_core import Metric

    from refractium.contract import SocketAddress
    from refractium.observe.status import (
        HookStatus,
        RouteStatus,
        Status,
        TcpStatus,
        UdpStatus,
        WorkerStatus,
    )

log = logging.getLogger("refractium")

_PATIENCE: Final = 5.0
"""Seconds that a scrape may take, and for which the exporter waits for the status. After this time, the
scrape fails."""
_MOST: Final = 16
"""Largest number of scrapers served at the same time. A further scraper replaces the oldest scraper, because
a scrape normally takes milliseconds."""
_PAUSE: Final = 0.1
"""Seconds until the next accept after a failed accept, for example because no descriptor is left."""
_PATH: Final = "/metrics"


class Exporter:
    """An HTTP server that serves metrics at one address until it is closed.

    Args:
        host: the address, without brackets.
        port: the port; 0 stands for any free port.
        status: the function that returns the status. It runs in the same event loop as `open`.
        hosts: further names of this machine that scrapers may send in the Host header. IP addresses, the
            machine's host name and ``localhost`` are always allowed.

    Attributes:
        address: the address of the server, ``HOST:PORT``.
        hosts: further names that scrapers may send in the Host header; a reload may change these names.
    """

    def __init__(
        self, host: str, port: int, status: Callable[[], Awaitable[Status]], hosts: Sequence[str] = ()
    ) -> None:
        self._host = host
        self._port = port
        self._status = status
        self.hosts = hosts
        self.address = join_host_port(host, port)

    async def open(self, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Listen and serve.

        Args:
            timeout: the time that a name server may take (s); by default the time in resolv.conf(5).

        Raises:
            ListenError: the server cannot listen on the address.
        """
        registry = CollectorRegistry()
        registry.register(_FromStatus(self._status, asyncio.get_running_loop()))
        try:
            found = await names.addresses(self._host, f"metrics on {self.address}", timeout)
            self._server = _Server(found[0], self._port)
        except OSError as error:
            raise ListenError(self.address, error.strerror or str(error), error.errno or 0) from error
        self._server.set_app(self._only_metrics(make_wsgi_app(registry)))
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()
        self.address = join_host_port(self._host, self._server.server_port)

    async def close(self) -> None:
        """Stop listening and serving."""
        await asyncio.to_thread(self._end)

    def _only_metrics(self, metrics: WSGIApplication) -> WSGIApplication:
        """Return an application that answers on one path, and only if the Host header names this machine.

        This prevents DNS rebinding. Even if an attacker lets the host name of a web page resolve to this
        address, the browser sends the host name of the page.
        """

        def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            if not self._is_called_by(environ.get("HTTP_HOST", "")):
                return _refuse(start_response, "403 Forbidden", "unknown Host: name it in [metrics] hosts\n")
            if environ["PATH_INFO"] != _PATH:
                return _refuse(start_response, "404 Not Found", f"metrics are at {_PATH}\n")
            return metrics(environ, start_response)

        return application

    def _is_called_by(self, host: str) -> bool:
        name = host.lower()
        if name.startswith("["):
            name = name.partition("]")[0].removeprefix("[")
        elif name.count(":") == 1:
            name = name.partition(":")[0]
        own = ("", "localhost", self._host.lower(), socket.gethostname().lower())
        return name in own or name in self.hosts or is_ip_address(name)

    def _end(self) -> None:
        with suppress(OSError):
            # Wake the server's thread, which by itself checks only twice a second whether to end.
            self._server.socket.shutdown(socket.SHUT_RDWR)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(WSGIRequestHandler):
    timeout = _PATIENCE

    def log_message(self, *_: object) -> None:
        """Log nothing, because scrapes come every few seconds."""


class _Server(ThreadingMixIn, WSGIServer):
    """A server with a thread for each scraper, so that a slow scraper delays no other scraper."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, found: SocketAddress, port: int) -> None:
        self._open: dict[socket.socket, float] = {}
        """The sockets of scrapers, each with the monotonic time (s) of its accept; the oldest comes first."""
        self._lock = threading.Lock()
        self.address_family, address = found
        super().__init__((str(address[0]), port), _Handler)

    def server_bind(self) -> None:
        """Bind like `WSGIServer.server_bind`, but without a lookup of the host name of the address."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a scraper. After an error, pause: if no descriptor is free, the next accept would fail."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(_PAUSE)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a scraper in its own thread. If there are `_MOST` scrapers, first cut off the oldest."""
        with self._lock:
            if len(self._open) >= _MOST:
                self._cut_off(next(iter(self._open)))
            self._open[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Cut off scrapers that have taken too long. The server calls this method twice a second."""
        due = time.monotonic() - _PATIENCE
        with self._lock:
            for request in [one for one, begun in self._open.items() if begun <= due]:
                self._cut_off(request)

    def _cut_off(self, request: socket.socket) -> None:
        """Shut down the connection of a scraper, so that the scraper's thread ends and closes the socket."""
        del self._open[request]
        with suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, _request: object, client_address: Any) -> None:
        """Log a failed scrape at level DEBUG only: often, the scraper has left or stayed silent."""
        error = sys.exception()
        scraper = join_host_port(*client_address[:2])
        log.debug("scrape of metrics by %s failed: %s: %s", scraper, type(error).__name__, error)


class _FromStatus(Collector):
    def __init__(self, status: Callable[[], Awaitable[Status]], loop: asyncio.AbstractEventLoop) -> None:
        self._status = status
        self._loop = loop

    def collect(self) -> Iterator[Metric]:
        return families(self._ask())

    def _ask(self) -> Status:
        """Return the status at a moment between two events of the event loop, when all counts agree."""

        async def tell() -> Status:
            return await self._status()

        return asyncio.run_coroutine_threadsafe(tell(), self._loop).result(_PATIENCE)


def _refuse(start_response: StartResponse, http_status: str, text: str) -> Iterable[bytes]:
    start_response(http_status, [("Content-Type", "text/plain; charset=utf-8")])
    return [text.encode()]


def families(status: Status) -> Iterator[Metric]:
    """Yield all metrics of a status."""
    build = InfoMetricFamily("refractium_build", "The version of the program.")
    build.add_metric([], {"version": status.version})
    yield build
    yield GaugeMetricFamily(
        "refractium_start_time_seconds", "The time of the start.", status.started.timestamp()
    )
    yield GaugeMetricFamily(
        "refractium_config_generation",
        "The number of configurations that have been in force.",
        status.generation,
    )
    reloads = CounterMetricFamily("refractium_reloads", "Reloads, by their result.", labels=["result"])
    reloads.add_metric(["ok"], status.generation - 1)
    reloads.add_metric(["failed"], status.reloads_failed)
    yield reloads
    last_ok = status.last_reload is None or status.last_reload.ok
    yield GaugeMetricFamily(
        "refractium_config_last_reload_successful", "Whether the last reload succeeded.", int(last_ok)
    )
    yield from _traffic(status)
    yield from _identification(status.tcp, status.udp)
    yield from _faults(status)
    yield from _datagrams(status.udp)
    yield from _backends(status.routes)
    yield from _hooks(status.hooks)
    yield from _workers(status.workers)


def _traffic(status: Status) -> Iterator[Metric]:
    accepted = CounterMetricFamily(
        "refractium_accepted", "Connections accepted and UDP sessions begun.", labels=["transport"]
    )
    accepted.add_metric(["tcp"], status.tcp.accepted)
    accepted.add_metric(["udp"], status.udp.sessions)
    yield accepted
    refusals = CounterMetricFamily(
        "refractium_refusals",
        "Clients kept out by a limit or a rule, and targets not dialled because of a loop.",
        labels=["transport", "reason"],
    )
    for whose, refused in ((Transport.TCP, status.tcp.refused), (Transport.UDP, status.udp.refused)):
        for reason in dict.fromkeys((*NAMES[whose], DENIED, *refused)):
            refusals.add_metric([whose, reason], refused.get(reason, 0))
    refusals.add_metric(["tcp", "loop"], status.tcp.loops)
    yield refusals
    by_route = ["transport", "route"]
    ended = CounterMetricFamily(
        "refractium_connections", "Connections and UDP sessions that have ended.", labels=[*by_route, "ended"]
    )
    active = GaugeMetricFamily(
        "refractium_connections_active", "Connections and UDP sessions open now.", labels=by_route
    )
    moved = CounterMetricFamily(
        "refractium_bytes",
        "Bytes passed on, up to backends and down to clients.",
        labels=[*by_route, "direction"],
    )
    for transport, routes in (("tcp", status.tcp.routes), ("udp", status.udp.routes)):
        for route in routes:
            for how, count in route.ended.items():
                ended.add_metric([transport, route.name, how], count)
            active.add_metric([transport, route.name], route.active)
            moved.add_metric([transport, route.name, "up"], route.bytes_up)
            moved.add_metric([transport, route.name, "down"], route.bytes_down)
    yield from (ended, active, moved)


def _identification(tcp: TcpStatus, udp: UdpStatus) -> Iterator[Metric]:
    outcomes = CounterMetricFamily(
        "refractium_identifications", "Identifications, by their result.", labels=["transport", "result"]
    )
    for transport, found in (("tcp", tcp.outcomes), ("udp", udp.outcomes)):
        for outcome, count in found.items():
            outcomes.add_metric([transport, outcome], count)
    yield outcomes
    buckets = [(str(bound), float(count)) for bound, count in tcp.identification_buckets]
    yield HistogramMetricFamily(
        "refractium_identification_seconds",
        "The time from accept to the result of identification.",
        buckets=[*buckets, ("+Inf", sum(tcp.outcomes.values()))],
        sum_value=tcp.identification_seconds,
    )


def _faults(status: Status) -> Iterator[Metric]:
    plugins = {provided: plugin.id for plugin in status.plugins for provided in plugin.provides}
    faults = CounterMetricFamily(
        "refractium_identification_faults",
        "Exceptions of a protocol that raised instead of answering.",
        labels=["transport", "protocol"],
    )
    of_plugins = CounterMetricFamily(
        "refractium_plugin_faults",
        "Exceptions and invalid results of the protocols, balancers and health checks of plugins.",
        labels=["transport", "plugin", "kind", "name"],
    )
    for transport, found in (("tcp", status.tcp.faults), ("udp", status.udp.faults)):
        for what, count in found.items():
            kind, _, name = what.rpartition(" ")
            plugin = plugins.get(f"{kind or 'protocol'} {name}", "-")
            of_plugins.add_metric([transport, plugin, kind or "protocol", name], count)
            if not kind:
                faults.add_metric([transport, name], count)
    yield faults
    yield of_plugins


def _datagrams(udp: UdpStatus) -> Iterator[Metric]:
    yield CounterMetricFamily("refractium_udp_unrouted", "Datagrams without a route.", udp.unrouted)
    yield CounterMetricFamily("refractium_udp_dropped", "Datagrams that were not passed on.", udp.dropped)


def _hooks(hooks: tuple[HookStatus, ...]) -> Iterator[Metric]:
    """Yield metrics with one sample for each hook name. A count is the sum over all uses of the hook."""
    packets = CounterMetricFamily(
        "refractium_hook_packets",
        "Packets of sessions that have hooks, by their result: seen, delivered or dropped.",
        labels=["hook", "direction", "result"],
    )
    moved = CounterMetricFamily(
        "refractium_hook_bytes",
        "Bytes of packets of sessions that have hooks, by their result.",
        labels=["hook", "direction", "result"],
    )
    failures = CounterMetricFamily(
        "refractium_hook_failures", "Exceptions that a hook has raised.", labels=["hook"]
    )
    detached = GaugeMetricFamily(
        "refractium_hook_detached", "Whether a hook is detached and gets no more events.", labels=["hook"]
    )
    stalled = GaugeMetricFamily(
        "refractium_hook_stalled",
        "Whether a hook takes none of the packets that wait for it.",
        labels=["hook"],
    )
    for name in dict.fromkeys(one.name for one in hooks):
        same = [one for one in hooks if one.name == name]
        for direction in ("inbound", "outbound"):
            tallies = [getattr(one, direction) for one in same]
            for result in ("seen", "delivered", "dropped"):
                key = [name, direction, result]
                packets.add_metric(key, sum(getattr(one, result) for one in tallies))
                moved.add_metric(key, sum(getattr(one, f"{result}_bytes") for one in tallies))
        failures.add_metric([name], sum(one.failures for one in same))
        detached.add_metric([name], int(any(one.state == "detached" for one in same)))
        stalled.add_metric([name], int(any(one.state == "stalled" for one in same)))
    yield from (packets, moved, failures, detached, stalled)


def _backends(routes: tuple[RouteStatus, ...]) -> Iterator[Metric]:
    """Yield metrics with one sample for each backend address.

    If routes with different health checks disagree about an address, the address counts as down.
    """
    labels = ["transport", "backend"]
    up = GaugeMetricFamily("refractium_backend_up", "Whether the backend gets clients.", labels=labels)
    active = GaugeMetricFamily(
        "refractium_backend_active", "Connections and UDP sessions that the backend has now.", labels=labels
    )
    since = GaugeMetricFamily(
        "refractium_backend_state_change_timestamp_seconds",
        "The time when the backend went up or down.",
        labels=labels,
    )
    found = {}
    for route in routes:
        for backend in route.backends:
            key = (str(route.transport), backend.address)
            if key not in found or backend.state == "down":
                found[key] = backend
    for key, backend in found.items():
        up.add_metric(key, int(backend.state != "down"))
        active.add_metric(key, backend.active)
        since.add_metric(key, backend.since.timestamp())
    yield from (up, active, since)


def _workers(workers: tuple[WorkerStatus, ...]) -> Iterator[Metric]:
    up = GaugeMetricFamily(
        "refractium_worker_up", "Whether the process of the worker exists.", labels=["worker"]
    )
    active = GaugeMetricFamily(
        "refractium_worker_active", "Connections and UDP sessions that the worker has now.", labels=["worker"]
    )
    restarts = CounterMetricFamily(
        "refractium_worker_restarts", "The number of replacements of the worker.", labels=["worker"]
    )
    for one in workers:
        label = [str(one.number)]
        up.add_metric(label, int(one.pid is not None))
        active.add_metric(label, one.active)
        restarts.add_metric(label, one.restarts)
    if workers:
        yield from (up, active, restarts)
