"""``identify``: name the protocol of some bytes, and say where a client with these bytes goes, and why."""

from __future__ import annotations

import sys
from ipaddress import ip_address
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import msgspec
import rich_click as click

from refractium import terminal
from refractium.assembly.examine import Examiner
from refractium.assembly.sources import read_file
from refractium.cli.captures import as_dict, examined, flows_in, print_table
from refractium.cli.options import Flags
from refractium.contract import MAX_BYTES_LIMIT, MetadataValue, Transport
from refractium.errors import ConfigError
from refractium.kit.options import config_option
from refractium.problems import Problem
from refractium.routing.explain import Result
from refractium.wire.proxy_protocol import MAX_BYTES as MAX_HEADER
from refractium.wire.text import escape, hex_bytes, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from refractium.assembly.examine import Destination, GivenAnswer, GivenCondition, GivenRoute, Report


@click.command("identify")
@click.argument("file", type=click.File("rb"), required=False)
@click.option("--hex", "hex_", metavar="HEX", help="The bytes as hex digits, instead of a file.")
@click.option(
    "--pcap",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="A capture (pcapng or pcap), instead of bytes: examine the beginning of each flow.",
)
@click.option("--udp", is_flag=True, help="The bytes are one UDP datagram.")
@click.option("--explain", is_flag=True, help="Print the answer of each protocol, and why each route lost.")
@config_option()
@click.option("--listener", metavar="HOST:PORT", help="Listener of the client.  [the first listener]")
@click.option("--client", metavar="IP", help="IP address of the client.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, which contains everything.")
@click.pass_context
def command(
    context: click.Context,
    /,
    *,
    file: IO[bytes] | None,
    hex_: str | None,
    pcap: Path | None,
    udp: bool,
    explain: bool,
    listener: str | None,
    client: str | None,
    as_json: bool,
    **_given: Any,
) -> None:
    """Print the protocol of the first bytes in FILE (by default stdin), and where such a client goes.

    With a configuration file, Refractium shows the route and the backends of a client that sends these bytes.
    Without routes, Refractium asks all installed protocols.
    """
    overrides = Flags.of(context).overrides
    transport = Transport.UDP if udp else Transport.TCP
    address = _address(client)
    if sum(one is not None for one in (file, hex_, pcap)) > 1 or (pcap and udp):
        message = "give only one of FILE, --hex and --pcap; --udp is for bytes only"
        raise ConfigError([Problem(message, where="identify")])
    data = b"" if pcap else _bytes(file, hex_)
    examiner = Examiner(read_file(overrides), overrides)
    if pcap is not None:
        _examine_capture(pcap, examiner, address, listener, explain=explain, as_json=as_json)
        return
    if listener is not None:
        examiner.refuse_unknown(listener, transport)
    report = examiner.examine(transport, data, address, listener)
    if as_json:
        _print_json(report)
    else:
        _print(report, explain=explain)


def _examine_capture(
    path: Path, examiner: Examiner, client: str | None, listener: str | None, *, explain: bool, as_json: bool
) -> None:
    found = flows_in(path)
    if listener is not None:
        for transport in {flow.transport for flow in found.flows}:
            examiner.refuse_unknown(listener, transport)
    flows = [examined(flow, examiner, client, listener) for flow in found.flows]
    if as_json:
        _print_json({"flows": [as_dict(one) for one in flows], "skipped": found.skipped})
        return
    if not explain:
        print_table(flows, found.skipped)
        return
    for one in flows:
        click.echo(f"{one.transport} {one.client} -> {one.server}")
        for note in one.notes:
            click.echo(f"{'note':<11}{note}")
        if one.report is not None:
            _print(one.report, explain=True)
        click.echo()


def _print_json(value: object) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(_encodable(msgspec.to_builtins(value))), indent=2))


def _address(client: str | None) -> str | None:
    if client is None:
        return None
    try:
        address = ip_address(client)
    except ValueError:
        raise ConfigError([Problem("write an IP address", where=f"--client {client}")]) from None
    return str(getattr(address, "ipv4_mapped", None) or address)


