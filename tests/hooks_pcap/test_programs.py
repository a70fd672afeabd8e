"""Real programs through a proxy that mirrors them: the capture equals the bytes that servers have seen."""

from __future__ import annotations

import queue
import socket
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple

import dns.message
import dns.rrset
import pytest
import trustme

from hooks_pcap.following import assert_sound, follow, tshark
from hooks_pcap.mirroring import await_captured, configuration
from integration.openssh import begin_sshd
from integration.stage import ANSWER, FILES, FtpBackend, answering, over_tls, resolving
from support.backends import Backend
from support.clients import MIB, connect
from support.datagrams import UdpBackend
from support.ipv6 import LOOPBACKS
from support.process import TIMEOUT, Running, serving
from support.programs import require_program

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from integration.openssh import Sshd
    from support.backends import Handler


class Moved(NamedTuple):
    """The bytes of a connection to the server, and from it."""

    up: bytes
    down: bytes


def recording(server: tuple[str, int], moved: queue.SimpleQueue[Moved]) -> Handler:
    """Return a handler that passes all bytes to and from a server, and records them."""

    def pump(source: socket.socket, sink: socket.socket) -> bytes:
        data = b""
        try:
            while part := source.recv(MIB):
                data += part
                sink.sendall(part)
            sink.shutdown(socket.SHUT_WR)
        except OSError:  # the peer has gone, so these bytes were not delivered and are not recorded
            pass
        return data

    def handle(sock: socket.socket) -> None:
        with connect(server) as onwards, ThreadPoolExecutor(1) as pool:
            down = pool.submit(pump, onwards, sock)
            up = pump(sock, onwards)
            moved.put(Moved(up, down.result()))

    return handle


def all_of(moved: queue.SimpleQueue[Moved]) -> Iterator[Moved]:
    while not moved.empty():
        yield moved.get()


def output_of(program: str, *arguments: object) -> str:
    """Return the output of a program, which has to succeed."""
    command = [require_program(program), *map(str, arguments)]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def curl(*arguments: object) -> str:
    return output_of("curl", "-q", "--noproxy", "*", "-sS", "--max-time", TIMEOUT, *arguments)


def run_ssh(sshd: Sshd, host: str, port: int) -> None:
    options = {
        "UserKnownHostsFile": sshd.known_hosts,
        "HostKeyAlias": "behind-the-proxy",
        "StrictHostKeyChecking": "yes",
        "IdentitiesOnly": "yes",
        "BatchMode": "yes",
    }
    written = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
    output = output_of(
        "ssh",
        *("-F", "none", "-T", "-i", sshd.user_key, *written),
        *("-p", port, host, "echo through the prism"),
    )
    assert output == "through the prism\n"


class Stage(NamedTuple):
    """The servers that the programs talk to, and the proxy between them.

    Attributes:
        proxy: the proxy, which mirrors all traffic.
        authority: the file of the certificate that signed the TLS server's certificate.
        sshd: the OpenSSH server.
        capture: the file of the capture.
        moved: finished connections to the servers.
        datagrams: datagrams to and from the DNS server.
        names: options that tell tshark the protocol at the DNS server's port, which it cannot guess.
    """

    proxy: Running
    authority: Path
    sshd: Sshd | None
    capture: Path
    moved: queue.SimpleQueue[Moved]
    datagrams: list[bytes]
    names: tuple[str, ...]


