"""``refractium status`` and ``[metrics]`` as users see them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from refractium.observe import control
from support.backends import Backend, echo
from support.clients import PATIENCE, connect
from support.datagrams import UdpBackend
from support.datagrams import ask as ask_datagram
from support.datagrams import echo as udp_echo
from support.pages import DOCS
from support.process import PROGRAM, RUNTIME, Running, environment, free_port, run, serving
from support.programs import require_program
from support.proxy import eventually
from support.rights import for_every_user, require_root

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.cli import Cli

PRINTED = r"^Metrics on (http://127\.0\.0\.1:(\d+)/metrics)$"


def config(port: int, backend: str, *lines: str, server: str = "") -> str:
    return "\n".join(
        (
            "[server]",
            'bind = "127.0.0.1"',
            f"port = {port}",
            server,
            "[[protocols]]",
            'name = "alpha"',
            'patterns = ["ALPHA"]',
            'transport = "tcp"',
            f'forward_to = "{backend}"',
            *lines,
        )
    )


def ask(port: int, data: bytes) -> bytes:
    with connect(("127.0.0.1", port)) as client:
        client.sendall(data)
        return client.recv(100)


def scrape(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - our own address
        text: str = answer.read().decode()
        return text


def told(*arguments: object) -> dict[str, Any]:
    done = run("status", *arguments, "--json")
    assert (done.code, done.err) == (0, "")
    status: dict[str, Any] = json.loads(done.out)
    return status


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "refractium.toml"


def test_status_shows_listeners_routes_counts_and_the_last_reload(file: Path) -> None:
    port = free_port()
    with Backend(echo) as backend:
        file.write_text(config(port, backend.address))
        with serving("-c", file) as program:
            assert ask(port, b"ALPHA 7") == b"ALPHA 7"
            program.await_err("alpha -> ")  # the end of the connection
            status = told("-c", file)
            listener = {"transport": "tcp", "address": f"127.0.0.1:{port}", "routes": ["alpha"], "paused": ""}
            assert status["listeners"] == [listener]
            (route,) = status["routes"]
            assert route["backends"][0]["address"] == backend.address
            assert (status["tcp"]["accepted"], status["tcp"]["refused"]) == (1, {})
            assert status["tcp"]["routes"][0]["bytes_up"] == 7
            assert status["last_reload"] is None
            file.write_text("[server]\nprt = 1\n")
            program.await_err("not reloaded")
            shown = run("status", "-p", port)
            assert (shown.code, shown.err) == (0, "")
            for text in (f"127.0.0.1:{port}", backend.address, "alpha", "1 closed", "failed", "did you mean"):
                assert text in shown.out
            file.write_text(config(port, backend.address, "on_timeout = true"))
            program.await_err("configuration 2 is in force")
            status = told("-p", port)
            assert (status["generation"], status["reloads_failed"]) == (2, 1)
            assert status["last_reload"]["ok"]
            assert status["tcp"]["accepted"] == 1
            assert program.terminate() == 0
        gone = run("status", "-p", port)
        assert (gone.code, gone.out) == (1, "")
        assert f"no control socket at {RUNTIME.name}/refractium-{port}.sock" in gone.err


def test_any_free_port_has_a_control_socket_of_that_name() -> None:
    with serving("-b", "127.0.0.1", "-p", 0, "-f", "ssh=127.0.0.1:1") as program:
        assert told("-p", program.port)["listeners"][0]["address"] == f"127.0.0.1:{program.port}"
    unknown = run("status", "-p", 0)
    assert unknown.code == 2
    assert "port with -p" in unknown.err


def test_the_file_may_set_the_path_of_the_control_socket_and_change_it(file: Path) -> None:
    port = free_port()
    first, second = file.with_name("one.sock"), file.with_name("two.sock")
    file.write_text(config(port, "127.0.0.1:1", server=f'control = "{first}"'))
    with serving("-c", file) as program:
        assert told("-c", file) | {"at": 0} == told("--control", first) | {"at": 0}
        file.write_text(config(port, "127.0.0.1:1", server=f'control = "{second}"'))
        program.await_err("configuration 2 is in force")
        eventually(second.exists, "the new control socket exists")
        assert told("-c", file)["generation"] == 2
        assert not first.exists()
        assert program.terminate() == 0
    assert not second.exists()


def test_a_second_instance_leaves_the_socket_of_the_first_and_a_killed_one_is_replaced(file: Path) -> None:
    path = file.with_name("control.sock")
    file.write_text(config(0, "127.0.0.1:1", server=f'control = "{path}"'))
    with serving("-c", file) as first:
        with serving("-c", file) as second:
            second.await_err(f"warning no control socket at {path}: Address already in use")
            assert second.terminate() == 0
        assert told("--control", path)["listeners"][0]["address"] == first.addresses[0]
        first.signal(signal.SIGKILL)
        first.wait()
    assert path.exists()
    with serving("-c", file) as third:
        eventually(lambda: run("status", "--control", path).code == 0, "the control socket answers")
        assert told("--control", path)["listeners"][0]["address"] == third.addresses[0]
        assert "control socket" not in third.err


def test_metrics_are_served_at_the_configured_address_and_follow_a_reload(file: Path) -> None:
    port = free_port()
    with Backend(echo) as backend:
        file.write_text(config(port, backend.address, "[metrics]", 'bind = "127.0.0.1:0"'))
        with serving("-c", file) as program:
            url = program.await_out(PRINTED)[1]
            assert ask(port, b"ALPHA") == b"ALPHA"
            eventually(
                lambda: (
                    'refractium_connections_total{ended="closed",route="alpha",transport="tcp"} 1.0'
                    in scrape(url)
                ),
                "one connection",
            )
            other = free_port()
            file.write_text(config(port, backend.address, "[metrics]", f'bind = "127.0.0.1:{other}"'))
            moved = program.await_out(PRINTED.replace(r"(\d+)", str(other)))[1]
            assert 'refractium_reloads_total{result="ok"} 1.0' in scrape(moved)
            with pytest.raises(OSError, match="refused"):
                scrape(url)
            file.write_text(config(port, backend.address))
            program.await_err("configuration 3 is in force")
            with pytest.raises(OSError, match="refused"):
                scrape(moved)
            assert program.terminate() == 0


def test_a_metrics_address_in_use_stops_the_start_but_not_a_running_instance(file: Path) -> None:
    with Backend(echo) as taken:
        port = free_port()
        file.write_text(config(port, "127.0.0.1:1", "[metrics]", f'bind = "{taken.address}"'))
        with Running("-c", file) as program:
            assert program.wait() == 1
            assert f"cannot listen on {taken.address}" in program.err
        file.write_text(config(port, "127.0.0.1:1"))
        with serving("-c", file) as program:
            file.write_text(config(port, "127.0.0.1:1", "[metrics]", f'bind = "{taken.address}"'))
            program.await_err(f"not reloaded: cannot listen on {taken.address}")
            assert told("-p", port)["last_reload"]["errors"] == [
                f"cannot listen on {taken.address}: Address already in use"
            ]
            assert program.terminate() == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('bind = "9100"', "metrics.bind: no port: write HOST:PORT"),
        ('bind = "127.0.0.1:65536"', "metrics.bind: port 65536 is not between 0 and 65535"),
        ('bind = "::1:9100"', "metrics.bind: an IPv6 address needs brackets"),
        ('bind = "a b:9100"', "metrics.bind: 'a b' is not a host name"),
        ('bind = "unix:/run/metrics.sock"', "metrics.bind: metrics are not served at a unix socket"),
        ("bind = 9100", "metrics.bind: expected str, got int"),
        ('hosts = ["not a name"]', "metrics.hosts[0]: not a host name"),
        ("hosts = 7", "metrics.hosts: expected array, got int"),
        ('bnd = "127.0.0.1:1"', "metrics.bnd: unknown key: did you mean 'bind'?"),
    ],
)
def test_a_bad_address_for_metrics_is_reported(file: Path, line: str, message: str) -> None:
    file.write_text(config(0, "127.0.0.1:1", "[metrics]", line))
    done = run("check", "-c", file)
    assert done.code == 2
    assert message in done.err


def test_a_bad_path_for_the_control_socket_is_reported(file: Path) -> None:
    file.write_text(config(0, "127.0.0.1:1", server='control = "relative.sock"'))
    done = run("check", "-c", file)
    assert done.code == 2
    assert "server.control" in done.err


def test_clients_are_served_although_the_folder_for_the_control_socket_is_missing(
    tmp_path: Path,
) -> None:
    gone = environment(XDG_RUNTIME_DIR=str(tmp_path / "gone"))
    with (
        Backend(echo) as backend,
        serving("-b", "127.0.0.1", "-p", 0, "-f", f"ssh={backend.address}", env=gone) as program,
    ):
        program.await_err("warning no control socket at .*: No such file or directory")
        assert ask(program.port, b"SSH-2.0-x\r\n") == b"SSH-2.0-x\r\n"
        assert program.terminate() == 0


@pytest.fixture
def run_folder() -> Iterator[Path]:
    """Return a folder instead of ``/run``, in which the paths of sockets stay short (unix(7), sun_path)."""
    with tempfile.TemporaryDirectory(prefix="refractium-") as folder:
        yield Path(folder)


@pytest.fixture
def runtime(run_folder: Path) -> dict[str, str]:
    """Return an environment whose folder for control sockets belongs to this test alone."""
    folder = run_folder / "private"
    folder.mkdir()
    return environment(XDG_RUNTIME_DIR=str(folder))


@pytest.fixture
def as_service(runtime: dict[str, str], run_folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Return the command line of a user beside a service with control sockets in ``/run/refractium``."""
    monkeypatch.setattr(control, "_RUN", run_folder)
    (run_folder / "refractium").symlink_to(runtime["XDG_RUNTIME_DIR"])  # as DynamicUser=yes does
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(run_folder / "user"))
    return cli


