"""HAProxy and nginx behind Refractium and in front of it agree with it on the client."""

from __future__ import annotations

import ssl
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import pytest
import trustme

from proxy_protocol.programs import haproxy, nginx
from refractium import Health, Route
from refractium_proto_http import Http
from refractium_proto_https import Https
from support.backends import Backend, named
from support.clients import connect, receive, receive_all
from support.ipv6 import LOOPBACKS
from support.proxy import ProxyThread, quick

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from refractium.settings import ProxyVersion

REQUEST: Final = b"GET / HTTP/1.1\r\nHost: www.example.com\r\nConnection: close\r\n\r\n"
VERSIONS: Final = pytest.mark.parametrize("version", ["v1", "v2"])
HOSTS: Final = pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
BEHIND_HAPROXY: Final = """
frontend behind
    bind {host}:PORT accept-proxy {tls}
    http-request return content-type text/plain lf-string "%[src] %[src_port] %[dst] %[dst_port]{more}"
"""
BEHIND_NGINX: Final = """
server {
    listen 127.0.0.1:PORT proxy_protocol;
    set $client "$proxy_protocol_addr $proxy_protocol_port";
    location / {
        return 200 "$client $proxy_protocol_server_addr $proxy_protocol_server_port";
    }
}
"""
IN_FRONT: Final = f"""
listen front
    mode tcp
    bind {",".join(f"{host}:PORT" for host in LOOPBACKS)}
    server ours 127.0.0.1:{{port}} {{send}}
"""


def body(sock: socket.socket) -> str:
    sock.sendall(REQUEST)
    answer = receive_all(sock).data
    assert answer.startswith(b"HTTP/1.1 200"), answer
    return answer.partition(b"\r\n\r\n")[2].decode()


def both_ends(sock: socket.socket) -> str:
    """Return both ends of a connection, in the form in which the programs write them."""
    return " ".join(str(part) for end in (sock.getsockname(), sock.getpeername()) for part in end[:2])


@VERSIONS
@HOSTS
def test_haproxy_as_a_backend_sees_the_client(version: ProxyVersion, host: str, tmp_path: Path) -> None:
    with (
        haproxy(tmp_path, BEHIND_HAPROXY.format(host="127.0.0.1", tls="", more="")) as port,
        ProxyThread(Route(Http(), f"127.0.0.1:{port}", proxy_protocol=version), host=host) as proxy,
        proxy.connect() as client,
    ):
        assert body(client) == both_ends(client)


@VERSIONS
@HOSTS
def test_nginx_as_a_backend_sees_the_client(version: ProxyVersion, host: str, tmp_path: Path) -> None:
    with (
        nginx(tmp_path, BEHIND_NGINX) as port,
        ProxyThread(Route(Http(), f"127.0.0.1:{port}", proxy_protocol=version), host=host) as proxy,
        proxy.connect() as client,
    ):
        assert body(client) == both_ends(client)


def test_haproxy_as_a_backend_gets_the_server_name_of_a_tls_client(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.issue_cert("www.example.com").private_key_and_cert_chain_pem.write_to_path(
        str(tmp_path / "pem")
    )
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.set_alpn_protocols(["http/1.1"])
    behind = BEHIND_HAPROXY.format(
        host="127.0.0.1", tls=f"ssl crt {tmp_path / 'pem'}", more=" %[fc_pp_authority]"
    )
    with (
        haproxy(tmp_path, behind) as port,
        ProxyThread(Route(Https(), f"127.0.0.1:{port}", proxy_protocol="v2")) as proxy,
        proxy.connect() as client,
        context.wrap_socket(client, server_hostname="www.example.com") as secured,
    ):
        assert body(secured) == f"{both_ends(secured)} www.example.com"


@VERSIONS
@pytest.mark.parametrize("program", ["haproxy", "nginx"])
def test_a_health_check_of_a_backend_that_wants_a_header_succeeds(
    version: ProxyVersion, program: str, tmp_path: Path
) -> None:
    running = (
        nginx(tmp_path, BEHIND_NGINX)
        if program == "nginx"
        else haproxy(tmp_path, BEHIND_HAPROXY.format(host="127.0.0.1", tls="", more=""))
    )
    with running as port:
        route = Route(Http(), f"127.0.0.1:{port}", health=Health(kind="http"), proxy_protocol=version)
        with ProxyThread(route) as proxy:
            (backend,) = proxy.engine._plan.pools[route.transport].backends
            assert backend.state.availability == "up"


@pytest.mark.parametrize("send", ["send-proxy", "send-proxy-v2"])
@pytest.mark.parametrize("source", ["127.0.0.5", "::1"])
def test_with_haproxy_in_front_its_header_names_the_client(send: str, source: str, tmp_path: Path) -> None:
    settings = quick(proxy_protocol_from=("127.0.0.1",), max_connections_per_ip=2)
    with (
        Backend(named("in")) as backend,
        ProxyThread(fallback=backend.address, settings=settings, expected=["refused a connection"]) as proxy,
        haproxy(tmp_path, IN_FRONT.format(port=proxy.port, send=send)) as port,
        ExitStack() as stack,
    ):
        host = "::1" if ":" in source else "127.0.0.1"
        clients = []
        for _ in range(2):
            client = stack.enter_context(connect((host, port), source=source))
            client.sendall(b"?")
            assert receive(client, 3) == b"in?"
            clients.append(client)
        with connect((host, port), source=source) as one_too_many:
            one_too_many.sendall(b"?")
            assert receive_all(one_too_many).data == b""
        with connect(("127.0.0.1", port), source="127.0.0.6") as other:
            other.sendall(b"?")
            assert receive(other, 3) == b"in?"
        assert proxy.service.limiter._by_origin.get(proxy.service.limiter.origin(source)) == 2
        proxy.await_active(2)
        names = {f"[{one.getsockname()[0]}]" if ":" in source else source for one in clients}
        ports = {one.getsockname()[1] for one in clients}
        for client in clients:
            client.close()
        proxy.await_active(0)
        # The connection by which haproxy() waits for its listener may have come through as well.
        seen = {proxy.next_end().client for _ in range(proxy.counters.finished)}
        assert {f"{name}:{number}" for name in names for number in ports} <= seen


def test_a_chain_of_haproxies_passes_the_client_through_refractium(tmp_path: Path) -> None:
    (tmp_path / "behind").mkdir()
    settings = quick(proxy_protocol_from=("127.0.0.0/8",))
    with (
        haproxy(tmp_path / "behind", BEHIND_HAPROXY.format(host="127.0.0.1", tls="", more="")) as behind,
        ProxyThread(Route(Http(), f"127.0.0.1:{behind}", proxy_protocol="v2"), settings=settings) as proxy,
        haproxy(tmp_path, IN_FRONT.format(port=proxy.port, send="send-proxy")) as front,
        connect(("127.0.0.1", front), source="127.0.0.9") as client,
    ):
        assert body(client) == both_ends(client)
