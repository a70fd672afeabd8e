"""`plugins install` and `plugins uninstall`, with a program in place of uv.

tests/packaging/test_install_command.py runs the real pip, uv and pipx.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING

import pytest

from support.plugins import install
from support.process import PROGRAM, TIMEOUT, Finished, environment, run

if TYPE_CHECKING:
    from collections.abc import Mapping

GOOD = """
from refractium.contract import Protocol, ProtocolMatch, hookimpl

class Fresh(Protocol):
    name = "fresh"
    max_bytes = 16
    def identify(self, data):
        return ProtocolMatch()

@hookimpl
def refractium_protocols():
    return [Fresh()]
"""


class FakeUv:
    """A program ``uv`` on the PATH of an interpreter that has no pip, and a folder of plugins."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.site = folder / "site"
        self.arguments = folder / "arguments"
        self.bin.mkdir()
        self.site.mkdir()
        # A package that cannot be imported, in place of the pip that the environment may have.
        (self.site / "pip.py").write_text("raise ImportError\n")

    def does(self, script: str) -> None:
        path = self.bin / "uv"
        path.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {self.arguments}\n{script}\n')
        path.chmod(0o755)

    @property
    def environment(self) -> Mapping[str, str]:
        return environment(PATH=f"{self.bin}:/usr/bin:/bin", PYTHONPATH=str(self.site))

    def run(self, *arguments: str) -> Finished:
        done = run("plugins", *arguments, cwd=self.site, env=self.environment)
        assert "Traceback" not in done.out + done.err
        return done

    @property
    def called_with(self) -> list[str]:
        return self.arguments.read_text().splitlines()


@pytest.fixture
def fake(tmp_path: Path) -> FakeUv:
    fake = FakeUv(tmp_path)
    fake.does("echo done")
    return fake


def test_requirements_reach_the_installer_unchanged(fake: FakeUv) -> None:
    names = ("refractium-proto-x[a] >=1,<2 ; python_version > '3'", "./with blank", "https://example.org/x")
    done = fake.run("install", *names)
    assert (done.code, done.err) == (0, "")
    assert done.out == "done\nNo plugin is new, changed or gone.\n"
    assert fake.called_with == ["pip", "install", "--python", sys.executable, "--", *names]


def test_no_requirement_is_an_option_of_the_installer(fake: FakeUv) -> None:
    assert fake.run("install", "--index-url=x").code == 2
    assert not fake.arguments.exists()
    assert fake.run("install", "--", "--index-url=x").code == 0
    assert fake.called_with[-2:] == ["--", "--index-url=x"]


@pytest.mark.parametrize("action", ["install", "uninstall"])
@pytest.mark.parametrize("status", [1, 2, 77])
def test_output_and_exit_code_of_an_installer_that_fails_come_through(
    action: str, status: int, fake: FakeUv
) -> None:
    install(fake.site, "there", GOOD)
    fake.does(f"echo told; echo complained >&2; exit {status}")
    done = fake.run(action, "refractium-proto-there")
    assert done == (status, "told\n", "complained\n")


def test_the_output_of_the_installer_is_not_in_the_json(fake: FakeUv) -> None:
    fake.does("echo told; echo complained >&2")
    done = fake.run("install", "--json", "x")
    assert done.code == 0
    assert json.loads(done.out) == {"changed": [], "gone": []}
    assert done.err == "told\ncomplained\n"


def test_new_and_changed_plugins_are_shown_and_others_are_not(fake: FakeUv, tmp_path: Path) -> None:
    install(fake.site, "there", GOOD.replace("fresh", "there"))
    install(tmp_path / "new", "fresh", GOOD)
    fake.does(f"cp -r {tmp_path}/new/. {fake.site}")
    done = fake.run("install", "--json", "./fresh")
    found = json.loads(done.out)
    assert (done.code, [row["id"] for row in found["changed"]], found["gone"]) == (0, ["fresh"], [])
    listed = {row["id"]: row for row in json.loads(fake.run("list", "--json").out)}
    assert found["changed"] == [listed["fresh"]]
    fake.does(f"rm -r {fake.site}/refractium_proto_fresh* {fake.site}/plugin_fresh.py")
    done = fake.run("uninstall", "--json", "refractium-proto-fresh")
    assert done.code == 0
    assert json.loads(done.out) == {"changed": [], "gone": [listed["fresh"]]}


