"""Packet hooks of third parties: the guide shows their files unchanged, and they work like ours."""

from __future__ import annotations

import http.client
import json
import re
import stat
import tarfile
from datetime import datetime
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile

import pytest

from support import process
from support.backends import Backend
from support.datagrams import UdpBackend, echo
from support.datagrams import client as udp_client
from support.proxy import eventually

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., str]
    Environment = Callable[..., Path]
    PluginsIn = Callable[[Path], list[dict[str, Any]]]

NAMES = ["hexdump", "trafficlog"]
SHOWN = [
    "pyproject.toml",
    "src/refractium_hooks_trafficlog/__init__.py",
    "src/refractium_hooks_trafficlog/command.py",
    "tests/test_trafficlog.py",
]
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"
DATAGRAM = b"\xffping\x00"
CONFIGURATION = """
fallback_udp = "{udp}"

[server]
bind = "127.0.0.1"
port = 0
udp_session_timeout_ms = 1000
hooks = ["trafficlog", "hexdump"]

[[protocols]]
name = "http"
forward_to = "{http}"

[plugins.trafficlog]
path = "traffic.ndjson"
"""
each_example = pytest.mark.parametrize("name", NAMES)


@pytest.fixture
def bin_(environment: Environment) -> Path:
    """Return the folder of programs of an environment that has both hooks, installed from wheels."""
    return environment(
        "refractium-core",
        "refractium-protocols[http]",
        *(f"refractium-hooks-{name}" for name in NAMES),
        "pytest",
    )


def guide(root: Path) -> str:
    return (root / "docs/tutorials/writing-a-hook.md").read_text()


