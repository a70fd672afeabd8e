from __future__ import annotations

import os
import threading

from refractium.cli import lines
from refractium.cli.lines import LineWriter


def test_lines_come_out_whole_and_in_order() -> None:
    out, into = os.pipe()
    writer = LineWriter(into)
    for number in range(1000):
        writer.write(f"line {number}\n")
    writer.close(10)
    os.close(into)
    with os.fdopen(out) as pipe:
        assert pipe.read().splitlines() == [f"line {number}" for number in range(1000)]


def test_lines_that_are_said_to_be_lost_are_counted() -> None:
    out, into = os.pipe()
    writer = LineWriter(into)
    writer.write("first\n")
    writer.lose(1)
    writer.write("last\n")
    writer.close(10)
    os.close(into)
    with os.fdopen(out) as pipe:
        assert pipe.read() == "first\nlast\n(1 lines of the log were lost)\n"


def test_what_nobody_takes_is_lost_and_counted() -> None:
    out, into = os.pipe()
    line = "x" * 1023 + "\n"
    many = lines._MAX_HELD // len(line)
    writer = LineWriter(into)
    for _ in range(2 * many):
        writer.write(line)
    read: list[str] = []

    def drain() -> None:
        with os.fdopen(out) as pipe:
            read.extend(pipe)

    thread = threading.Thread(target=drain)
    thread.start()
    writer.write("after\n")
    writer.close(20)
    os.close(into)
    thread.join(20)
    kept = read.count(line)
    lost = sum(int(text.split()[0][1:]) for text in read if text.startswith("("))
    assert many <= kept < 2 * many
    assert lost in {2 * many - kept, 2 * many - kept + 1}


def test_a_closed_descriptor_costs_lines_and_nothing_else() -> None:
    out, into = os.pipe()
    os.close(out)
    writer = LineWriter(into)
    writer.write("to nobody\n")
    writer.close(10)
    writer.write("still\n")
    os.close(into)


def test_lines_of_several_writers_do_not_mix_in_a_pipe_that_is_full() -> None:
    """As those of several processes that have the same stderr."""
    out, into = os.pipe()
    writers = [LineWriter(into) for _ in range(2)]
    for _ in range(3000):
        for letter, writer in zip("ab", writers, strict=True):
            writer.write(letter * 99 + "\n")
    closing = [threading.Thread(target=writer.close, args=(20,)) for writer in writers]
    for thread in closing:
        thread.start()
    with os.fdopen(out) as pipe:
        read = [pipe.readline() for _ in range(6000)]
    for thread in closing:
        thread.join(20)
    os.close(into)
    assert sorted(read) == ["a" * 99 + "\n"] * 3000 + ["b" * 99 + "\n"] * 3000
