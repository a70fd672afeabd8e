"""``identify``: name the protocol of some bytes, and say why."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec
import rich_click as click

from refractium import terminal
from refractium.assembly.assembly import assemble, installed
from refractium.assembly.protocols import configured
from refractium.assembly.sources import Overrides, read_file
from refractium.cli.options import Flags
from refractium.contract import (
    MAX_BYTES_LIMIT,
    NEED_MORE,
    MetadataValue,
    NeedMore,
    Protocol,
    ProtocolMatch,
    Transport,
    Verdict,
)
from refractium.errors import ConfigError
from refractium.guard.faults import text_of
from refractium.identify import Candidate, DispatchTable, Undecided, Waiting
from refractium.problems import Problem
from refractium.wire.text import brief, escape, hex_bytes


@click.command("identify")
@click.argument("file", type=click.File("rb"), required=False)
@click.option("--hex", "hex_", metavar="HEX", help="The bytes as hex digits, instead of a file.")
@click.option("--udp", is_flag=True, help="The bytes are one UDP datagram.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(context: click.Context, *, file: Any, hex_: str | None, udp: bool, as_json: bool) -> None:
    """Print the protocol of the first bytes in FILE (``-`` for stdin), and the answer of each protocol.

    Refractium asks every installed protocol, and every protocol that the configuration file defines.
    """
    data = _bytes(file, hex_)
    if not data and not udp:  # a protocol gets at least one byte of a connection; a datagram may be empty
        raise ConfigError([Problem("no bytes: give at least one byte", where="identify")])
    transport = Transport.UDP if udp else Transport.TCP
    table = DispatchTable(_candidates(Flags.of(context), transport), MAX_BYTES_LIMIT)
    answers = [(protocol, _answer(answer), answer) for protocol, answer in table.explain(data)]
    decision = table.decide(data, final=True)
    may_change = not udp and isinstance(table.decide(data), Waiting)
    name = decision[0] if isinstance(decision, tuple) else None
    metadata = {
        key: _encodable(value)
        for one, _, answer in answers
        if one.name == name and isinstance(answer, ProtocolMatch)
        for key, value in answer.metadata.items()
    }
    if as_json:
        shown = {
            "protocol": name,
            "metadata": metadata,
            "needs_more": may_change,
            "answers": [
                {"protocol": one.name, "strength": one.strength.name.lower(), "answer": said}
                | ({"error": _tells(answer)} if isinstance(answer, BaseException) else {})
                for one, said, answer in answers
            ],
        }
        click.echo(msgspec.json.format(msgspec.json.encode(shown), indent=2))
        return
    columns = ("asked in this order", "strength", "answer", "tells")
    rows = [(one.name, one.strength.name.lower(), said, _tells(answer)) for one, said, answer in answers]
    terminal.table(None, columns, rows)
    result = f"refused, {decision.reason}" if isinstance(decision, Undecided) else name or "not identified"
    click.echo(f"{len(data)} bytes over {transport}: {result}")
    if may_change:
        click.echo("Further bytes may change this result, which is the decision at the peek timeout.")


def _bytes(file: Any, hex_: str | None) -> bytes:
    if (file is None) == (hex_ is None):
        raise ConfigError([Problem("give either FILE (- for stdin) or --hex", where="identify")])
    if hex_ is None:
        return bytes(file.read(MAX_BYTES_LIMIT))
    try:
        return hex_bytes(hex_)
    except ValueError as error:
        raise ConfigError([Problem(str(error), where="--hex")]) from None


def _candidates(flags: Flags, transport: Transport) -> list[Candidate[str]]:
    """Return all installed protocols, and the protocols that the file defines by patterns."""
    decoded = read_file(flags.overrides)
    plugins = installed(flags.overrides, decoded)
    protocols = []
    if decoded.routes or decoded.problems:
        assembly = assemble(decoded, Overrides(), plugins)
        routes = [route for route in (*assembly.tcp, *assembly.udp) if not route.takes_the_rest]
        protocols += [protocol for route in routes for protocol in route.protocols]
    routed = {(one.name, one.transport) for one in protocols}
    others = configured(plugins, decoded.config.plugins.settings, []).protocols
    protocols = [*(one for one in others if (one.name, one.transport) not in routed), *protocols]
    distinct = {id(one): one for one in protocols}  # the class of a protocol may define `__eq__`
    return [
        Candidate(protocol, partial(_name_of, protocol))
        for protocol in distinct.values()
        if protocol.transport is transport
    ]


def _name_of(protocol: Protocol, _match: ProtocolMatch) -> str:
    return protocol.name


def _encodable(value: MetadataValue) -> MetadataValue:
    """Return a value of which JSON can contain the text: a protocol may return lone surrogates."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    return tuple(_encodable(one) for one in value) if isinstance(value, tuple) else value  # type: ignore[misc]


def _answer(answer: object) -> str:
    if isinstance(answer, NeedMore):
        answer = NEED_MORE
    if isinstance(answer, Verdict):
        return answer.value
    if isinstance(answer, BaseException):
        return "fault"
    return "yes"


def _tells(answer: object) -> str:
    if isinstance(answer, BaseException):
        return brief(text_of(answer))
    if isinstance(answer, NeedMore):
        needed = f"at={answer.at}" if answer.at else ""
        return f"{needed} recognised".strip() if answer.recognised else needed
    if not isinstance(answer, ProtocolMatch):
        return ""
    return " ".join(f"{key}={escape(value)}" for key, value in answer.metadata.items())