def _encodable(value: Any) -> Any:
    """Return a value of which JSON can contain the texts: the texts of protocols may have lone surrogates."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {_encodable(key): _encodable(one) for key, one in value.items()}
    return [_encodable(one) for one in value] if isinstance(value, list | tuple) else value


def _bytes(file: IO[bytes] | None, hex_: str | None) -> bytes:
    if hex_ is not None:
        try:
            return hex_bytes(hex_)
        except ValueError as error:
            raise ConfigError([Problem(str(error), where="--hex")]) from None
    if file is None and sys.stdin.isatty():
        message = "give FILE or --hex, or pipe the first bytes of a client into the command"
        raise ConfigError([Problem(message, where="identify")])
    source = sys.stdin.buffer if file is None else file
    return bytes(source.read(MAX_HEADER + MAX_BYTES_LIMIT))


def _print(report: Report, *, explain: bool) -> None:
    for key, text in _lines(report):
        click.echo(f"{key:<11}{printable(text)}")
    if not explain:
        return
    if report.answers:
        click.echo()
        columns = ("asked in this order", "strength", "answer", "tells", "effect")
        terminal.table(None, columns, [_answer_row(one) for one in report.answers])
    if report.routes:
        click.echo()
        terminal.table(
            None, ("route", "protocol", "result", "conditions and why"), map(_route_row, report.routes)
        )


def _lines(report: Report) -> Iterator[tuple[str, str]]:
    """Yield the lines that the command prints without ``--explain``: a key and a text."""
    is_silent = report.transport is Transport.TCP and not report.bytes
    yield "protocol", report.protocol or ("none: the client is silent" if is_silent else "not identified")
    if report.metadata:
        yield "metadata", _words(report.metadata)
    yield "bytes", f"{report.bytes} over {report.transport}{_need(report)}"
    if report.proxy_header is not None:
        header = report.proxy_header
        who = "no client" if header.client is None else f"{header.client} port {header.port}"
        yield "header", f"a PROXY header of {header.bytes} bytes names {who}"
    if report.listener is None:
        return
    others = f" (of {len(report.listeners)}: --listener chooses)" if len(report.listeners) > 1 else ""
    yield "listener", f"{report.listener}{others}"
    if report.client is not None:
        yield "client", report.client
    elif report.depends_on_client:
        yield "client", "unknown: every condition on the address counts as met (--client sets the address)"
    if report.result is not None:
        yield from _destination(report.result)
    if report.result_at_timeout is not None:
        yield "route", "not decided yet"
        yield "then", _when(report)
        yield from _destination(report.result_at_timeout)


def _when(report: Report) -> str:
    start = _STARTS[report.timeout or ""]
    return f"{report.timeout_ms} ms after {start} ({report.timeout}), if no further bytes decide:"


_STARTS: Final = {"peek_timeout_ms": "the accept", "peek_grace_ms": "the match"}
"""The event at which each timeout begins."""


def _need(report: Report) -> str:
    at = report.bytes_needed
    if report.needs_more:
        return "; a decision needs more bytes" if at is None else f"; a decision needs at least {at}"
    return "" if at is None else f"; the first {at} decide"


def _destination(found: Destination) -> Iterator[tuple[str, str]]:
    if found.outcome is not None:
        name = found.route or "none"
        if found.outcome == "silent":
            name += " (takes silent clients)"
        yield "route", f"{name}: {found.why}" if found.why else name
    if found.refused is not None:
        yield "goes to", f"no backend: {found.refused}"
        return
    yield "goes to", ", ".join(found.forward_to)
    if found.if_unreachable:
        yield "", f"if no backend is reachable, to the fallback {', '.join(found.if_unreachable)}"


def _answer_row(one: GivenAnswer) -> tuple[str, ...]:
    tells = [_words(one.metadata)]
    if one.pending:
        tells.append(f"pending: {', '.join(one.pending)}")
    if one.recognised:
        tells.append("recognised its own traffic")
    if one.bytes_needed is not None:
        tells.append(f"at={one.bytes_needed}")
    if one.error is not None:
        tells.append(one.error)
    effect = "decides" if one.decides else one.why
    return one.protocol, one.strength, one.answer, " ".join(filter(None, tells)), effect


def _route_row(one: GivenRoute) -> tuple[str, ...]:
    conditions = [text for condition in one.conditions if (text := _condition(condition))]
    return one.route, one.protocol, one.result, "; ".join((*conditions, *([one.why] if one.why else ())))


def _condition(one: GivenCondition) -> str:
    """Return the text of a condition; empty if the condition holds for most clients anyway."""
    if one.key == "listener":
        return "" if one.result is Result.HOLDS else "this listener does not serve the route"
    if one.key == "protocol":
        return "" if one.result is Result.HOLDS else f"{one.wanted[0]} said {one.actual}"
    if one.key == "on_timeout":
        return "takes silent clients" if one.result is Result.HOLDS else "does not take silent clients"
    actual = "unknown" if one.actual is None and one.key in _OF_CLIENT else _value(one.actual)
    return f"{one.key} {' or '.join(one.wanted)} {one.result}: {actual}"


_OF_CLIENT: Final = ("client", "allow, deny")


def _value(actual: MetadataValue | None) -> str:
    return "there is none" if actual is None else escape(actual)


def _words(metadata: Mapping[str, MetadataValue]) -> str:
    return " ".join(f"{key}={escape(value)}" for key, value in metadata.items())
