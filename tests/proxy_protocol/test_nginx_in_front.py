"""nginx and HAProxy in front of Refractium: the client that they name is the client everywhere."""

from __future__ import annotations

import os
import socket
import ssl
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
import trustme

from proxy_protocol import programs
from proxy_protocol.programs import haproxy
from refractium import Route
from refractium.contract import Transport, Verdict
from refractium.wire.proxy_protocol import Header, parse
from support.backends import Backend, named
from support.clients import connect, receive, receive_all
from support.process import free_port
from support.programs import require_program
from support.proxy import ProxyThread, eventually, quick, starting_with

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    InFront = Callable[[Path, int], AbstractContextManager[int]]

MAGIC: Final = starting_with(b"magic")
TRUSTED: Final = ("127.0.0.0/8",)
STREAM_MODULE: Final = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
NGINX: Final = """
load_module {module};
daemon off;
master_process off;
pid nginx.pid;
events {{}}
stream {{
    server {{
        listen 127.0.0.1:{port};
        listen unix:{folder}/front.sock;
        proxy_pass 127.0.0.1:{target};
        proxy_protocol on;
    }}
}}
"""
HAPROXY: Final = """
listen front
    mode tcp
    bind 127.0.0.1:PORT
    server ours 127.0.0.1:{target} {send}
"""
HAPROXY_TLS: Final = """
listen front
    mode tcp
    bind 127.0.0.1:PORT ssl crt {folder}/pem ca-file {folder}/ca.pem verify optional alpn h2
    server ours 127.0.0.1:{target} send-proxy-v2-ssl-cn proxy-v2-options crc32c,authority,cert-key,unique-id
    unique-id-format %{{+X}}o\\ %ci:%cp_%fi:%fp_%Ts
"""


@contextmanager
def nginx(folder: Path, target: int) -> Iterator[int]:
    """Run nginx as a proxy of streams, which sends headers of version 1, the only version it knows; yield
    its port."""
    program, port = require_program("nginx"), free_port()
    if not STREAM_MODULE.exists():
        reason = "needs the stream module of nginx (Debian package libnginx-mod-stream)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    file = folder / "nginx.conf"
    file.write_text(NGINX.format(module=STREAM_MODULE, port=port, folder=folder, target=target))
    with programs._running(folder, port, program, "-p", str(folder), "-c", str(file), "-e", "stderr"):
        yield port


def sending(send: str) -> InFront:
    return lambda folder, target: haproxy(folder, HAPROXY.format(target=target, send=send))


IN_FRONT: Final = pytest.mark.parametrize(
    "in_front",
    [nginx, sending("send-proxy"), sending("send-proxy-v2"), sending("send-proxy-v2-ssl")],
    ids=["nginx", "v1", "v2", "v2-ssl"],
)


def take(sock: socket.socket) -> bytes:
    """Read, as a backend, everything up to the bytes of the client."""
    data = b""
    while not data.endswith(b"magic!") and (part := sock.recv(1000)):
        data += part
    return data


def arrived(backend: Backend) -> tuple[Header, bytes]:
    """Return the header that came before the bytes of the client, and the bytes after it.

    The test connects to a program once when it starts. That connection may come through without any bytes.
    """
    while not (data := backend.result()).endswith(b"magic!"):
        pass
    parsed = parse(data)
    assert not isinstance(parsed, Verdict), data
    return parsed[0], data[parsed[1] :]


def leave(client: socket.socket, proxy: ProxyThread) -> set[str]:
    """Close a client, and return all addresses that the access log names from then on."""
    client.close()
    proxy.await_active(0)
    return {proxy.next_end().client for _ in range(proxy.counters.finished)}


@IN_FRONT
def test_the_access_log_and_the_backends_header_name_the_real_client(
    in_front: InFront, tmp_path: Path
) -> None:
    with (
        Backend(take) as backend,
        ProxyThread(
            Route(MAGIC, backend.address, proxy_protocol="v2"), settings=quick(proxy_protocol_from=TRUSTED)
        ) as proxy,
        in_front(tmp_path, proxy.port) as port,
        connect(("127.0.0.1", port), source="127.0.0.7") as client,
    ):
        client.sendall(b"magic!")
        header, rest = arrived(backend)
        assert header == Header(Transport.TCP, client.getsockname(), ("127.0.0.1", port))
        assert rest == b"magic!"
        assert "{}:{}".format(*client.getsockname()) in leave(client, proxy)