def test_status_without_options_finds_the_service_whatever_its_port(
    runtime: dict[str, str], as_service: Cli
) -> None:
    nothing = as_service("status")
    assert nothing.code == 1
    assert "--control" in nothing.err
    assert "its log says why" in nothing.err
    with serving("-b", "127.0.0.1", "-p", 0, "-f", "ssh=127.0.0.1:1", env=runtime) as program:
        eventually(lambda: as_service("status", "-p", program.port).code == 0, "the instance answers")
        done = as_service("status", "--json")
        assert (done.code, done.err) == (0, "")
        assert json.loads(done.out)["listeners"][0]["address"] == program.addresses[0]
        with serving("-b", "127.0.0.1", "-p", 0, "-f", "ssh=127.0.0.1:1", env=runtime) as second:
            eventually(lambda: as_service("status", "-p", second.port).code == 0, "the second one answers")
            several = as_service("status")
            assert (several.code, several.out) == (1, "")
            assert f"refractium-{program.port}.sock" in several.err
            assert f"refractium-{second.port}.sock" in several.err
            second.signal(signal.SIGKILL)
            second.wait()
        assert as_service("status").code == 0, "the file of a dead instance stands in no way"


@pytest.mark.parametrize(
    "broken",
    [
        b"[server\n",
        b'[server]\nport = "x"\n',
        b"[server]\nport = 1\nprt = 2\n",
        b"# \xff\n",
        b"#" * 2_000_000,
    ],
)
def test_status_reports_a_broken_file_and_asks_the_instance_that_was_started_from_it(
    runtime: dict[str, str], as_service: Cli, broken: bytes
) -> None:
    file = as_service.write(config(free_port(), "127.0.0.1:1"))
    other = ("-b", "127.0.0.1", "-p", 0, "-f", "ssh=127.0.0.1:1")
    with (
        serving("-c", file.name, cwd=file.parent, env=runtime) as program,
        serving(*other, cwd=file.parent.parent, env=runtime) as two,
    ):
        eventually(lambda: as_service("status", "-p", program.port).code == 0, "the instance answers")
        eventually(lambda: as_service("status", "-p", two.port).code == 0, "the second instance answers")
        file.write_bytes(broken)
        for arguments in (), ("-c", file):
            done = as_service("status", *arguments, "--json")
            assert done.code == 0
            status = json.loads(done.out)
            assert status["listeners"][0]["address"] == program.addresses[0]
            assert status["file"] == str(file)
            assert f"warning: {file.name}:" in done.err.replace(f"{file.parent}/", "")
            assert "the file is broken" in done.err
        program.terminate()
        nobody = as_service("status")
        assert (nobody.code, nobody.out) == (1, "")
        assert f"no running instance was started from {file.name}" in nobody.err


