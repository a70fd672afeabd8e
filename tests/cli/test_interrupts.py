"""Ctrl-C during the start of a command, at any moment."""

from __future__ import annotations

import re
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from refractium.errors import ExitStatus
from support.clients import PATIENCE
from support.process import PROGRAM, environment

if TYPE_CHECKING:
    from pathlib import Path

COMMANDS = {
    "workers": ("-b", "127.0.0.1", "-p", "0", "-f", "http=127.0.0.1:1", "--workers", "2"),
    "demo": ("demo", "--serve"),
    "list": ("plugins", "list"),
    "help": ("--help",),
    "capture": ("capture", "none.pcapng"),
}
NOT_IGNORING = ("env", "--default-signal=INT")
"""The beginning of a command that receives SIGINT even if the tests run in the background of a shell, which
then ignores the signal for all of its processes."""
IN_MAIN = re.compile(r'File ".*refractium/cli/__init__\.py", line \d+, in main')


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_ctrl_c_at_any_moment_of_the_first_second_prints_no_traceback(command: str, tmp_path: Path) -> None:
    """Python itself prints a traceback until it runs the first line of `refractium.cli.main`."""
    # The start of a coverage measurement, before `main`, would lose the interrupt.
    env = {key: value for key, value in environment().items() if "COVERAGE" not in key}
    for moment in range(0, 1000, 50):
        process = subprocess.Popen(
            [*NOT_IGNORING, PROGRAM, *COMMANDS[command]],
            cwd=tmp_path,
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            process.wait(moment / 1000)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
        if "Traceback" in err:
            assert not IN_MAIN.search(err), f"after {moment} ms: {err}"
            assert "KeyboardInterrupt" in err
        else:
            assert "Aborted" not in err, f"after {moment} ms: {err}"
            ends = {0, -signal.SIGINT} if command != "capture" else {ExitStatus.FAILURE, -signal.SIGINT}
            assert process.returncode in ends, f"after {moment} ms: {err}"


def test_a_program_whose_shell_ignores_ctrl_c_goes_on(tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", f'trap "" INT; {PROGRAM} --help & sleep 0; kill -INT $!; wait $!'],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
