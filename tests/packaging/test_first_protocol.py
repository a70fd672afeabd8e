"""The guide to the first protocol, followed word for word in a new environment, with a real Redis."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from support.clients import connect
from support.programs import require_program
from support.proxy import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

END = "the command has ended with status"


class Step(NamedTuple):
    """One step of the guide: a command with the output that the page shows, or a file with its text."""

    command: str = ""
    output: str = ""
    file: str = ""
    text: str = ""


def steps(page: str) -> Iterator[Step]:
    """Yield the steps of a page in their order; `output` is empty if the page shows no output."""
    fence = re.compile(r"(?:^`([^`\n]+)`:\n\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    for file, language, text in fence.findall(page):
        if language == "console":
            for command, output in re.findall(r"^\$ (.+)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE):
                yield Step(command=command, output=output)
        else:
            assert file, f"nobody knows the file of {text}"
            yield Step(file=file, text=text)


class Shell:
    """A shell that keeps its variables, folder and jobs between commands, like a terminal."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder = folder
        self._process = subprocess.Popen(
            ["bash", "--norc"],
            cwd=folder,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, command: str) -> str:
        """Run a command that must succeed, and return its output."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f'{command}\necho "{END} $?"; pwd\n')
        self._process.stdin.flush()
        output = []
        for line in self._process.stdout:
            if line.startswith(END):
                break
            output.append(line)
        else:
            line = "the shell has ended"
        assert line == f"{END} 0\n", f"{command}: {''.join(output)}{line}"
        self.folder = Path(self._process.stdout.readline().rstrip("\n"))
        return "".join(output)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the shell and all of its jobs."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()


def listens(port: int) -> bool:
    """Return whether a program listens on a port of this machine."""
    try:
        connect(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


def test_the_guide_leads_to_a_plugin_that_routes_a_real_client_by_its_database(
    root: Path, dist: Path, variables: dict[str, str], tmp_path: Path
) -> None:
    require_program("redis-server")
    require_program("redis-cli")
    page = list(steps((root / "docs/tutorials/writing-a-protocol.md").read_text()))
    assert Step("redis-cli -p 7002 -n 2 --raw GET house", "blue\n") in page
    with Shell(tmp_path, variables | {"PIP_FIND_LINKS": str(dist)}) as shell:
        for step in page:
            if step.file:
                (shell.folder / step.file).write_text(step.text)
                continue
            for port in re.findall(r"redis-cli -p (\d+)", step.command):
                eventually(lambda port=int(port): listens(port), f"a program listens on port {port}")  # type: ignore[misc]
            output = shell.run(step.command)
            assert step.output in {"", output}, f"{step.command}: {output}"
