"""The cost of identifying a connection, in nanoseconds per call, for real first bytes.

uv run python tests/benchmarks/identification.py [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import timeit
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

sys.path.insert(0, str(Path(__file__).parents[1]))

import dns.message

from refractium.contract import Protocol, ProtocolMatch
from refractium.routing import Pools, Route, Router
from refractium_proto_dns import DnsTcp, DnsUdp
from refractium_proto_ftp import Ftp
from refractium_proto_http import Http
from refractium_proto_https import Https
from refractium_proto_ssh import Ssh
from support.capture import browser_hello

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Subjects: TypeAlias = "dict[str, tuple[Callable[[bytes], object], bytes]]"
"""Functions with the bytes that they are called with, by name."""

ROUNDS = 15
ROUND_SECONDS = 0.02

CURL = b"GET / HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n\r\n"
NOT_ANY = b"\x80\x46\x01\x03\x01\x00\x2d\x00\x00\x00\x10\x00\x00\x00"
"""An SSLv2 hello, which none of the protocols recognises."""
TCP_PROTOCOLS = (Http(), Https(), Ssh(), DnsTcp(), Ftp())
OPENSSH = b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u7\r\n"


def identification_subjects() -> Subjects:
    """Return each protocol with its own sample, and further cases: routes on metadata, and other traffic."""
    query = dns.message.make_query("www.example.com", "AAAA", use_edns=0).to_wire()
    hello = browser_hello("chrome")
    own: dict[str, tuple[Protocol, bytes]] = {
        "http: curl": (Http(), CURL),
        "https: Chrome hello": (Https(), hello),
        "ssh: OpenSSH": (Ssh(), OPENSSH),
        "ftp: USER": (Ftp(), b"USER anonymous\r\n"),
        "dns over tcp": (DnsTcp(), len(query).to_bytes(2) + query),
        "dns over udp": (DnsUdp(), query),
    }
    subjects: Subjects = {}
    for name, (protocol, data) in own.items():
        if not isinstance(protocol.identify(data), ProtocolMatch):
            raise SystemExit(f"{name} is not recognised")
        subjects[name] = protocol.identify, data
    table = Router(Pools([Route(protocol, "127.0.0.1:1") for protocol in TCP_PROTOCOLS]), 1024).table.decide
    for name in ("http: curl", "https: Chrome hello", "ssh: OpenSSH", "ftp: USER", "dns over tcp"):
        subjects[f"table of five, {name}"] = table, own[name][1]
    subjects["table of five, no match"] = table, NOT_ANY
    by_name = Router(
        Pools([Route(TCP_PROTOCOLS[1], "127.0.0.1:1", sni=f"{n}.example") for n in range(1000)]), 1024
    ).table
    subjects["table, hello, 1,000 sni routes"] = by_name.decide, hello
    subjects["http: curl, host read"] = metadata_reader(Http()), CURL
    subjects["https: Chrome hello, sni read"] = metadata_reader(Https()), hello
    subjects["https: half a hello"] = Https().identify, hello[: len(hello) // 2]
    subjects["http: not its own"] = Http().identify, OPENSSH
    return subjects


def metadata_reader(protocol: Protocol) -> Callable[[bytes], object]:
    """Return a function that identifies bytes and reads the metadata, as for a route with conditions."""

    def identify_and_read(data: bytes) -> object:
        answer = protocol.identify(data)
        return answer.metadata if isinstance(answer, ProtocolMatch) else answer

    return identify_and_read


def measure(subjects: Subjects) -> dict[str, list[float]]:
    """Return nanoseconds per call of each subject, with one figure for each round.

    The subjects take turns, so that a slow moment of the machine does not affect only one subject.
    """
    timers = {
        name: timeit.Timer("function(data)", globals={"function": function, "data": data})
        for name, (function, data) in subjects.items()
    }
    calls = {name: int(ROUND_SECONDS / timer.timeit(1000) * 1000) + 1 for name, timer in timers.items()}
    figures: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(ROUNDS):
        for name, timer in timers.items():
            figures[name].append(timer.timeit(calls[name]) / calls[name] * 1e9)
    return figures


def summary(figures: Mapping[str, list[float]], subjects: Subjects) -> dict[str, dict[str, int]]:
    return {
        name: {
            "bytes": len(subjects[name][1]),
            "median": round(statistics.median(rounds)),
            "min": round(min(rounds)),
            "max": round(max(rounds)),
        }
        for name, rounds in figures.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure nanoseconds per call of identify().")
    parser.add_argument("--json", type=Path, metavar="PATH", help="save the figures to PATH")
    options = parser.parse_args()
    subjects = identification_subjects()
    results = summary(measure(subjects), subjects)
    out = sys.stdout.write
    out(f"{'ns per call':32}{'bytes':>8}{'median':>8}{'min':>8}{'max':>8}\n")
    for name, result in results.items():
        out(f"{name:32}" + "".join(f"{figure:>8}" for figure in result.values()) + "\n")
    if options.json:
        report = {
            "unit": "ns per call",
            "rounds": ROUNDS,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "results": results,
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
