"""The fixtures, in a pytest of its own, which imports nothing of Refractium until a test uses a fixture."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

import pytest_refractium
from support.process import TIMEOUT

if TYPE_CHECKING:
    from pathlib import Path

USES = """
from refractium.contract import NO, Protocol, ProtocolMatch, define_protocol
from refractium.testing import Recorder, Serve

@define_protocol("hello", max_bytes=1)
def hello(data: bytes) -> object:
    if data == b"broken":
        raise LookupError("no rule")
    return ProtocolMatch() if data.startswith(b"H") else NO

def test_two_proxies(refractium_serve: Serve, refractium_recorder: Recorder) -> None:
    one = refractium_serve(hello, hooks=[refractium_recorder.hook])
    other = refractium_serve(hello)
    assert (one.ask(b"HI"), other.ask(b"HI")) == (b"HI", b"HI")
    assert refractium_recorder.session().inbound == b"HI"
    assert one.address != other.address
"""
FAILS = f"""{USES}
def test_wrong(refractium_serve: Serve) -> None:
    assert refractium_serve(hello).ask(b"BYE") == b"BYE"

def test_fault(refractium_serve: Serve) -> None:
    refractium_serve(hello).ask(b"broken")
"""
NEEDS_NOTHING = """
import sys

def test_nothing_of_refractium_is_imported() -> None:
    assert not [name for name in sys.modules if name.partition(".")[0] == "refractium"]
    assert "pytest_refractium" in sys.modules
"""


def run(folder: Path, test: str, *plugins: str) -> tuple[int, str]:
    """Run pytest with few plugins outside of the repository, and return the exit code and the output."""
    (folder / "test_it.py").write_text(test)
    options = [option for plugin in ("pytest_refractium", *plugins) for option in ("-p", plugin)]
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("COV", "PYTEST"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", *options],
        cwd=folder,
        env={**kept, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    return done.returncode, done.stdout


def test_pytest_finds_the_plugin() -> None:
    (found,) = (one for one in entry_points(group="pytest11") if one.name == "refractium")
    assert found.load() is pytest_refractium


def test_the_plugin_imports_nothing_of_refractium(tmp_path: Path) -> None:
    code, out = run(tmp_path, NEEDS_NOTHING)
    assert code == 0, out


def test_an_error_names_the_session_and_a_fault_fails_its_test(tmp_path: Path) -> None:
    code, out = run(tmp_path, FAILS)
    assert code == 1
    assert "2 passed" in out  # the test with the fault passes, and its end fails
    assert "1 failed" in out
    assert "1 error" in out
    assert "no protocol: no route: 0 bytes in, 0 bytes out: no route" in out
    assert "hello: 1 fault" in out
    assert "LookupError: no rule" in out


def test_coverage_measures_refractium_from_its_first_import(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\naddopts = --cov=refractium.contract --cov-report=term-missing"
    )
    code, out = run(tmp_path, USES, "pytest_cov")
    assert code == 0, out
    assert "previously imported" not in out
    (line,) = (line for line in out.splitlines() if "contract/__init__.py " in line)
    assert " 100%" in line