@contextmanager
def staged(folder: Path) -> Iterator[Stage]:
    """Run the servers behind unix sockets, which a capture shows at the ports of their protocols."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    moved: queue.SimpleQueue[Moved] = queue.SimpleQueue()
    datagrams: list[bytes] = []

    def answer(datagram: bytes) -> list[bytes]:
        query = dns.message.from_wire(datagram)
        reply = dns.message.make_response(query)
        reply.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "A", ANSWER))
        datagrams.extend((datagram, wire := reply.to_wire()))
        return [wire]

    with ExitStack() as stack:
        sshd = begin_sshd(folder)
        ftp_host, _, ftp_port = stack.enter_context(FtpBackend(folder / "files")).address.rpartition(":")
        servers = {
            "http": Backend(answering("web")),
            "https": Backend(over_tls(authority, "one.example")),
            "dns": Backend(resolving),
        }
        if sshd is not None:
            servers["ssh"] = Backend(sshd.serve)
        ports = {name: stack.enter_context(one).port for name, one in servers.items()} | {
            "ftp": int(ftp_port)
        }
        lines = []
        for name, port in ports.items():
            relay = Backend(recording((ftp_host, port), moved), path=folder / f"{name}.sock")
            lines += [f'[[protocols]]\nname = "{name}"\nforward_to = "{stack.enter_context(relay).address}"']
            lines += {"https": ['sni = "one.example"'], "ftp": ["on_timeout = true"]}.get(name, [])
            lines += ['transport = "tcp"'] if name == "dns" else []
        resolver = stack.enter_context(UdpBackend(answer))
        lines += [f'[[protocols]]\nname = "dns"\ntransport = "udp"\nforward_to = "{resolver.address}"']
        path = folder / "refractium.toml"
        capture = folder / "programs.pcapng"
        text = configuration("127.0.0.1:1", capture, "peek_timeout_ms = 2000")
        path.write_text(text + "\n".join(lines) + "\n")
        proxy = stack.enter_context(serving("-c", path))
        names = ("-d", f"udp.port=={resolver.port},dns")
        yield Stage(proxy, folder / "authority.pem", sshd, capture, moved, datagrams, names)


@pytest.mark.slow
def test_the_capture_of_real_programs_equals_their_traffic(tmp_path: Path) -> None:
    for program in ("tshark", "capinfos", "curl", "ssh", "dig"):
        require_program(program)
    with staged(tmp_path) as stage:
        port = stage.proxy.port
        for host in LOOPBACKS:
            bracketed = f"[{host}]" if ":" in host else host
            assert curl("--http1.1", f"http://{bracketed}:{port}/") == "web"
            resolve = ("--cacert", stage.authority, "--resolve", f"one.example:{port}:{bracketed}")
            assert curl(*resolve, f"https://one.example:{port}/") == "one.example"
            for way in ("+tcp", "+notcp"):
                options = ("-r", way, "+short", "+tries=1", "+timeout=10", "-p", port)
                assert output_of("dig", *options, f"@{host}", "www.example.com", "A") == f"{ANSWER}\n"
            if stage.sshd is not None:
                run_ssh(stage.sshd, host, port)
        assert curl(f"ftp://127.0.0.1:{port}/{FILES[0]}") == f"this is {FILES[0]}\n"
        await_captured(stage.proxy)
        assert stage.proxy.terminate() == 0
    # Wireshark 4.0 dissects OpenSSH's encrypted packets wrongly, in captures of an interface as well.
    assert_sound(stage.capture, *stage.names, "--disable-protocol", "ssh")
    assert Counter(all_of(stage.moved)) == Counter(
        Moved(one.up, one.down) for one in follow(stage.capture, *stage.names)
    )
    sent = tshark(stage.capture, *stage.names, "-Y", "udp", "-T", "fields", "-e", "udp.payload")
    assert [bytes.fromhex(one) for one in sent] == stage.datagrams
    expected = {"http", "tls", "dns", "ftp"} | ({"ssh"} if stage.sshd is not None else set())
    said = tshark(stage.capture, *stage.names, "-T", "fields", "-e", "frame.protocols")
    assert expected <= {name for line in said for name in line.split(":")}
    addresses = set(tshark(stage.capture, "-T", "fields", "-e", "ip.src", "-e", "ipv6.src"))
    assert {f"\t{host}" if ":" in host else f"{host}\t" for host in LOOPBACKS} <= addresses
