"""systemd accepts the units that the pages show, and the program works within them."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
from configparser import ConfigParser
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from refractium import Settings
from refractium.observe import control
from support.backends import Backend, sink
from support.clients import MIB, PATIENCE, ask, payload
from support.datagrams import UdpBackend, echo
from support.datagrams import ask as ask_datagram
from support.pages import pages
from support.process import PROGRAM, Running, environment, run
from support.programs import require_program
from support.proxy import eventually

if TYPE_CHECKING:
    from collections.abc import Mapping

UNITS: Final = {
    name: text
    for page in pages()
    for name, text in re.findall(
        r"^`/etc/systemd/system/(\S+)`:\n\n```ini\n(.*?)^```$",
        page.read_text("utf-8"),
        re.DOTALL | re.MULTILINE,
    )
}
EXPOSURE: Final = 20
"""Tenths of the points of ``systemd-analyze security``; 0 is the best value and 100 the worst."""


def section(name: str) -> Mapping[str, str]:
    """Return a section of the unit of the service."""
    parser = ConfigParser(interpolation=None, strict=False)  # some settings are lists with one item a line
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(UNITS["refractium.service"])
    return parser[name]


def test_there_are_a_service_and_its_socket() -> None:
    assert {"refractium.service", "refractium.socket"} <= UNITS.keys()


@pytest.mark.parametrize("name", UNITS)
def test_systemd_analyze_verify_accepts_the_units(name: str, tmp_path: Path) -> None:
    analyze = require_program("systemd-analyze")
    for unit, text in UNITS.items():  # the unit of the socket needs the service beside it
        (tmp_path / unit).write_text(text.replace("/usr/local/bin/refractium", PROGRAM))
    done = subprocess.run(
        [analyze, "verify", "--man=no", str(tmp_path / name)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_exposure_of_the_service_is_low(tmp_path: Path) -> None:
    analyze = require_program("systemd-analyze")
    unit = tmp_path / "refractium.service"
    unit.write_text(UNITS[unit.name].replace("/usr/local/bin/refractium", PROGRAM))
    done = subprocess.run(
        [analyze, "security", "--no-pager", "--offline=true", f"--threshold={EXPOSURE}", str(unit)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_command_of_the_service_is_understood() -> None:
    program, *words = shlex.split(section("Service")["ExecStart"])
    assert Path(program).name == "refractium"
    done = run(*words, "--help")
    assert (done.code, done.err) == (0, "")


def test_status_searches_the_runtime_directory_of_the_service() -> None:
    service = section("Service")
    folder = f"{control._RUN}/{service['RuntimeDirectory']}"
    assert service["Environment"] == f"XDG_RUNTIME_DIR={folder}"
    assert Path(folder).match(f"{control._RUN}/refractium*")


def test_the_limits_of_the_service_leave_room_for_the_limits_of_the_program() -> None:
    service, settings = section("Service"), Settings()
    assert int(service["TimeoutStopSec"]) * 1000 > settings.drain_timeout_ms
    assert int(service["LimitNOFILE"]) > 2 * settings.max_connections


CONFIG: Final = """
fallback_udp = "{datagrams}"
[server]
bind = "127.0.0.1"
port = 0
workers = 2
[metrics]
bind = "127.0.0.1:0"
[[protocols]]
name = "http"
forward_to = "localhost:{port}"
hooks = ["pcap"]
[protocols.health]
kind = "tcp"
timeout_ms = 10000
[[protocols]]
name = "ssh"
forward_to = "127.0.0.1:{port}"
proxy_protocol = "v2"
[plugins.pcap]
path = "{folder}/captured.pcapng"
"""

HINTS: Final = {"mbind"}
"""System calls of memory allocators, which continue if the kernel refuses these calls."""


def system_calls(*names: str) -> set[str]:
    """Return the system calls in groups, such as ``@default``, and the single calls among the names."""
    found = {name for name in names if not name.startswith("@")}
    for group in set(names) - found:
        done = subprocess.run(
            [require_program("systemd-analyze"), "syscall-filter", group],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
        lines = (line.strip() for line in done.stdout.splitlines()[1:])
        found |= system_calls(*(line for line in lines if line and not line.startswith("#")))
    return found


def allowed_calls() -> set[str]:
    """Return the system calls that the unit allows (systemd.exec(5), SystemCallFilter=)."""
    allowed = system_calls("@default")
    for value in re.findall(r"^SystemCallFilter=(.*)$", UNITS["refractium.service"], re.MULTILINE):
        given = system_calls(*value.removeprefix("~").split())
        allowed = allowed - given if value.startswith("~") else allowed | given
    return allowed


@pytest.mark.slow
def test_the_service_allows_everything_that_the_program_asks_of_the_kernel(tmp_path: Path) -> None:
    strace = require_program("strace")
    # Refractium watches the folder of the file, so each line of a trace there would cause more lines.
    trace, file = tmp_path / "strace" / "trace", tmp_path / "refractium.toml"
    trace.parent.mkdir()
    env = environment(XDG_RUNTIME_DIR=str(tmp_path))
    with Backend(sink) as backend, UdpBackend(echo) as datagrams:
        values = {"port": backend.port, "datagrams": datagrams.address, "folder": tmp_path}
        file.write_text(CONFIG.format(**values))
        shell = f'exec {strace} -D -f -q -o {trace} "$@"'
        with Running("-c", file, "--debug", env=env, shell=shell) as program:
            program.await_out("Metrics on")
            # The proxy uses splice(2) if enough bytes wait, and never for a route with a hook.
            data = b"SSH-2.0-x\r\n" + payload("ssh", 8 * MIB)
            eventually(
                lambda: ask(program.address, data).end == "eof" and " splice(" in trace.read_text(),
                "the proxy splices",
            )
            data_for_hook = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" + payload("http", 4 * MIB)
            captured = tmp_path / "captured.pcapng"  # missing until the health check has passed
            eventually(
                lambda: ask(program.address, data_for_hook).end == "eof" and captured.exists(),
                "the hook captures",
            )
            assert ask_datagram(program.address, b"hello") == b"hello"
            assert run("status", "-p", program.port, env=env).code == 0
            file.write_text(CONFIG.format(**values) + "# changed\n")
            program.signal(signal.SIGHUP)
            program.await_err("configuration 2 is in force")
            assert program.terminate() == 0
        end = re.compile(rf"^{program.pid} +\+\+\+ exited with 0 \+\+\+$", re.MULTILINE)
        eventually(lambda: end.search(trace.read_text()) is not None, "strace has written everything")
    told = trace.read_text()
    used = set(re.findall(r"^\d+ +(\w+)\(", told, re.MULTILINE))
    assert {"splice", "accept4", "recvmsg"} <= used
    assert used - allowed_calls() <= HINTS
    families = set(section("Service")["RestrictAddressFamilies"].split())
    assert set(re.findall(r" socket\((AF_\w+)", told)) <= families
    assert not re.search(r"PROT_WRITE\|PROT_EXEC", told), "MemoryDenyWriteExecute=yes forbids such memory"
    assert not re.search(r"CLONE_NEW", told), "RestrictNamespaces=yes forbids new namespaces"
