"""Routes by any metadata key in a file: in several processes, over TCP and UDP, and after a reload."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import dns.message
import pytest

from support.backends import Backend, named
from support.clients import ask, connect
from support.datagrams import UdpBackend
from support.datagrams import ask as ask_datagram
from support.hellos import Builder, records
from support.process import Running, free_port
from support.status import status_of

if TYPE_CHECKING:
    from pathlib import Path

HEAD: Final = '[server]\nworkers = 2\nbind = "127.0.0.1"\npeek_timeout_ms = 300\nport = '


def route(name: str, address: str, *keys: str) -> str:
    return "\n".join(("[[protocols]]", f'name = "{name}"', f'forward_to = "{address}"', *keys, ""))


def request(line: str) -> bytes:
    return f"{line} HTTP/1.1\r\nHost: a.example\r\n\r\n".encode()


def hello(*extensions: bytes) -> bytes:
    return records(Builder().hello(extensions))


API, FORM, PAGE = request("GET /api/users?x=1"), request("POST /form"), request("GET /form")
OLD_TLS, NEW_TLS = hello(Builder().versions(0x0303)), hello(Builder().versions(0x0304))
HIDDEN = hello(Builder().versions(0x0304), Builder().extension(0xFE0D, bytes(40)))
NEW_SSH, OLD_SSH = b"SSH-2.0-OpenSSH_9.9\r\n", b"SSH-2.0-PuTTY_0.60\r\n"


def test_routes_by_metadata_hold_in_every_process_and_after_a_reload(tmp_path: Path) -> None:
    port = free_port()
    file = tmp_path / "refractium.toml"
    with Backend(named("one ")) as one, Backend(named("two ")) as two, Backend(named("rest ")) as rest:
        routes = [
            route("http", one.address, 'match = { path = "/api/*" }'),
            route("http", two.address, "[protocols.match]", 'method = ["POST", "PUT"]', 'host = "*.example"'),
            route("http", rest.address),
            route("https", one.address, "match = { ech = true }"),
            route("https", two.address, 'match = { versions = "1.3", ech = false }'),
            route("https", rest.address),
            route("ssh", one.address, "match = { software = { regex = 'OpenSSH_[0-9.]+' } }"),
            route("ssh", rest.address),
        ]
        file.write_text(f"{HEAD}{port}\n{''.join(routes)}")
        expected = {
            API: b"one",
            FORM: b"two",
            PAGE: b"rest",
            HIDDEN: b"one",
            NEW_TLS: b"two",
            OLD_TLS: b"rest",
            NEW_SSH: b"one",
            OLD_SSH: b"rest",
        }
        with Running("tcp", cwd=tmp_path) as program:
            program.await_out(f"Listening on tcp://127.0.0.1:{port}\n")

            def answers() -> dict[bytes, bytes]:
                found = {}
                for data in expected:
                    told = {ask(program.address, data).data.partition(b" ")[0] for _ in range(4)}
                    found[data] = b" ".join(sorted(told))
                return found

            assert answers() == expected
            conditions = [one.conditions for one in status_of(program).routes]
            assert conditions[0] == {"match.path": ("/api/*",)}
            assert conditions[1] == {"host": ("*.example",), "match.method": ("POST", "PUT")}
            assert conditions[4] == {"match.versions": ("1.3",), "match.ech": ("false",)}
            file.write_text(file.read_text().replace("/api/*", "/form").replace("ech = true", "ech = false"))
            program.await_err("reloaded: configuration 2")
            assert answers() == {
                **expected,
                API: b"rest",
                FORM: b"two",  # the host comes before the path
                PAGE: b"one",
                HIDDEN: b"rest",
                OLD_TLS: b"one",
            }
            file.write_text(file.read_text().replace("path =", "pth ="))
            program.await_err("protocol http carries no pth: did you mean 'path'")
            assert ask(program.address, PAGE).data.startswith(b"one ")
            assert program.terminate() == 0


def test_a_name_server_gets_the_queries_for_its_zone(tmp_path: Path) -> None:
    port = free_port()
    with (
        UdpBackend(lambda data: [b"one" + data[:2]]) as one,
        UdpBackend(lambda data: [b"two" + data[:2]]) as two,
    ):
        (tmp_path / "refractium.toml").write_text(
            f"{HEAD}{port}\n"
            + route(
                "dns",
                one.address,
                'transport = "udp"',
                'match = { qname = "**.Lan.", qtype = ["A", "AAAA"] }',
            )
            + route("dns", two.address, 'transport = "udp"')
        )
        with Running("udp", cwd=tmp_path) as program:
            program.await_out(f"Listening on udp://127.0.0.1:{port}\n")
            for name, kind, answer in [
                ("printer.lan", "A", b"one"),
                ("a.b.LAN", "AAAA", b"one"),
                ("printer.lan", "TXT", b"two"),
                ("lan", "A", b"two"),
                ("www.example.com", "A", b"two"),
            ]:
                query = dns.message.make_query(name, kind).to_wire()
                assert ask_datagram(("127.0.0.1", port), query)[:3] == answer, (name, kind)
            assert program.terminate() == 0


@pytest.mark.parametrize("rest", [b"", b"9.9"])
def test_a_client_whose_key_never_arrives_is_refused(tmp_path: Path, rest: bytes) -> None:
    port = free_port()
    with Backend(named("one ")) as one:
        (tmp_path / "refractium.toml").write_text(
            f"{HEAD}{port}\n"
            + route("ssh", one.address, 'match = { software = "OpenSSH*" }')
            + route("ssh", one.address)
        )
        with Running("tcp", cwd=tmp_path) as program:
            program.await_out(f"Listening on tcp://127.0.0.1:{port}\n")
            with connect(program.address) as sock:
                sock.sendall(b"SSH-2.0-OpenSSH_" + rest)
                assert sock.recv(100) == b""
            program.await_err("undecided: the bytes of protocol ssh end before they name a route")
            assert program.terminate() == 0
