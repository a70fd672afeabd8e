"""A system without epoll, such as macOS or Windows: a message instead of an import error."""

from __future__ import annotations

import subprocess
import sys

import pytest

from support.process import TIMEOUT

ELSEWHERE = """
import select, sys
del select.epoll
sys.modules |= dict.fromkeys(("fcntl", "grp", "pwd", "resource", "termios"))  # None: they cannot be imported
sys.platform = "darwin"
sys.argv = ["refractium", *sys.argv[1:]]
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", ELSEWHERE + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)


@pytest.mark.parametrize("arguments", [["demo"], ["--help"], []])
def test_a_command_says_what_it_needs(arguments: list[str]) -> None:
    done = run("from refractium.cli import main; main()", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(
        "error: refractium serves on Linux only: it needs epoll, which darwin lacks."
    )
    assert len(done.stderr.splitlines()) == 1


def test_the_version_is_told_everywhere() -> None:
    done = run("from refractium.cli import main; main()", "--version")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_program_that_embeds_the_engine_is_told_the_same() -> None:
    done = run("from refractium import Refractium")
    assert "ImportError: refractium serves on Linux only" in done.stderr


def test_a_test_with_a_proxy_is_told_the_same() -> None:
    done = run("from refractium.testing import serve")
    assert "ImportError: refractium serves on Linux only" in done.stderr


def test_plugins_can_be_written_and_tested() -> None:
    done = run(
        "from refractium import NEED_MORE, NO, Protocol, ProtocolMatch, Settings, define_protocol\n"
        "from refractium.testing import Backend, Recorder, assert_lawful, cuts, run_hook\n"
        "from refractium_proto_ssh import Ssh\n"
        "assert_lawful(Ssh(), b'SSH-2.0-a\\r\\n')\n"
        "print('done')"
    )
    assert done.stdout == "done\n", done.stderr
