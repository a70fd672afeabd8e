"""A process that has no descriptors left."""

from __future__ import annotations

import resource
import select
import shlex
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from support.backends import Backend, echo
from support.clients import PATIENCE, connect
from support.process import Running, children, run
from support.programs import require_program
from support.proxy import eventually
from support.rights import require_root
from support.status import status_of

if TYPE_CHECKING:
    import socket
    from pathlib import Path


def limits_of(pid: int) -> tuple[int, int]:
    return resource.prlimit(pid, resource.RLIMIT_NOFILE)


def configured(folder: Path, fallback: str, workers: int) -> Path:
    """Write a configuration file."""
    path = folder / "refractium.toml"
    path.write_text(
        f'[server]\nbind = "127.0.0.1"\nport = 0\nworkers = {workers}\nfallback_tcp = "{fallback}"\n'
        "max_connections_per_ip = 10000\npeek_timeout_ms = 5000\n"
    )
    return path


def take_answers(clients: list[socket.socket]) -> None:
    """Receive one byte for each client and close the client, which makes room for waiting ones."""
    while clients:
        answered, _, _ = select.select(clients, (), (), PATIENCE)
        assert answered, f"{len(clients)} clients are not served"
        for client in answered:
            assert client.recv(1) == b"?"
            client.close()
            clients.remove(client)


def test_the_program_raises_its_limit_to_the_hard_limit(tmp_path: Path) -> None:
    file = configured(tmp_path, "127.0.0.1:1", workers=1)
    with Running("--config", file, shell='ulimit -Sn 256 && exec "$@"') as proxy:  # noqa: S604
        proxy.await_out("Listening on")
        soft, hard = limits_of(proxy.pid)
        assert soft == hard > 256
        assert proxy.terminate() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_at_the_limit_clients_wait_and_status_still_answers(tmp_path: Path, workers: int) -> None:
    with Backend(echo) as backend:
        file = configured(tmp_path, backend.address, workers)
        with Running("--config", file) as proxy, ExitStack() as stack:
            proxy.await_out("Listening on")
            status_of(proxy)
            serving = children(proxy.pid) if workers > 1 else [proxy.pid]
            for pid in serving:
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (80, 80))
            clients = [stack.enter_context(connect(proxy.address)) for _ in range(150)]
            for client in clients:
                client.sendall(b"?")
            proxy.await_err("Too many open files")
            eventually(
                lambda: status_of(proxy).tcp.active > workers * 20,
                "as many clients are in as the limit allows",
            )
            time.sleep(0.3)  # time in which further clients could come in, and must not
            assert status_of(proxy).tcp.active <= workers * 40
            assert run("status", "-p", proxy.port).code == 0
            # Clients that leave make room for waiting clients, until all have been served.
            take_answers(clients)
            eventually(lambda: status_of(proxy).tcp.active == 0, "all clients have left")
            assert status_of(proxy).tcp.accepted == 150
            assert proxy.terminate() == 0


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_without_proc_more_clients_than_descriptors_are_all_served(tmp_path: Path, workers: int) -> None:
    require_root()
    hide = 'mount -t tmpfs tmpfs /proc && ulimit -n 256 && exec "$@"'
    shell = f'exec {require_program("unshare")} --mount sh -c {shlex.quote(hide)} sh "$@"'
    with Backend(echo) as backend:
        file = configured(tmp_path, backend.address, workers)
        with Running("--config", file, shell=shell) as proxy, ExitStack() as stack:
            proxy.await_out("Listening on")
            clients = [stack.enter_context(connect(proxy.address)) for _ in range(workers * 300)]
            proxy.await_err("Too many open files")
            # Time in which further clients could come in, and must not: no descriptor is left for their
            # backends.
            time.sleep(0.5)
            assert status_of(proxy).tcp.active <= workers * 128
            for client in clients:
                client.sendall(b"?")
            take_answers(clients)
            eventually(lambda: status_of(proxy).tcp.active == 0, "all clients have left")
            assert proxy.terminate() == 0
