from __future__ import annotations

import contextlib
import os
import re
import resource
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from refractium.logs import lines
from refractium.logs.lines import LineWriter
from support.clients import PATIENCE
from support.proxy import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from typing import Self


_WRITING = """
import os, sys
from refractium.logs import lines
name, letter, count = sys.argv[1:]
lines._MAX_HELD = 60_000
fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
writer = lines.LineWriter(fd, lambda lost: f"({lost} lost by {letter})\\n")
sys.stdin.readline()
for number in range(int(count)):
    writer.write(f"{letter} {number} {letter * 50}\\n")
print("made", flush=True)
sys.stdin.read()
writer.close(30)
"""


class Writing:
    """A process that writes lines on request, and ends after they are written.

    Args:
        path: the file that it writes to.
        letter: the letter that its lines consist of.
        count: the number of its lines.
        pass_fds: descriptors that stay open in it.
    """

    def __init__(self, path: object, letter: str, count: int, pass_fds: Sequence[int] = ()) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WRITING, str(path), letter, str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=pass_fds,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(PATIENCE)
        self._stdin.close()
        self._stdout.close()

    def begin(self) -> None:
        """Make the process create its lines."""
        self._stdin.write(b"\n")
        self._stdin.flush()

    def await_lines(self) -> None:
        """Wait until the process has created its lines."""
        assert self._stdout.readline() == b"made\n"

    def end(self) -> None:
        """Let the process end, and wait for its end."""
        self._stdin.close()
        assert self._process.wait(PATIENCE) == 0


def assert_complete(text: str, made: dict[str, int]) -> None:
    """Assert that each line of each process is there, whole and in order, or counted as lost."""
    assert text.endswith("\n")
    for row in text.splitlines():
        assert re.fullmatch(r"([abc]) \d+ \1{50}|\(\d+ lost by [abc]\)", row), row
    for letter, count in made.items():
        numbers = [int(row.split()[1]) for row in text.splitlines() if row.startswith(letter)]
        assert numbers == sorted(set(numbers))
        said = [int(number) for number in re.findall(rf"^\((\d+) lost by {letter}\)$", text, re.MULTILINE)]
        assert len(said) <= 1
        assert len(numbers) + sum(said) == count


def lost(count: int) -> str:
    return f"({count} lost)\n"


def written_and_lost(text: str) -> tuple[list[str], int]:
    """Return the written lines, all of which must be whole, and the number of lines reported as lost."""
    assert text.endswith("\n")
    rows = text.splitlines()
    said = [int(found[1]) for row in rows if (found := re.fullmatch(r"\((\d+) lost\)", row))]
    return [row for row in rows if not row.startswith("(")], sum(said)


def test_lines_come_out_whole_and_in_order() -> None:
    out, into = os.pipe()
    writer = LineWriter(into, lost)
    for number in range(1000):
        writer.write(f"line {number}\n")
    writer.close(10)
    os.close(into)
    with os.fdopen(out) as pipe:
        assert pipe.read().splitlines() == [f"line {number}" for number in range(1000)]


def test_lines_that_could_not_be_formatted_are_counted() -> None:
    out, into = os.pipe()
    writer = LineWriter(into, lost)
    writer.write("first\n")
    writer.lose(1)
    writer.write("last\n")
    writer.close(10)
    os.close(into)
    with os.fdopen(out) as pipe:
        assert pipe.read() == "first\nlast\n(1 lost)\n"


@pytest.mark.parametrize("blocking", [True, False])
def test_lines_that_a_full_pipe_does_not_take_are_counted(
    blocking: bool,  # noqa: FBT001 - pytest passes it by name
) -> None:
    out, into = os.pipe()
    os.set_blocking(into, blocking)
    line = "x" * 1023 + "\n"
    many = lines._MAX_HELD // len(line)
    writer = LineWriter(into, lost)
    for _ in range(many):
        writer.write(line * 2)
    read: list[str] = []

    def drain() -> None:
        with os.fdopen(out) as pipe:
            read.append(pipe.read())

    thread = threading.Thread(target=drain)
    thread.start()
    writer.close(20)
    os.close(into)
    thread.join(20)
    written, missing = written_and_lost(read[0])
    assert set(written) == {line[:-1]}
    assert many <= len(written) < 2 * many
    assert len(written) + missing == 2 * many


