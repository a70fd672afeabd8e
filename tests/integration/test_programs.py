"""Real programs, each with its own protocol, through one port."""

from __future__ import annotations

import asyncio
import contextlib
import ftplib
import socket
import subprocess
from typing import TYPE_CHECKING

import asyncssh
import httpx
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived

from integration.stage import ANSWER, FILES, by_inetd, make_files
from support.backends import Backend
from support.clients import connect, receive
from support.process import TIMEOUT, serving
from support.programs import require_program

if TYPE_CHECKING:
    from pathlib import Path

    from integration.stage import Stage

each_address = pytest.mark.parametrize("host", ["127.0.0.1", "::1"], ids=["IPv4", "IPv6"])


def output_of(program: str, *arguments: object) -> str:
    """Return the output of a program, which has to succeed."""
    done = subprocess.run(
        [require_program(program), *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def curl(*arguments: object) -> str:
    return output_of("curl", "-q", "--noproxy", "*", "-sS", "--max-time", TIMEOUT, *arguments)


def bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


@each_address
@pytest.mark.parametrize("version", ["--http1.0", "--http1.1", "--http2-prior-knowledge", "--http2"])
def test_curl_speaks_http(stage: Stage, host: str, version: str) -> None:
    assert curl(version, f"http://{bracketed(host)}:{stage.port}/") == "web"


@each_address
def test_curl_reaches_a_unix_socket_by_the_name_of_the_host(stage: Stage, host: str) -> None:
    url = f"http://{bracketed(host)}:{stage.port}/"
    assert curl("-H", "Host: unix.example", url) == "unix"
    assert curl("-X", "PROPFIND", "-H", "Host: Unix.Example", url) == "unix"
    assert curl("--http2", "-H", "Host: unix.example", url) == "unix"


@each_address
def test_curl_reaches_a_unix_socket_by_the_authority_of_http2(stage: Stage, host: str) -> None:
    url = f"http://{bracketed(host)}:{stage.port}/"
    for name, server in (("unix.example", "unix"), ("Unix.Example.:80", "unix"), ("other.example", "web")):
        assert curl("--http2-prior-knowledge", "-H", f"Host: {name}", url) == server
        cookie = "Cookie: " + "x" * 5000
        assert curl("--http2-prior-knowledge", "-H", f"Host: {name}", "-H", cookie, url) == server


@each_address
def test_httpx_reaches_a_unix_socket_by_the_authority_of_http2(stage: Stage, host: str) -> None:
    url = f"http://{bracketed(host)}:{stage.port}/"
    for name, server in (("unix.example", "unix"), ("other.example", "web")):
        with httpx.Client(http1=False, http2=True, trust_env=False, timeout=TIMEOUT) as client:
            response = client.get(url, headers={"Host": name})
        assert (response.http_version, response.text) == ("HTTP/2", server)


def test_a_request_of_http2_that_comes_in_pieces_reaches_its_host(stage: Stage) -> None:
    configuration = H2Configuration(client_side=True)
    for name, server in (("unix.example", b"unix"), ("other.example", b"web")):
        client = H2Connection(configuration)
        client.initiate_connection()
        with contextlib.closing(connect(("127.0.0.1", stage.port))) as sock:
            sock.sendall(client.data_to_send())
            headers = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", name)]
            client.send_headers(1, headers, end_stream=True)
            for byte in client.data_to_send():
                sock.sendall(bytes([byte]))
            body = b""
            while not body:
                events = client.receive_data(sock.recv(65536))
                body = b"".join(one.data for one in events if isinstance(one, DataReceived))
        assert body == server


@each_address
@pytest.mark.parametrize(
    ("name", "server"),
    [("one.example", "one.example"), ("two.example", "two.example"), ("any.wild.example", "two.example")],
)
def test_curl_over_tls_reaches_the_server_that_has_the_certificate(
    stage: Stage, host: str, name: str, server: str
) -> None:
    resolve = f"{name}:{stage.port}:{bracketed(host)}"
    url = f"https://{name}:{stage.port}/"
    assert curl("--cacert", stage.authority, "--resolve", resolve, url) == server


@each_address
def test_ssh_runs_a_command(stage: Stage, host: str) -> None:
    require_program("ssh")
    if stage.sshd is None:
        require_program("sshd")
        pytest.skip("needs ssh-keygen, and as root the folder /run/sshd")
    options = {
        "UserKnownHostsFile": stage.sshd.known_hosts,
        "HostKeyAlias": "behind-the-proxy",
        "StrictHostKeyChecking": "yes",
        "IdentitiesOnly": "yes",
        "BatchMode": "yes",
        "ConnectTimeout": "10",
    }
    written = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
    try:
        output = output_of(
            "ssh",
            *("-F", "none", "-T", "-i", stage.sshd.user_key, *written, "-p", stage.port),
            *(host, "echo through the prism"),
        )
    except AssertionError as error:
        raise AssertionError(f"{error}\n{stage.sshd.log.read_text()}") from error
    assert output == "through the prism\n"


@each_address
def test_dig_asks_over_tcp(stage: Stage, host: str) -> None:
    options = ("+tcp", "+short", "+tries=1", "+timeout=10")
    assert (
        output_of("dig", "-r", *options, "-p", stage.port, f"@{host}", "www.example.com", "A")
        == f"{ANSWER}\n"
    )


def test_ftplib_lists_a_folder_of_a_server_that_speaks_first(stage: Stage) -> None:
    assert listing("127.0.0.1", stage.port) == sorted(FILES)


def listing(host: str, port: int) -> list[str]:
    with contextlib.closing(ftplib.FTP(timeout=TIMEOUT)) as client:  # noqa: S321 - the protocol under test
        client.connect(host, port)
        client.login()
        names = sorted(client.nlst())
        client.quit()
    return names


def test_curl_reads_a_file_by_ftp(stage: Stage) -> None:
    assert curl(f"ftp://127.0.0.1:{stage.port}/{FILES[0]}") == f"this is {FILES[0]}\n"


def test_vsftpd_lets_curl_list_a_folder(tmp_path: Path) -> None:
    program = require_program("vsftpd")
    make_files(tmp_path / "files")
    (tmp_path / "empty").mkdir()
    settings = {
        "listen": "NO",
        "run_as_launching_user": "YES",
        "anonymous_enable": "YES",
        "anon_root": tmp_path / "files",
        "secure_chroot_dir": tmp_path / "empty",
        "seccomp_sandbox": "NO",
        "isolate": "NO",
        "isolate_network": "NO",
    }
    configuration = tmp_path / "vsftpd.conf"
    configuration.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))

    with (
        Backend(by_inetd(program, configuration)) as backend,
        serving("-b", "127.0.0.1", "-p", 0, "-f", f"ftp={backend.address}", "--peek-timeout", 300) as proxy,
    ):
        assert sorted(curl("--list-only", f"ftp://127.0.0.1:{proxy.port}/").split()) == sorted(FILES)


