"""HAProxy and nginx, each on a free port, while the block runs."""

from __future__ import annotations

import contextlib
import subprocess
from typing import TYPE_CHECKING

from support.clients import PATIENCE
from support.process import free_port, is_listening
from support.programs import require_program
from support.proxy import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_HAPROXY = """
defaults
    mode http
    timeout connect 10s
    timeout client 10s
    timeout server 10s
"""
_NGINX = """
daemon off;
master_process off;
pid nginx.pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    {http}
}}
"""


@contextlib.contextmanager
def haproxy(folder: Path, configuration: str) -> Iterator[int]:
    """Run HAProxy.

    Args:
        folder: the folder for its configuration.
        configuration: sections; ``PORT`` stands for the port.

    Yields:
        The port.
    """
    program, port = require_program("haproxy"), free_port()
    file = folder / "haproxy.cfg"
    file.write_text(_HAPROXY + configuration.replace("PORT", str(port)))
    with _running(folder, port, program, "-db", "-f", str(file)):
        yield port


@contextlib.contextmanager
def nginx(folder: Path, http: str) -> Iterator[int]:
    """Run nginx as `haproxy` runs HAProxy, with `http` as the content of its ``http`` block."""
    program, port = require_program("nginx"), free_port()
    file = folder / "nginx.conf"
    file.write_text(_NGINX.format(http=http.replace("PORT", str(port))))
    with _running(folder, port, program, "-p", str(folder), "-c", str(file), "-e", "stderr"):
        yield port


@contextlib.contextmanager
def _running(folder: Path, port: int, *command: str) -> Iterator[None]:
    said = folder / "said"
    with said.open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        eventually(lambda: process.poll() is not None or is_listening(port), f"{command[0]} listens")
        assert process.poll() is None, said.read_text()
        yield
    finally:
        process.kill()
        process.wait(PATIENCE)
