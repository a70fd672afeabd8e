"""New plugins of every kind: built, checked with their own tools, installed, and at work in a proxy."""

from __future__ import annotations

import fcntl
import json
import os
import re
import sys
import tarfile
from typing import TYPE_CHECKING
from zipfile import ZipFile

import pytest

from support import process
from support.backends import Backend, echo, named, refusing
from support.clients import ask, connect, receive

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., str]
    Environment = Callable[..., Path]
    Serving = Callable[[str, dict[str, str]], process.Running]

IDS = {
    "protocol": ("my-protocol", "refractium-proto-my-protocol"),
    "hook": ("my_hook", "refractium-hooks-my-hook"),
    "balancer": ("my-balancer", "refractium-balancer-my-balancer"),
    "health-check": ("my-check", "refractium-health-my-check"),
    "command": ("my-command", "refractium-command-my-command"),
}
each_kind = pytest.mark.parametrize("kind", IDS)


@pytest.fixture(scope="session")
def packages(
    uv: str, run: Run, environment: Environment, dist: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Write a package of each kind with the installed program, and build the wheels; one process for all."""
    of_this_process = tmp_path_factory.getbasetemp()
    of_all = of_this_process.parent if "PYTEST_XDIST_WORKER" in os.environ else of_this_process
    folder = of_all / "new-plugins"
    with (of_all / "new-plugins.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # held until the file is closed
        if not folder.exists():
            unfinished = of_all / "new-plugins.unfinished"
            program = environment("refractium-core") / "refractium"
            for kind, (id_, distribution) in IDS.items():
                run(program, "plugins", "new", kind, id_, "--output", unfinished)
                package = unfinished / distribution
                run(uv, "build", "--quiet", "--find-links", dist, "--out-dir", package / "dist", package)
            unfinished.rename(folder)
    return folder


@pytest.fixture(scope="session")
def bin_(environment: Environment, packages: Path) -> Path:
    """Return the folder of programs of an environment with the wheels of all new plugins and their tools."""
    wheels = sorted(str(wheel) for wheel in packages.glob("*/dist/*.whl"))
    assert len(wheels) == len(IDS)
    return environment("refractium-core", "mypy>=1.15", "pytest>=8.3", "ruff>=0.11", *wheels)


@each_kind
def test_a_new_plugin_passes_its_own_checks(kind: str, run: Run, bin_: Path, packages: Path) -> None:
    folder = packages / IDS[kind][1]
    run(bin_ / "ruff", "check", "--no-cache", ".", cwd=folder)
    run(bin_ / "ruff", "format", "--no-cache", "--check", ".", cwd=folder)
    run(bin_ / "mypy", "--cache-dir", "/dev/null", cwd=folder)
    assert re.search(
        r"^\d+ passed in", run(bin_ / "pytest", "-q", "-p", "no:cacheprovider", cwd=folder), re.MULTILINE
    )


@each_kind
def test_the_commands_that_the_program_prints_install_the_plugin_and_run_its_tests(
    kind: str, uv: str, run: Run, packages: Path, dist: Path, tmp_path: Path
) -> None:
    folder, python = packages / IDS[kind][1], tmp_path / "bin/python"
    run(uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, tmp_path)
    install = (uv, "pip", "install", "--quiet", "--python", python, "--find-links", dist)
    run(*install, "--editable", ".", "--group", "dev", cwd=folder)
    assert " passed in" in run(tmp_path / "bin/pytest", "-q", "-p", "no:cacheprovider", cwd=folder)


@each_kind
def test_a_wheel_holds_the_typed_package_and_an_sdist_the_whole_folder(kind: str, packages: Path) -> None:
    folder = packages / IDS[kind][1]
    package = IDS[kind][1].replace("-", "_")
    (wheel,) = folder.glob("dist/*.whl")
    with ZipFile(wheel) as opened:
        names = set(opened.namelist())
    info = f"{package}-0.1.0.dist-info"
    assert {f"{package}/__init__.py", f"{package}/py.typed", f"{info}/licenses/LICENSE"} <= names
    assert {name.partition("/")[0] for name in names} == {package, info}
    (sdist,) = folder.glob("dist/*.tar.gz")
    assert sdist.name == f"{package}-0.1.0.tar.gz"  # as the workflow of a release expects
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    sources = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert in_sdist - {"PKG-INFO", ""} == {
        name for name in sources if not name.startswith("dist/") and "__pycache__" not in name
    }


@each_kind
def test_a_new_plugin_is_listed_like_any_other_plugin(kind: str, run: Run, bin_: Path) -> None:
    id_, distribution = IDS[kind]
    listed = {
        plugin["id"]: plugin for plugin in json.loads(run(bin_ / "refractium", "plugins", "list", "--json"))
    }
    assert set(listed) == {one for one, _ in IDS.values()}
    plugin = listed[id_]
    assert plugin["summary"].startswith("Refractium plugin: ")
    assert plugin | {"summary": ""} == {
        "id": id_,
        "kind": kind.replace("-", "_"),
        "transports": ["tcp"] if kind == "protocol" else [],
        "distribution": distribution,
        "version": "0.1.0",
        "status": "loaded",
        "error": None,
        "summary": "",
    }
    assert id_ in run(bin_ / "refractium", "plugins", "info", id_)


@each_kind
def test_a_new_plugin_breaks_no_rule_for_plugins(kind: str, run: Run, bin_: Path, packages: Path) -> None:
    id_, distribution = IDS[kind]
    dist = packages / distribution / "dist"
    for what in (id_, packages / distribution, *dist.glob("*.whl"), *dist.glob("*.tar.gz")):
        assert f"{distribution} 0.1.0: no findings" in run(bin_ / "refractium", "plugins", "check", what)


@each_kind
def test_the_name_of_an_installed_plugin_is_taken(kind: str, run: Run, bin_: Path, tmp_path: Path) -> None:
    id_, distribution = IDS[kind]
    output = run(bin_ / "refractium", "plugins", "new", kind, id_, status=2, cwd=tmp_path)
    assert f"plugin '{id_}' of {distribution} 0.1.0" in output
    assert not list(tmp_path.iterdir())


@pytest.fixture
def serving(
    packages: Path, bin_: Path, variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Serving:
    """Return a function that starts the proxy with the configuration in the README of a new plugin.

    The function replaces texts in the configuration, such as addresses.
    """
    monkeypatch.setattr(process, "PROGRAM", str(bin_ / "refractium"))

    def serving(kind: str, changes: dict[str, str]) -> process.Running:
        readme = (packages / IDS[kind][1] / "README.md").read_text()
        (text,) = re.findall(r"^```toml\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "refractium.toml").write_text(text)
        env = {**variables, "XDG_RUNTIME_DIR": str(tmp_path)}
        return process.Running("tcp", "-b", "127.0.0.1", "-p", "0", cwd=tmp_path, env=env)

    return serving


def test_the_demo_shows_a_new_protocol(run: Run, bin_: Path) -> None:
    (result,) = json.loads(run(bin_ / "refractium", "demo", "--json"))
    assert (result["protocol"], result["ok"]) == (IDS["protocol"][0], True)
    assert result["answer"] == "hello green.example"


def test_a_new_protocol_routes_its_sample_by_the_host(
    serving: Serving, run: Run, bin_: Path, packages: Path
) -> None:
    file = packages / IDS["protocol"][1] / "src/refractium_proto_my_protocol/samples/hello.bin"
    identified = json.loads(run(bin_ / "refractium", "identify", "--json", file))
    assert "green.example" in json.dumps(identified)
    sample = file.read_bytes()
    other = sample.replace(b"Green", b"Blue")
    with Backend(named("1 ")) as green, Backend(named("2 ")) as rest:
        changes = {"127.0.0.1:9001": green.address, "127.0.0.1:9000": rest.address}
        with serving("protocol", changes) as proxy:
            proxy.await_out("^Listening on")
            assert ask(proxy.address, sample).data == b"1 " + sample
            assert ask(proxy.address, other).data == b"2 " + other
            assert proxy.terminate() == 0


def test_a_new_hook_logs_the_sessions_of_its_route(serving: Serving) -> None:
    with Backend(echo) as backend, serving("hook", {"127.0.0.1:9000": backend.address}) as proxy:
        proxy.await_out("^Listening on")
        assert ask(proxy.address, b"one").data == b"one"
        assert ask(proxy.address, b"three").data == b"three"
        proxy.await_err("largest packet 5 bytes inbound, 5 bytes outbound")
        assert proxy.terminate() == 0
    assert proxy.err.count("largest packet") == 1, "the first session has fewer bytes than min_bytes"


def test_a_new_balancer_chooses_the_backends(serving: Serving) -> None:
    with Backend(named("1")) as first, Backend(named("2")) as second:
        changes = {"127.0.0.1:9001": first.address, "127.0.0.1:9002": second.address, "= 100": "= 1"}
        with serving("balancer", changes) as proxy:
            proxy.await_out("^Listening on")
            for _ in range(2):
                assert ask(proxy.address, b"x").data == b"1x"
            with connect(proxy.address) as client:
                client.sendall(b"x")
                assert receive(client, 2) == b"1x"
                assert ask(proxy.address, b"x").data == b"2x"
            assert proxy.terminate() == 0


def test_a_new_health_check_keeps_clients_from_a_sick_backend(serving: Serving) -> None:
    with Backend(named("220 ready ")) as healthy, Backend(named("421 busy ")) as sick:
        changes = {"127.0.0.1:9001": sick.address, "127.0.0.1:9002": healthy.address, "1000": "50"}
        with serving("health-check", changes) as proxy:
            proxy.await_out("^Listening on")
            proxy.await_err(
                rf"backend {re.escape(sick.address)} is down: my-check check: the server begins with 421"
            )
            for _ in range(4):
                assert ask(proxy.address, b"x").data == b"220 ready x"
            assert proxy.terminate() == 0
            assert f"{healthy.address} is down" not in proxy.err


def test_a_new_command_runs_and_fails_as_documented(run: Run, bin_: Path) -> None:
    id_ = IDS["command"][0]
    assert id_ in run(bin_ / "refractium", "--help")
    with Backend(echo) as backend, refusing() as dead:
        (row,) = json.loads(run(bin_ / "refractium", id_, "--json", backend.address))
        assert (row["address"], row["error"]) == (backend.address, None)
        output = run(bin_ / "refractium", id_, backend.address, dead, status=1)
    assert "Connection refused" in output
    assert output.splitlines()[-1] == "error: cannot reach 1 of 2 addresses"
    assert "no port" in run(bin_ / "refractium", id_, "nowhere", status=2)