def test_lines_of_several_threads_are_counted_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "_MAX_HELD", 10_000)
    out, into = os.pipe()
    writer = LineWriter(into, lost, gather=0)

    def write() -> None:
        for number in range(20_000):
            writer.write(f"line {number}\n")

    read: list[str] = []

    def drain() -> None:
        with os.fdopen(out) as pipe:
            read.append(pipe.read())

    threads = [threading.Thread(target=write) for _ in range(4)]
    reader = threading.Thread(target=drain)
    for thread in (*threads, reader):
        thread.start()
    for thread in threads:
        thread.join(60)
    writer.close(20)
    os.close(into)
    reader.join(20)
    written, missing = written_and_lost(read[0])
    assert missing
    assert len(written) + missing == 80_000


def test_lines_without_a_reader_are_lost_and_counted_for_the_next_reader(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    out = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    into = os.open(fifo, os.O_WRONLY)
    os.set_blocking(out, True)
    writer = LineWriter(into, lost)
    writer.write("read\n")
    assert os.read(out, 100) == b"read\n"
    os.close(out)
    writer.write("to nobody\n")
    eventually(lambda: writer._lost == 1, "the line is lost")
    out = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    writer.write("read again\n")
    writer.close(10)
    os.close(into)
    with os.fdopen(out) as pipe:
        assert pipe.read() == "read again\n(1 lost)\n"


def test_a_closed_descriptor_loses_lines_and_nothing_else() -> None:
    out, into = os.pipe()
    os.close(out)
    writer = LineWriter(into, lost)
    writer.write("to nobody\n")
    writer.close(10)
    writer.write("still\n")
    os.close(into)


def test_a_line_after_the_end_of_the_writer_is_written_at_once() -> None:
    out, into = os.pipe()
    writer = LineWriter(into, lost)
    writer.close(10)
    writer.write("late\n")
    os.close(into)
    with os.fdopen(out) as pipe:
        assert pipe.read() == "late\n"


def test_a_file_at_its_size_limit_has_no_torn_line(tmp_path: Path) -> None:
    """As with a full disk, one write takes a part of the lines, and the next one fails (write(2), EFBIG)."""
    path = tmp_path / "log"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Writing(path, "a", 3000) as process:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (50_001, limits[1]))
        process.begin()
        eventually(lambda: path.exists() and path.stat().st_size == 50_001, "the file is full")
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, limits)
        process.end()
    assert_complete(path.read_text(), {"a": 3000})


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 64 KiB."""
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_full_disk_tears_no_line_of_several_processes_and_each_lost_line_is_counted(
    small_disk: Path,
) -> None:
    path = small_disk / "log"
    made = {"a": 3000, "b": 3000, "c": 3000}
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(Writing(path, *one)) for one in made.items()]
        for process in processes:
            process.begin()
        for process in processes:
            process.await_lines()
        eventually(lambda: path.stat().st_size == 64 * 1024, "the disk is full")
        subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
        for process in processes:
            process.end()
    assert_complete(path.read_text(), made)


def test_lines_of_several_processes_do_not_mix_in_a_pipe_that_is_full() -> None:
    out, into = os.pipe()
    made = {"a": 2000, "b": 2000}
    read: list[str] = []

    def drain() -> None:
        with os.fdopen(out) as pipe:
            read.append(pipe.read())

    reader = threading.Thread(target=drain)
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(Writing(f"/proc/self/fd/{into}", *one, pass_fds=[into]))
            for one in made.items()
        ]
        os.close(into)
        for process in processes:
            process.begin()
        for process in processes:
            process.await_lines()
        reader.start()
        for process in processes:
            process.end()
    reader.join(PATIENCE)
    assert_complete(read[0], made)