def files_in(guide: str) -> dict[str, str]:
    """Return the code blocks of the guide that carry the name of a file."""
    return dict(re.findall(r"^`([^`\n]+)`:\n\n```\w+\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL))


def test_the_guide_shows_the_files_as_they_are(root: Path, examples: Path) -> None:
    blocks = files_in(guide(root))
    assert sorted(blocks) == sorted([*SHOWN, "refractium.toml"])
    for name in SHOWN:
        assert blocks[name] == (examples / "refractium-hooks-trafficlog" / name).read_text(), name


def test_the_python_of_the_guide_and_the_reference_works_as_described(
    run: Run, bin_: Path, root: Path, tmp_path: Path
) -> None:
    python = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    text = guide(root)
    shout, its_test = (block for block in python.findall(text) if block not in files_in(text).values())
    (first_answer,) = python.findall((root / "docs/reference/packet-hooks.md").read_text())
    (tmp_path / "shout.py").write_text(shout)
    (tmp_path / "test_shout.py").write_text(its_test)
    assert "1 passed" in run(bin_ / "python", "-m", "pytest", "-q", "-W", "error", cwd=tmp_path)
    (tmp_path / "first_answer.py").write_text(
        f"{first_answer}\nfrom refractium.testing import run_hook\n"
        "run_hook(FirstAnswer, inbound=[b'12345'], outbound=[b'1', b'2'])"
    )
    assert run(bin_ / "python", tmp_path / "first_answer.py") == "http 3.0 ms\n"


def test_the_configurations_of_the_guide_are_valid(
    run: Run, bin_: Path, root: Path, examples: Path, tmp_path: Path
) -> None:
    readmes = [(examples / f"refractium-hooks-{name}/README.md").read_text() for name in NAMES]
    shown = re.findall(r"^```toml\n(.*?)^```$", "\n".join(readmes), re.MULTILINE | re.DOTALL)
    for text in (files_in(guide(root))["refractium.toml"], *shown):
        (tmp_path / "refractium.toml").write_text(text)
        checked = run(bin_ / "refractium", "check", cwd=tmp_path)
        assert any(name in checked for name in NAMES)


@each_example
def test_a_hook_distribution_holds_its_files_and_metadata(
    name: str, dist: Path, examples: Path, root: Path
) -> None:
    module = f"refractium_hooks_{name}"
    example = examples / f"refractium-hooks-{name}"
    own = {path.relative_to(example).as_posix() for path in example.rglob("*.py")} | {
        f"src/{module}/py.typed"
    }
    (wheel,) = dist.glob(f"{module}-*.whl")
    with ZipFile(wheel) as opened:
        in_wheel = set(opened.namelist())
        licence = next(one for one in in_wheel if one.endswith(".dist-info/licenses/LICENSE"))
        assert opened.read(licence) == (root / "LICENSE").read_bytes()
    assert {one for one in in_wheel if ".dist-info/" not in one} == {
        one.removeprefix("src/") for one in own if one.startswith("src/")
    }
    (sdist,) = dist.glob(f"{module}-*.tar.gz")
    with tarfile.open(sdist) as archive:
        in_sdist = {one.partition("/")[2] for one in archive.getnames()}
    assert {*own, "pyproject.toml", "README.md", "LICENSE", "PKG-INFO"} <= in_sdist


def test_the_example_hooks_are_listed_beside_other_plugins(run: Run, bin_: Path) -> None:
    listed = json.loads(run(bin_ / "refractium", "plugins", "list", "--json"))
    assert [plugin["id"] for plugin in listed] == ["hexdump", "http", "trafficlog"]
    assert listed[2] == {
        "id": "trafficlog",
        "kind": "hook",
        "transports": [],
        "distribution": "refractium-hooks-trafficlog",
        "version": "1.0.0",
        "status": "loaded",
        "error": None,
        "summary": "Refractium plugin: logs a line of JSON when a session begins, and a line when it ends",
    }
    assert (listed[0]["kind"], listed[0]["status"]) == ("hook", "loaded")


@each_example
def test_the_tests_of_the_example_hooks_pass_against_the_installed_core(
    name: str, run: Run, bin_: Path, dist: Path, tmp_path: Path
) -> None:
    (sdist,) = dist.glob(f"refractium_hooks_{name}-*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    ran = run(bin_ / "python", "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", cwd=unpacked)
    count = sum(test.read_text().count("\ndef test_") for test in unpacked.glob("tests/*.py"))
    assert re.search(rf"^{count} passed in", ran, re.MULTILINE), ran


@pytest.mark.parametrize(
    ("line", "key", "message"),
    [
        ("path = 5", "path", "expected str, got int"),
        ('path = "traffic.ndjson"\npaht = "x"', "paht", "did you mean 'path'?"),
        ('path = "nowhere/traffic.ndjson"', "path", "there is no folder nowhere"),
    ],
)
def test_a_wrong_setting_of_a_hook_stops_the_start_and_is_named(
    line: str, key: str, message: str, run: Run, bin_: Path, tmp_path: Path
) -> None:
    text = CONFIGURATION.format(http="127.0.0.1:8000", udp="127.0.0.1:53")
    text = text.replace('path = "traffic.ndjson"', line)
    (tmp_path / "refractium.toml").write_text(text)
    number = 1 + next(at for at, one in enumerate(text.splitlines()) if one.startswith(f"{key} ="))
    output = run(bin_ / "refractium", status=2, cwd=tmp_path)
    errors = [one for one in output.splitlines() if one.startswith("error: ")]
    assert any(
        one.startswith(f"error: refractium.toml:{number}: plugins.trafficlog.{key}: ") and message in one
        for one in errors
    ), output
    assert "Listening" not in output
    assert "Traceback" not in output


def test_a_missing_setting_is_reported_at_the_place_that_names_the_hook(
    run: Run, bin_: Path, tmp_path: Path
) -> None:
    text = CONFIGURATION.format(http="127.0.0.1:8000", udp="127.0.0.1:53").partition("[plugins")[0]
    (tmp_path / "refractium.toml").write_text(text)
    output = run(bin_ / "refractium", status=2, cwd=tmp_path)
    assert re.search(
        r"^error: refractium\.toml:8: server\.hooks\[0\]\.path: is missing$", output, re.MULTILINE
    )


def answer(sock: socket.socket) -> bytes:
    """Answer one request, and return it."""
    request = b""
    while b"\r\n\r\n" not in request:
        request += sock.recv(65_536)
    sock.sendall(ANSWER)
    return request


def test_both_hooks_report_exactly_the_traffic_of_a_running_proxy(
    run: Run, variables: dict[str, str], bin_: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "traffic.ndjson"
    monkeypatch.setattr(process, "PROGRAM", str(bin_ / "refractium"))
    with Backend(answer) as web, UdpBackend(echo) as other:
        (tmp_path / "refractium.toml").write_text(CONFIGURATION.format(http=web.address, udp=other.address))
        with process.Running(cwd=tmp_path, env={**variables, "XDG_RUNTIME_DIR": str(tmp_path)}) as proxy:
            proxy.await_out("^Listening on tcp://")
            proxy.await_out("^Listening on udp://")
            connection = http.client.HTTPConnection(*proxy.address, timeout=20)
            connection.connect()
            tcp = "{}:{}".format(*connection.sock.getsockname())
            connection.request("GET", "/?secret", headers={"Host": "Example.COM"})
            with connection.getresponse() as response:
                assert response.read() == b"hello"
            connection.close()
            with udp_client(proxy.address) as client:
                udp = "{}:{}".format(*client.getsockname())
                client.send(DATAGRAM)
                assert client.recv(100) == DATAGRAM
                client.send(b"")
                assert client.recv(100) == b""
            eventually(lambda: log.exists() and log.read_bytes().count(b"\n") == 4, "four lines")
            dumped = [
                proxy.await_err(rf" info ([0-9a-f]{{16}}) {packet}$")[1]
                for packet in (
                    r"inbound  0000  47 45 54 20 2f 3f 73 65 63 72 65 74 20 48 54 54  GET /\?secret HTT",
                    r"outbound 0000  48 54 54 50 2f 31 2e 31 20 32 30 30 20 4f 4b 0d  HTTP/1\.1 200 OK\.",
                    r"inbound  0000  ff 70 69 6e 67 00 {32}\.ping\.",
                    r"outbound 0000  ff 70 69 6e 67 00 {32}\.ping\.",
                    "outbound 0000 +",
                )
            ]
            status = json.loads(
                run(
                    bin_ / "refractium",
                    "status",
                    "--json",
                    "--control",
                    tmp_path / f"refractium-{proxy.port}.sock",
                )
            )
            assert proxy.terminate() == 0
        rows = run(bin_ / "refractium", "traffic", cwd=tmp_path).splitlines()[1:]
        request = web.result()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    http_lines, udp_lines = (
        [line for line in lines if line["transport"] == transport] for transport in ("tcp", "udp")
    )
    assert_session(
        http_lines,
        {"protocol": "http", "route": "http", "client": tcp, "backend": web.address, "host": "example.com"},
        {"inbound": len(request), "outbound": len(ANSWER), "ended": "closed"},
    )
    assert_session(
        udp_lines,
        {"protocol": "fallback", "route": "fallback", "client": udp, "backend": other.address},
        {"inbound": len(DATAGRAM), "outbound": len(DATAGRAM), "ended": "idle"},
    )
    shown = [row.split()[1:4] for row in rows]
    assert sorted(shown) == [["fallback", udp, other.address], ["http", tcp, web.address]]
    sessions = [http_lines[0]["session"], udp_lines[0]["session"]]
    assert dumped == [sessions[0]] * 2 + [sessions[1]] * 3
    assert len(set(sessions)) == 2
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert {hook["name"] for hook in status["hooks"]} == set(NAMES)
    for hook in status["hooks"]:
        assert (hook["state"], hook["failures"]) == ("running", 0)
        for tally, size in ((hook["inbound"], len(request)), (hook["outbound"], len(ANSWER))):
            assert tally["delivered_bytes"] == tally["seen_bytes"] == size + len(DATAGRAM)
            assert tally["delivered"] == tally["seen"]


def assert_session(lines: list[dict[str, Any]], context: dict[str, str], stats: dict[str, object]) -> None:
    """Assert that the hook wrote two lines for a session, with exact values except for times."""
    opened, closed = lines
    assert re.fullmatch("[0-9a-f]{16}", opened["session"])
    began, ended = (datetime.fromisoformat(line["time"]) for line in lines)
    assert abs((ended - began).total_seconds() - closed["seconds"]) < 0.000_003
    about = {key: opened[key] for key in ("session", "transport")} | context
    assert opened == {"event": "open", "time": opened["time"], **about}
    assert closed == {
        "event": "close",
        "time": closed["time"],
        **about,
        "seconds": closed["seconds"],
        **stats,
    }