@pytest.mark.parametrize("refused", ["", '[[protocols]]\nname = "htps"\nforward_to = "127.0.0.1:1"\n'])
def test_status_reports_a_file_that_is_not_in_force(
    runtime: dict[str, str], as_service: Cli, refused: str
) -> None:
    file = as_service.write(config(free_port(), "127.0.0.1:1"))
    with serving("-c", file, env=runtime) as program:
        eventually(lambda: as_service("status").code == 0, "the instance answers")
        file.write_text(refused)
        done = as_service("status", "--json")
        assert json.loads(done.out)["listeners"][0]["address"] == program.addresses[0]
        assert "is not in force" in done.err
        program.terminate()
    nobody = as_service("status")
    assert (nobody.code, nobody.out) == (1, "")
    assert "no control socket at " in nobody.err


def test_status_reports_a_missing_file_and_asks_the_instance_that_was_started_from_it(
    runtime: dict[str, str], as_service: Cli
) -> None:
    file = as_service.write(config(free_port(), "127.0.0.1:1"))
    other = ("-b", "127.0.0.1", "-p", 0, "-f", "ssh=127.0.0.1:1")
    with (
        serving("-c", file.name, cwd=file.parent, env=runtime) as program,
        serving(*other, cwd=file.parent.parent, env=runtime) as two,
    ):
        eventually(lambda: as_service("status", "-p", program.port).code == 0, "the instance answers")
        eventually(lambda: as_service("status", "-p", two.port).code == 0, "the other one answers")
        file.unlink()
        for path in file, file.name:
            done = as_service("status", "-c", path, "--json")
            assert json.loads(done.out)["file"] == str(file)
            assert "the file is missing" in done.err
        program.terminate()
        nobody = as_service("status", "-c", file.name)
        assert (nobody.code, nobody.out) == (1, "")
        assert f"no running instance was started from {file.name}" in nobody.err


