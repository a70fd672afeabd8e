"""Keepalive probes towards a backend, unless the idle timeout ends the connection before the first probe."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from refractium.proxy import snapshot
from support.backends import Backend, echo
from support.clients import receive
from support.proxy import ProxyThread, quick

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("kernel", "keeps_alive"),
    [("7200\n", False), ("600\n", True), ("3600\n", False), ("?\n", True), (None, True)],
)
def test_a_backend_is_probed_if_the_probe_comes_before_the_idle_timeout(
    kernel: str | None, *, keeps_alive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "tcp_keepalive_time"
    if kernel is not None:
        told.write_text(kernel)
    monkeypatch.setattr(snapshot, "_KEEPALIVE", told)
    with (
        Backend(echo) as backend,
        ProxyThread(fallback=backend.address, settings=quick(idle_timeout_ms=3_600_000)) as proxy,
        proxy.connect() as client,
    ):
        client.sendall(b"?")
        assert receive(client, 1) == b"?"
        (connection,) = proxy.service.connections
        assert connection._weld is not None
        sock = connection._weld.down.sock
        assert bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)) is keeps_alive
