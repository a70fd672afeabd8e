"""UDP with real programs at both ends: dnsperf and dnsmasq, QUIC, and a flow without any answer."""

from __future__ import annotations

import asyncio
import re
import ssl
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import trustme
from aioquic.asyncio.client import connect
from aioquic.asyncio.server import serve
from aioquic.quic.configuration import QuicConfiguration

from refractium import Route
from refractium_proto_dns import DnsUdp
from support.clients import MIB, payload
from support.datagrams import UdpBackend, ask, client
from support.process import free_port
from support.programs import require_program
from support.proxy import ProxyThread, eventually, quick

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def dnsmasq() -> Iterator[str]:
    """Run a real DNS server that knows one name, and yield its address."""
    port = free_port()
    program = subprocess.Popen(
        [
            require_program("dnsmasq"),
            *("--no-daemon", "--no-resolv", "--no-hosts", "--conf-file=/dev/null", "--user=root"),
            *("--listen-address=127.0.0.1", "--bind-interfaces", f"--port={port}", "--pid-file="),
            "--address=/known.example/192.0.2.7",
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert program.stderr is not None
        for line in program.stderr:
            if "started" in line:
                break
        yield f"127.0.0.1:{port}"
    finally:
        program.terminate()
        program.communicate(timeout=10)


@pytest.mark.slow
def test_dnsperf_to_dnsmasq_loses_no_query(tmp_path: Path) -> None:
    dnsperf = require_program("dnsperf")
    (tmp_path / "queries").write_text("known.example A\nwww.known.example A\nftp.known.example A\n")
    settings = quick(udp_session_timeout_ms=3_000)
    with dnsmasq() as backend, ProxyThread(Route(DnsUdp(), backend), settings=settings) as proxy:
        report = subprocess.run(
            [
                *(dnsperf, "-s", "127.0.0.1", "-p", str(proxy.port), "-d", str(tmp_path / "queries")),
                *("-c", "50", "-Q", "2000", "-n", "2000"),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        sent, completed, lost = (
            int(re.search(rf"Queries {what}:\s+(\d+)", report)[1])  # type: ignore[index]
            for what in ("sent", "completed", "lost")
        )
        assert (sent, completed, lost) == (6_000, 6_000, 0), report
        assert re.search(r"NOERROR 6000 \(100", report), report
        # A client may pause on a busy machine: then its session ends, and the next query begins another one.
        assert proxy.engine.udp_counters.sessions >= 50


def twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read a stream to its end, and send the bytes back twice."""

    async def answer() -> None:
        writer.write(await reader.read() * 2)
        writer.write_eof()

    ANSWERING.add(asyncio.ensure_future(answer()))


ANSWERING: set[asyncio.Future[None]] = set()


def test_quic_passes_by_the_fallback(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("quic.example")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    at_server = QuicConfiguration(is_client=False, alpn_protocols=["twice"])
    at_server.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    at_client = QuicConfiguration(alpn_protocols=["twice"], server_name="quic.example")
    at_client.load_verify_locations(cadata=authority.cert_pem.bytes())
    at_client.verify_mode = ssl.CERT_REQUIRED
    data = payload("quic", MIB // 2)

    async def talk(backend_port: int, port: int) -> bytes:
        server = await serve("127.0.0.1", backend_port, configuration=at_server, stream_handler=twice)
        try:
            async with connect("127.0.0.1", port, configuration=at_client) as connection:
                reader, writer = await connection.create_stream()
                writer.write(data)
                writer.write_eof()
                return await asyncio.wait_for(reader.read(), 30)
        finally:
            server.close()

    port = free_port()
    with ProxyThread(fallback_udp=f"127.0.0.1:{port}", settings=quick(udp_session_timeout_ms=2_000)) as proxy:
        assert asyncio.run(talk(port, proxy.port)) == data * 2
        assert proxy.engine.udp_counters.sessions == 1


def test_a_flow_that_is_never_answered_passes() -> None:
    ntp = b"\x23" + bytes(47)  # a request of a client, version 4 (RFC 5905 section 7.3)
    settings = quick(udp_session_timeout_ms=300)
    with (
        UdpBackend(lambda _: []) as sink,
        UdpBackend(lambda _: []) as dns,
        ProxyThread(Route(DnsUdp(), dns.address), fallback_udp=sink.address, settings=settings) as proxy,
        client(proxy.address) as sock,
    ):
        for _ in range(100):
            sock.send(ntp)
        eventually(lambda: sink.seen == 100, "the sink has received all 100 datagrams")
        assert dns.seen == 0


def test_dns_answers_through_the_proxy_equal_direct_answers() -> None:
    query = bytes.fromhex("5265010000010000000000000561736b6564056b6e6f776e076578616d706c650000010001")
    with dnsmasq() as backend:
        host, _, port = backend.rpartition(":")
        directly = ask((host, int(port)), query)
        with ProxyThread(Route(DnsUdp(), backend), settings=quick(udp_session_timeout_ms=2_000)) as proxy:
            assert ask(proxy.address, query) == directly
