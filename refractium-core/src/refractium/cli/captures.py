"""The flows of a capture for ``identify --pcap``, and their output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from refractium import terminal
from refractium.addresses.address import join_host_port
from refractium.contract import Transport
from refractium.errors import ConfigError
from refractium.problems import Problem
from refractium.wire.text import escape

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from refractium.assembly.examine import Destination, Examiner, Report
    from refractium_hooks_pcap.flows import Flow, Flows

_INSTALL = "reading captures needs the package refractium-hooks-pcap: pip install 'refractium-core[pcap]'"


class Examined(NamedTuple):
    """A flow of a capture, its report, and what the capture tells about the flow.

    Attributes:
        client: the address and port of the client.
        server: the address and port of the server.
        transport: the transport of the flow.
        report: the report; None if the beginning of the flow is not in the capture.
        notes: sentences about the flow.
    """

    client: str
    server: str
    transport: Transport
    report: Report | None
    notes: tuple[str, ...]


def flows_in(path: Path) -> Flows:
    """Return the flows of a capture.

    Raises:
        ConfigError: the package that reads captures is missing, or the file is no capture.
    """
    try:
        from refractium_hooks_pcap.flows import read_flows  # noqa: PLC0415 - an extra
        from refractium_hooks_pcap.reader import NotACaptureError  # noqa: PLC0415 - an extra
    except ImportError:
        raise ConfigError([Problem(_INSTALL, where="--pcap")]) from None
    try:
        with path.open("rb") as file:
            return read_flows(file)
    except (OSError, NotACaptureError) as error:
        message = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ConfigError([Problem(message, where=f"--pcap {path}")]) from None


def examined(flow: Flow, examiner: Examiner, client: str | None, listener: str | None) -> Examined:
    """Return the report about a flow.

    Args:
        flow: the flow.
        examiner: the configuration.
        client: the client's IP address instead of the address in the capture.
        listener: the listener; None for the only listener with the port of the server or, without such a
            listener, the first listener.
    """
    report = None
    if flow.has_beginning:
        name = listener or _listener(examiner, flow)
        report = examiner.examine(
            flow.transport, flow.data, client or flow.client[0], name, has_ended=flow.has_ended
        )
    return Examined(
        join_host_port(*flow.client),
        join_host_port(*flow.server),
        flow.transport,
        report,
        tuple(_notes(flow, report)),
    )


def _listener(examiner: Examiner, flow: Flow) -> str | None:
    port = f":{flow.server[1]}"
    fitting = [name for name in examiner.listeners(flow.transport) if name.endswith(port)]
    return fitting[0] if len(fitting) == 1 else None


def _notes(flow: Flow, report: Report | None) -> Iterator[str]:
    if not flow.has_beginning:
        yield "the beginning of the flow is not in the capture"
        return
    if flow.has_gap:
        yield "bytes are missing in the capture after these bytes"
    if flow.server_first:
        yield "the server spoke first: a client that waits for the server is silent at the peek timeout"
    if flow.transport is Transport.TCP and flow.first_at is not None and report is not None:
        late_ms = (flow.first_at - flow.started) // 1_000_000
        if report.peek_timeout_ms is not None and late_ms >= report.peek_timeout_ms:
            yield f"the client is silent at the peek timeout: its first byte comes {late_ms} ms after the SYN"


def as_dict(one: Examined) -> dict[str, Any]:
    """Return an examined flow for JSON."""
    return one._asdict()


def print_table(flows: list[Examined], skipped: int) -> None:
    """Print one row for each flow, and the number of packets that belong to no flow."""
    columns = ("client", "server", "transport", "protocol", "metadata", "bytes needed", "route", "goes to")
    terminal.table(None, columns, map(_row, flows))
    if skipped:
        terminal.heading(f"{skipped} packets are neither TCP nor UDP, or cannot be read")


def _row(one: Examined) -> tuple[str, ...]:
    report = one.report
    if report is None:
        return one.client, one.server, one.transport, "unknown", "", "", "", "; ".join(one.notes)
    needed = "" if report.bytes_needed is None else str(report.bytes_needed)
    if report.needs_more:
        needed = f"at least {needed}"
    found = report.result or report.result_at_timeout
    route, to = ("", "") if found is None else _goal(found)
    return (
        one.client,
        one.server,
        one.transport,
        report.protocol or ("silent" if not report.bytes and one.transport is Transport.TCP else "-"),
        " ".join(f"{key}={escape(value)}" for key, value in report.metadata.items()),
        needed,
        route,
        "; ".join(filter(None, (to, *one.notes))),
    )


def _goal(found: Destination) -> tuple[str, str]:
    return found.route or "none", found.refused or ", ".join(found.forward_to)