def test_a_plugin_of_a_named_distribution_is_shown_although_it_is_unchanged(fake: FakeUv) -> None:
    install(fake.site, "there", GOOD)
    done = fake.run("install", "Refractium_Proto_There>=1")
    assert done.code == 0
    assert "there  protocol" in done.out


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("raise ImportError('the glass is cracked')", "failed"),
        ("refractium_api_version = 99", "incompatible"),
    ],
)
def test_a_new_plugin_that_is_not_usable_is_shown_and_exits_1(
    code: str, status: str, fake: FakeUv, tmp_path: Path
) -> None:
    install(tmp_path / "new", "fresh", code)
    fake.does(f"cp -r {tmp_path}/new/. {fake.site}")
    done = fake.run("install", "refractium-proto-fresh")
    assert done.code == 1
    (row,) = (line.split() for line in done.out.splitlines() if line.startswith("fresh"))
    assert status in row


def test_a_blocked_plugin_is_no_failure(fake: FakeUv, tmp_path: Path) -> None:
    install(tmp_path / "new", "fresh", "raise ImportError")
    fake.does(f"cp -r {tmp_path}/new/. {fake.site}")
    arguments = ("--disable-plugin", "fresh", "plugins", "install", "--json", "x")
    done = run(*arguments, cwd=fake.site, env=fake.environment)
    assert (done.code, json.loads(done.out)["changed"][0]["status"]) == (0, "blocked")


def test_a_plugin_that_another_installation_breaks_is_shown(fake: FakeUv, tmp_path: Path) -> None:
    install(fake.site, "there", GOOD)
    install(tmp_path / "new", "fresh", GOOD)  # provides the same protocol
    fake.does(f"cp -r {tmp_path}/new/. {fake.site}")
    done = fake.run("install", "--json", "x")
    assert done.code == 1
    assert {row["id"]: row["status"] for row in json.loads(done.out)["changed"]} == {
        "fresh": "failed",
        "there": "failed",
    }


def test_an_installation_that_breaks_the_program_says_so(fake: FakeUv) -> None:
    fake.does(f"echo 'raise ImportError(\"cracked\")' > {fake.site}/msgspec.py")
    done = fake.run("install", "x")
    assert done.code == 1
    assert done.err.startswith("error: cannot list the plugins: internal error: ImportError: cracked")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("refractium-core", "is the program itself"),
        ("Refractium_Core==0.1.0", "is the program itself"),
        ("refractium.core @ file:///x", "is the program itself"),
        ("click", "is needed by the program itself"),
        ("markdown_it.py", "is needed by the program itself"),
        ("there", "is not installed: did you mean 'refractium-proto-there'?"),
        ("refractium-proto-ther", "is not installed: did you mean 'refractium-proto-there'?"),
        ("./refractium-core", "is a path or a URL"),
        ("https://example.org/x", "is a path or a URL"),
    ],
)
def test_uninstall_refuses_what_it_cannot_remove_before_the_installer_runs(
    name: str, reason: str, fake: FakeUv
) -> None:
    install(fake.site, "there", GOOD)
    done = fake.run("uninstall", "refractium-proto-there", name)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {name}: {reason}")
    assert done.err.count("\n") == 1
    assert not fake.arguments.exists()


def test_install_refuses_the_id_of_a_plugin_of_the_project(fake: FakeUv) -> None:
    done = fake.run("install", "ssh", "dns")
    assert done.code == 2
    assert "did you mean 'refractium-proto-ssh'?" in done.err
    assert "did you mean 'refractium-proto-dns'?" in done.err
    assert not fake.arguments.exists()


@pytest.mark.parametrize("action", ["install", "uninstall"])
def test_without_an_installer_there_is_an_error(action: str, fake: FakeUv) -> None:
    install(fake.site, "there", GOOD)
    (fake.bin / "uv").unlink()
    if (Path(sys.executable).parent / "uv").exists():
        pytest.skip("the environment of the tests contains uv")
    done = fake.run(action, "refractium-proto-there")
    assert (done.code, done.out) == (1, "")
    assert sys.executable in done.err
    assert "uv is not on the PATH" in done.err


def test_a_module_of_the_current_folder_is_not_taken_for_pip(fake: FakeUv, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "pip").mkdir(parents=True)
    for module in ("pip/__main__.py", "pip/__init__.py", "refractium.py", "msgspec.py"):
        (elsewhere / module).write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\n")
    done = run("plugins", "install", "x", cwd=elsewhere, env=fake.environment)
    assert done.code == 0
    assert not (tmp_path / "imported").exists()


def test_ctrl_c_waits_for_the_end_of_the_installer(fake: FakeUv, tmp_path: Path) -> None:
    fake.does(
        dedent("""\
        trap 'sleep 0.2; echo cancelled; exit 130' INT
        echo started
        while :; do sleep 0.05; done
    """)
    )
    process = subprocess.Popen(
        [PROGRAM, "plugins", "install", "x"],
        cwd=tmp_path,
        env=fake.environment,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, out) == (130, "cancelled\n")
