"""``status``: show the state of a running instance."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import rich_click as click

from refractium import terminal
from refractium.assembly.sources import file_of, overlay, read_file
from refractium.cli.options import Flags
from refractium.config import Source, decode
from refractium.errors import ConfigError, RefractiumError
from refractium.observe import control
from refractium.problems import Problem
from refractium.wire.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from refractium.assembly.sources import Overrides
    from refractium.config.decode import Decoded
    from refractium.observe.status import (
        HookStatus,
        PluginStatus,
        RouteStatus,
        RouteTraffic,
        Status,
        WorkerStatus,
    )


@click.command("status")
@click.option(
    "-p",
    "--port",
    type=click.IntRange(0, 65535),
    metavar="N",
    help="The port that the instance listens on.",
)
@click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="The configuration file of the instance.",
)
@click.option(
    "--control",
    "socket",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="The control socket of the instance.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(context: click.Context, /, *, socket: Path | None, as_json: bool, **_given: Any) -> None:
    """Show the state of a running instance: listeners, routes, backends, counts, the last reload.

    Without options and without refractium.toml, asks the only instance that runs. Exits 1 if no instance
    answers.
    """
    answer = control.ask([socket]) if socket is not None else _ask(Flags.of(context).overrides)
    if as_json:
        click.echo(msgspec.json.format(answer, indent=2).decode())
    else:
        _show(control.decode(answer))


def _ask(over: Overrides) -> bytes:
    """Return the status of the instance that flags and file select, as JSON.

    Raises:
        RefractiumError: no such instance answers this user, or several instances answer.
    """
    paths = _paths(over)
    file = over.file or file_of(over)
    if not paths:
        return control.ask_the_only_one(file)
    try:
        return control.ask(paths)
    except RefractiumError:
        if file is None or "port" in over.server:
            raise
        # The instance has refused this file, or has not applied it yet.
        with suppress(RefractiumError):
            answer = control.ask_the_only_one(file)
            _warn(f"{file} is not in force: the running instance keeps its former configuration")
            return answer
        raise


def _paths(over: Overrides) -> list[Path]:
    """Return the paths at which an instance with these flags may have its control socket.

    The result is empty if neither the flags nor the file tell the path. An instance keeps its old
    configuration while its file is broken, so a broken file does not tell the port of the instance.
    """
    decoded = _decoded(over)
    overlaid = overlay(decoded, over)
    if overlaid.server.control is not None:
        return [Path(overlaid.server.control)]
    port: int | None = over.server.get("port")
    if port == 0:
        raise ConfigError([Problem("port 0 stands for any free port: give the actual port with -p")])
    if port is None and file_of(over) is not None and not decoded.problems:
        port = overlaid.listeners[0][1].port
    return [folder / control.file_name(port) for folder in control.folders()] if port else []


def _decoded(over: Overrides) -> Decoded:
    """Return the decoded configuration file, and print the mistakes in the file."""
    try:
        decoded = read_file(over)
    except ConfigError as error:
        decoded = replace(decode(Source("", "")), problems=error.problems)
    for problem in decoded.problems:
        _warn(str(problem))
    if decoded.problems:
        state = "broken" if file_of(over) is not None else "missing"
        _warn(f"the file is {state}: the running instance keeps its former configuration")
    return decoded


def _warn(text: str) -> None:
    click.echo(f"{click.style('warning:', fg='yellow', bold=True)} {printable(text)}", err=True)


def _show(status: Status) -> None:
    out = terminal.console()
    began = _time(status.started)
    out.print(f"refractium {status.version}, process {status.pid}, since {began}", style="bold")
    out.print(f"configuration {status.generation}{_last_reload(status)}")
    terminal.table(
        "\nListeners",
        ("transport", "address", "routes", ""),
        [
            (one.transport.value, one.address, ", ".join(one.routes), one.paused and f"paused: {one.paused}")
            for one in status.listeners
        ],
    )
    columns = ["route", "transport", "when", "backend", "state", "since", "active", "", "why"]
    terminal.table("\nRoutes", columns, [row for route in status.routes for row in _backends(route)])
    if status.workers:
        columns = ["worker", "pid", "since", "restarts", "active"]
        terminal.table("\nWorkers", columns, [_worker(one) for one in status.workers])
    columns = ["route", "transport", "active", "ended", "bytes up", "bytes down", "how they ended"]
    traffic = [(route, "tcp") for route in status.tcp.routes] + [
        (route, "udp") for route in status.udp.routes
    ]
    terminal.table("\nConnections and sessions", columns, [_traffic(*one) for one in traffic])
    terminal.table("\nCounts", ("", "tcp", "udp"), _counts(status))
    if status.plugins:
        columns = ["plugin", "version", "of", "provides", "faults", "restart"]
        terminal.table("\nPlugins", columns, [_plugin(one) for one in status.plugins])
    if status.hooks:
        columns = ["hook", "state", "seen", "delivered", "dropped", "bytes dropped", "exceptions", "why"]
        terminal.table("\nHooks", columns, [_hook(one) for one in status.hooks])


def _worker(worker: WorkerStatus) -> tuple[str, ...]:
    counts = str(worker.restarts), str(worker.active)
    if worker.pid is None or worker.since is None:
        return str(worker.number), "(starting)", "", *counts
    return str(worker.number), str(worker.pid), _time(worker.since), *counts


def _plugin(plugin: PluginStatus) -> tuple[str, ...]:
    needs = f"needed for {plugin.installed}" if plugin.installed != plugin.version else ""
    provided = ", ".join(plugin.provides)
    return plugin.id, plugin.version, plugin.distribution, provided, str(plugin.faults), needs


def _hook(hook: HookStatus) -> tuple[str, ...]:
    sums = [
        str(getattr(hook.inbound, key) + getattr(hook.outbound, key))
        for key in ("seen", "delivered", "dropped", "dropped_bytes")
    ]
    return hook.name, hook.state, *sums, str(hook.failures), hook.reason


def _last_reload(status: Status) -> str:
    last = status.last_reload
    if last is None:
        return ""
    errors = "".join(f"\n  {error}" for error in last.errors)
    return f", last reload {_time(last.at)}: {'ok' if last.ok else 'failed'}{errors}"


def _backends(route: RouteStatus) -> Iterator[tuple[str, ...]]:
    when = ", ".join(f"{key} {' or '.join(names)}" for key, names in route.conditions.items())
    if route.action:
        yield route.name, route.transport.value, when, f"({route.action})", "", "", "", "", ""
    for backend in route.backends:
        part = [f"weight {backend.weight}"] if backend.weight != 1 else []
        part += ["backup"] if backend.backup else []
        yield (
            route.name,
            route.transport.value,
            when,
            backend.address,
            backend.state,
            _time(backend.since),
            str(backend.active),
            ", ".join(part),
            backend.reason,
        )


def _traffic(route: RouteTraffic, transport: str) -> tuple[str, ...]:
    how = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in route.ended.items())
    ended = str(sum(route.ended.values()))
    return route.name, transport, str(route.active), ended, str(route.bytes_up), str(route.bytes_down), how


def _counts(status: Status) -> Iterator[tuple[str, str, str]]:
    tcp, udp = status.tcp, status.udp
    yield "accepted, or sessions begun", str(tcp.accepted), str(udp.sessions)
    yield "active", str(tcp.active), str(udp.active)
    yield "finished", str(tcp.finished), str(udp.finished)
    for reason in dict.fromkeys((*tcp.refused, *udp.refused)):
        yield f"refused: {reason}", str(tcp.refused.get(reason, 0)), str(udp.refused.get(reason, 0))
    yield "targets that were this proxy itself", str(tcp.loops), ""
    for outcome in dict.fromkeys((*tcp.outcomes, *udp.outcomes)):
        name = f"identification: {outcome.replace('_', ' ')}"
        yield name, str(tcp.outcomes.get(outcome, 0)), str(udp.outcomes.get(outcome, 0))
    for protocol in dict.fromkeys((*tcp.faults, *udp.faults)):
        yield f"faults of {protocol}", str(tcp.faults.get(protocol, 0)), str(udp.faults.get(protocol, 0))
    yield "datagrams without a route", "", str(udp.unrouted)
    yield "datagrams dropped", "", str(udp.dropped)


def _time(at: datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M:%S UTC")