def test_status_beside_a_file_with_port_0_finds_the_instance(
    runtime: dict[str, str], as_service: Cli
) -> None:
    file = as_service.write(config(0, "127.0.0.1:1"))
    with serving("-c", file, env=runtime) as program:
        eventually(lambda: as_service("status", "-p", program.port).code == 0, "the instance answers")
        assert as_service("status").code == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
@pytest.mark.usefixtures("as_service")
def test_status_tells_a_user_that_the_service_belongs_to_another_user(run_folder: Path) -> None:
    (run_folder / "private").chmod(0o700)
    code = f"""
import os
from pathlib import Path
from refractium import RefractiumError
from refractium.observe import control
control._RUN = Path({str(run_folder)!r})
os.chdir(control._RUN)
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
try:
    control.ask_the_only_one()
except RefractiumError as error:
    print(error)
"""
    run_folder.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        # Coverage would write its data as that user, who may not write there.
        env={key: value for key, value in os.environ.items() if not key.startswith("COV")},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "refractium/refractium-*.sock belongs to another user" in done.stdout


def test_an_instance_that_may_not_write_to_the_folder_logs_what_to_set(tmp_path: Path) -> None:
    require_root()
    as_nobody = 'setpriv --reuid=65534 --regid=65534 --clear-groups "$@"'
    env = environment()
    del env["XDG_RUNTIME_DIR"]
    shell = for_every_user(tmp_path).removesuffix('"$@"') + as_nobody
    with Running("-b", "127.0.0.1", "-p", 0, "-f", "ssh=127.0.0.1:1", env=env, shell=shell) as program:
        line = program.await_err("no control socket at .*")[0]
        assert "XDG_RUNTIME_DIR" in line
        assert "server.control" in line
        assert program.err.count("no control socket") == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_the_command_for_sighup_in_the_docs_reloads_the_instance_beside_the_file(
    file: Path, runtime: dict[str, str], workers: int
) -> None:
    jq = require_program("jq")
    page = (DOCS / "how-to" / "reload.md").read_text("utf-8")
    found = re.search(r"^\$ (kill -HUP .*)$", page, re.MULTILINE)
    assert found
    file.write_text(config(free_port(), "127.0.0.1:1"))
    path = os.pathsep.join((str(Path(PROGRAM).parent), str(Path(jq).parent), os.environ["PATH"]))
    env = {**runtime, "PATH": path}
    with (
        serving("-c", file, "--no-hot-reload", "--workers", workers, env=env) as program,
        serving("-b", "127.0.0.1", "-p", 0, "-f", "ssh=127.0.0.1:1", env=env) as other,
    ):
        shell = ["sh", "-c", found[1]]
        subprocess.run(shell, check=True, timeout=PATIENCE, env=env, cwd=file.parent)
        program.await_err("configuration 2 is in force")
        shown = run("status", "-c", file, env=env).out.splitlines()[0]
        assert re.search(rf"\bprocess {program.pid},", shown)
        assert "configuration 2" not in other.err


@pytest.mark.parametrize("workers", [1, 2])
def test_a_backend_that_has_served_a_client_is_up(file: Path, workers: int) -> None:
    with (
        Backend(echo) as tcp,
        UdpBackend(udp_echo) as udp,
        Backend(echo) as rest,
        UdpBackend(udp_echo) as other,
    ):
        lines = (
            "[[protocols]]",
            'name = "beta"',
            'patterns = ["BETA"]',
            'transport = "udp"',
            f'forward_to = "{udp.address}"',
        )
        fallbacks = f'fallback_tcp = "{rest.address}"\nfallback_udp = "{other.address}"\nworkers = {workers}'
        file.write_text(config(free_port(), tcp.address, *lines, server=fallbacks))
        with serving("-c", file) as program:
            states = {one["backends"][0]["state"] for one in told("-c", file)["routes"]}
            assert states == {"unknown"}
            for beginning in b"ALPHA", b"other":
                assert ask(program.port, beginning) == beginning
            for datagram in b"BETA", b"other":
                assert ask_datagram(program.address, datagram) == datagram

            def are_up() -> bool:
                routes = told("-c", file)["routes"]
                return [one["backends"][0]["state"] for one in routes] == ["up"] * 4

            eventually(are_up, "all four routes are up")
