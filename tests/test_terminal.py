"""Tables and texts keep each word whole, whatever the width of the terminal."""

from __future__ import annotations

import io
import re
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from refractium import terminal
from refractium.logs.forms import Rich
from refractium.terminal.drawing import LiteralConsole
from support.process import environment, run, serving
from support.proxy import eventually

if TYPE_CHECKING:
    from pathlib import Path

LONG = "[2001:db8:1111:2222:3333:4444:5555:6666]:65535"
COLOURS = re.compile(r"\x1b\[[0-9;]*m")

WORDS = st.text(st.characters(codec="ascii", categories=("L", "N", "P")), min_size=1, max_size=60)
CELLS = st.lists(WORDS, max_size=4).map(" ".join)


def printed(
    monkeypatch: pytest.MonkeyPatch, columns: int, *arguments: object, is_terminal: bool = True
) -> str:
    """Return what `terminal.table` prints in a terminal with this many columns, or in a pipe."""
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(out, "isatty", lambda: is_terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    terminal.table(*arguments)  # type: ignore[arg-type]
    return COLOURS.sub("", out.getvalue())


@given(
    st.integers(1, 5).flatmap(lambda n: st.lists(st.tuples(*[CELLS] * n), min_size=1, max_size=4)),
    st.integers(20, 200),
    st.booleans(),
)
def test_every_word_of_a_table_stays_whole(
    rows: list[tuple[str, ...]],
    columns: int,
    is_terminal: bool,  # noqa: FBT001 - hypothesis passes it by position
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        names = [f"c{number}" for number in range(len(rows[0]))]
        told = printed(patch, columns, None, names, rows, is_terminal=is_terminal)
    words = told.split()
    for word in (word for row in rows for cell in row for word in cell.split()):
        assert word in words
        words.remove(word)
    fits = max((len(word) for row in rows for cell in row for word in cell.split()), default=0) <= columns - 4
    if is_terminal and fits:
        assert max(map(len, told.splitlines())) <= columns
    if not is_terminal:
        assert len(told.splitlines()) == 1 + len(rows), "each row is one line in a pipe"


def test_a_table_in_a_pipe_is_aligned(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("web", LONG, ""), ("\u5341\u4e8c", "\x1b[2J", "last")]
    assert printed(monkeypatch, 20, "Routes", ["route", "backend", "other"], rows, is_terminal=False) == (
        "Routes\n"
        f"route  backend{' ' * (len(LONG) - 7)}  other\n"
        f"web    {LONG}\n"
        f"\u5341\u4e8c   \\x1b[2J{' ' * (len(LONG) - 7)}  last\n"
    )


def test_a_row_without_room_becomes_one_line_for_each_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("web", LONG, LONG), ("api", LONG, "")]
    told = printed(monkeypatch, 80, "Routes", ["route", "backend", "other"], rows)
    assert told.splitlines() == [
        "Routes",
        "route    web",
        f"backend  {LONG}",
        f"other    {LONG}",
        "",
        "route    api",
        f"backend  {LONG}",
    ]


@given(st.lists(WORDS, min_size=1, max_size=30).map(" ".join), st.integers(40, 120))
def test_every_word_of_a_rich_log_line_stays_whole(message: str, columns: int) -> None:
    form = Rich()
    form._console = LiteralConsole(width=columns, file=io.StringIO())
    line = form.line(0.0, "warning", "refractium", message)
    told = COLOURS.sub("", line)
    assert told.split()[-len(message.split()) :] == message.split()
    if max(map(len, message.split())) <= columns:
        assert max(map(len, told.splitlines())) <= columns


def test_the_lines_of_a_rich_log_line_are_aligned() -> None:
    form = Rich()
    form._console = LiteralConsole(width=80, file=io.StringIO())
    first, second = form.line(0.0, "info", "refractium", f"to {LONG} {LONG}").splitlines()
    assert first.index("to [") == second.index("[2001")


def test_a_console_ends_lines_between_words() -> None:
    out = io.StringIO()
    console = LiteralConsole(file=out, width=40)
    console.print(f"cannot connect to the backend {LONG} again")
    console.print(Text(f"cannot connect to the backend {LONG} again"))
    assert out.getvalue().splitlines() == ["cannot connect to the backend", LONG, "again"] * 2


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_the_commands_print_whole_addresses_and_ids(tmp_path: Path, columns: int) -> None:
    route_id = "a-route-of-a-tenant-with-a-long-id-0123456789"
    file = tmp_path / "refractium.toml"
    file.write_text(
        f'[[protocols]]\nname = "http"\nid = "{route_id}"\nhost = "www.{"x" * 30}.example"\n'
        f'forward_to = ["{LONG}", "127.0.0.1:8000"]\n[server]\nbind = "::1"\nport = 0\n'
    )
    env = environment(COLUMNS=str(columns), FORCE_COLOR="1", NO_COLOR="1")
    with serving("-c", file, env=env) as program:
        eventually(lambda: run("status", "-p", program.port).code == 0, "the instance answers")
        for command in ("check", "-c", file), ("status", "-p", program.port):
            lines = COLOURS.sub("", run(*command, env=env).out).splitlines()
            assert max(map(len, lines)) <= columns
            for word in route_id, LONG, "127.0.0.1:8000":
                assert any(word in line for line in lines)
    lines = COLOURS.sub("", run("plugins", "list", env=env).out).splitlines()
    assert any("refractium-proto-https" in line for line in lines)