FIRST_BYTES = {
    "a text anywhere": b"... MY_PROTO_V1 ...",
    "bytes at an offset": b"\x01\x02\x03\x04\xca\xfe\x00",
    "a regex at the start": b"HELLO 42\n",
}


@each_address
@pytest.mark.parametrize("data", FIRST_BYTES.values(), ids=FIRST_BYTES)
def test_a_protocol_of_the_file_reaches_its_server(stage: Stage, host: str, data: bytes) -> None:
    with connect((host, stage.port)) as client:
        client.sendall(data)
        assert receive(client, 7 + len(data)) == b"my_app " + data


def test_asyncssh_runs_a_command_on_an_asyncssh_server() -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    allowed = asyncssh.import_authorized_keys(key.export_public_key().decode())

    def greet(process: asyncssh.SSHServerProcess[str]) -> None:
        process.stdout.write(f"{process.command}, through the prism\n")
        process.exit(0)

    async def talk(listener: socket.socket, port: int) -> object:
        has_gone = asyncio.Event()

        class Server(asyncssh.SSHServer):
            def connection_lost(self, _error: Exception | None) -> None:
                has_gone.set()

        async with asyncssh.listen(
            sock=listener,
            server_factory=Server,
            server_host_keys=[key],
            authorized_client_keys=allowed,
            process_factory=greet,
        ):
            async with asyncssh.connect(
                *("127.0.0.1", port),
                config=None,
                username="anybody",
                client_keys=[key],
                known_hosts=([key.convert_to_public()], [], []),
            ) as client:
                answer = (await client.run("hello", check=True)).stdout
            await has_gone.wait()  # otherwise its transport would stay open
        return answer

    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        serving("-b", "127.0.0.1", "-p", 0, "-f", f"ssh=127.0.0.1:{listener.getsockname()[1]}") as proxy,
    ):
        answer = asyncio.run(asyncio.wait_for(talk(listener, proxy.port), TIMEOUT))
    assert answer == "hello, through the prism\n"
