"""systemd accepts the units that the pages show, and the program works within them."""

from __future__ import annotations

import re
import shlex
import subprocess
from configparser import ConfigParser
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from refractium import Settings
from support.clients import PATIENCE
from support.pages import pages
from support.process import PROGRAM, run
from support.programs import require_program

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
SINCE_NOTIFY_RELOAD: Final = 253
"""The version of systemd that introduced ``Type=notify-reload``; the page has lines for older ones."""

EXPOSURE: Final = 20
"""Tenths of the points of ``systemd-analyze security``; 0 is the best value and 100 the worst."""


def section(name: str) -> Mapping[str, str]:
    """Return a section of the unit of the service."""
    parser = ConfigParser(interpolation=None, strict=False)  # some settings are lists with one item a line
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(UNITS["refractium.service"])
    return parser[name]


def for_version(service: str, version: int) -> str:
    """Return the unit of the service, changed for a version of systemd as the page says."""
    if version >= SINCE_NOTIFY_RELOAD:
        return service
    changed = service.replace("Type=notify-reload\n", "Type=notify\nExecReload=kill -HUP $MAINPID\n")
    assert changed != service
    return changed


def test_there_are_a_service_and_its_socket() -> None:
    assert {"refractium.service", "refractium.socket"} <= UNITS.keys()


@pytest.mark.parametrize("name", UNITS)
def test_systemd_analyze_verify_accepts_the_units(name: str, tmp_path: Path) -> None:
    analyze = require_program("systemd-analyze")
    shown = subprocess.run(
        [analyze, "--version"], capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    version = int(shown.stdout.split()[1])
    for unit, text in UNITS.items():  # the unit of the socket needs the service beside it
        here = text.replace("/usr/local/bin/refractium", PROGRAM)
        (tmp_path / unit).write_text(for_version(here, version) if unit.endswith(".service") else here)
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
    unit.write_text(for_version(UNITS[unit.name].replace("/usr/local/bin/refractium", PROGRAM), 0))
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


def test_the_limits_of_the_service_leave_room_for_the_limits_of_the_program() -> None:
    service, settings = section("Service"), Settings()
    assert int(service["TimeoutStopSec"]) * 1000 > settings.drain_timeout_ms
    assert int(service["LimitNOFILE"]) > 2 * settings.max_connections