@IN_FRONT
def test_the_limit_of_an_address_is_that_of_the_real_client(in_front: InFront, tmp_path: Path) -> None:
    settings = quick(proxy_protocol_from=TRUSTED, max_connections_per_ip=1)
    with (
        Backend(named("in")) as backend,
        ProxyThread(
            fallback=backend.address, settings=settings, expected=["refused a connection from 127.0.0.7:"]
        ) as proxy,
        in_front(tmp_path, proxy.port) as port,
        ExitStack() as stack,
    ):

        def enter(ip: str) -> socket.socket:
            client = stack.enter_context(connect(("127.0.0.1", port), source=ip))
            client.sendall(b"?")
            return client

        assert receive(enter("127.0.0.7"), 3) == b"in?"
        assert receive_all(enter("127.0.0.7")).data == b""
        assert receive(enter("127.0.0.8"), 3) == b"in?"
        assert proxy.counters.refusals == {"max_connections_per_ip": 1}


@IN_FRONT
def test_a_header_from_an_untrusted_address_counts_as_ordinary_bytes(
    in_front: InFront, tmp_path: Path
) -> None:
    settings = quick(proxy_protocol_from=("127.0.0.2",))
    with (
        Backend(take) as backend,
        ProxyThread(fallback=backend.address, settings=settings) as proxy,
        in_front(tmp_path, proxy.port) as port,
        connect(("127.0.0.1", port), source="127.0.0.7") as client,
    ):
        client.sendall(b"magic!")
        header, rest = arrived(backend)
        assert (header.source, rest) == (client.getsockname(), b"magic!")
        assert {one.rpartition(":")[0] for one in leave(client, proxy)} == {"127.0.0.1"}


def test_for_a_client_of_a_unix_socket_the_proxy_counts_as_the_client(tmp_path: Path) -> None:
    settings = quick(proxy_protocol_from=TRUSTED)
    with (
        Backend(take) as backend,
        ProxyThread(Route(MAGIC, backend.address), settings=settings) as proxy,
        nginx(tmp_path, proxy.port),
        socket.socket(socket.AF_UNIX) as client,
    ):
        front = str(tmp_path / "front.sock")
        eventually(lambda: client.connect_ex(front) == 0, "nginx listens there too")
        client.sendall(b"magic!")
        assert backend.result() == b"magic!"
        assert {one.rpartition(":")[0] for one in leave(client, proxy)} == {"127.0.0.1"}


@pytest.mark.parametrize("has_certificate", [False, True])
def test_tls_information_of_haproxy_does_not_hide_the_client(
    tmp_path: Path, *, has_certificate: bool
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    authority.issue_cert("www.example.com").private_key_and_cert_chain_pem.write_to_path(
        str(tmp_path / "pem")
    )
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.set_alpn_protocols(["h2"])
    if has_certificate:
        authority.issue_cert("client.example.com").configure_cert(context)
    with (
        Backend(take) as backend,
        ProxyThread(
            Route(MAGIC, backend.address, proxy_protocol="v2"), settings=quick(proxy_protocol_from=TRUSTED)
        ) as proxy,
        haproxy(tmp_path, HAPROXY_TLS.format(folder=tmp_path, target=proxy.port)) as port,
        connect(("127.0.0.1", port), source="127.0.0.7") as plain,
        context.wrap_socket(plain, server_hostname="www.example.com") as client,
    ):
        client.sendall(b"magic!")
        header, rest = arrived(backend)
        assert header.source is not None
        assert (header.source[0], header.destination, rest) == ("127.0.0.7", ("127.0.0.1", port), b"magic!")


@pytest.mark.parametrize("send", ["send-proxy", "send-proxy-v2"])
def test_health_checks_of_haproxy_succeed_and_affect_no_client(send: str, tmp_path: Path) -> None:
    settings = quick(proxy_protocol_from=TRUSTED, max_connections_per_ip=1)
    # In checks of version 1, the header names HAProxy's own address. An open connection, such as the one by
    # which haproxy() waits for the listener, keeps the next one out. HAProxy counts that as up all the
    # same.
    expected = ["refused a connection from 127.0.0.1:"] if send == "send-proxy" else []
    send += " check inter 200ms fall 4"
    with (
        Backend(named("in")) as backend,
        ProxyThread(fallback=backend.address, settings=settings, expected=expected) as proxy,
        haproxy(tmp_path, HAPROXY.format(target=proxy.port, send=send)) as port,
    ):
        eventually(lambda: proxy.counters.finished > 6, "checks enough to be down by now")
        with connect(("127.0.0.1", port), source="127.0.0.7") as client:
            client.sendall(b"?")
            assert receive(client, 3) == b"in?"
