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
    (lost,) = (text for text in read if text.startswith("("))
    assert many <= kept < 2 * many
    assert int(lost.split()[0][1:]) in {2 * many - kept, 2 * many - kept + 1}


def test_a_closed_descriptor_costs_lines_and_nothing_else() -> None:
    out, into = os.pipe()
    os.close(out)
    writer = LineWriter(into)
    writer.write("to nobody\n")
    writer.close(10)
    writer.write("still\n")
    os.close(into)
