"""A flood of connections leaves a bounded number of lines, and an exact count of the lines left out."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from support.clients import ask
from support.process import serving

if TYPE_CHECKING:
    from pathlib import Path

    from support.process import Running

UNKNOWN = b"what is this?\n"
LEFT_OUT = re.compile(r"(\d+) lines of the access log were left out: log\.max_lines_per_second is 1\b")


def write(folder: Path, per_second: int, **server: object) -> None:
    lines = [f"[log]\nmax_lines_per_second = {per_second}", '[server]\nbind = "127.0.0.1"\nport = 0']
    lines += [f"{key} = {value}" for key, value in server.items()]
    lines.append('[[protocols]]\nname = "ssh"\nforward_to = "127.0.0.1:9"')
    new = folder / "new.toml"
    new.write_text("\n".join(lines) + "\n")
    new.rename(folder / "refractium.toml")


def flood(proxy: Running, count: int) -> None:
    for _ in range(count):
        ask(proxy.address, UNKNOWN)


def made_and_left_out(text: str) -> tuple[int, list[int]]:
    """Return the number of lines about connections, and the reported counts of lines left out."""
    return text.count("s no route"), [int(number) for number in LEFT_OUT.findall(text)]


@pytest.mark.parametrize("style", ["plain", "json", "rich"])
def test_lines_of_a_flood_are_left_out_and_counted(tmp_path: Path, style: str) -> None:
    write(tmp_path, 1)
    with serving("--log-format", style, cwd=tmp_path) as proxy:
        flood(proxy, 60)
        proxy.await_err("were left out")
        flood(proxy, 40)
        assert proxy.terminate() == 0
    made, left_out = made_and_left_out(proxy.err)
    assert 10 <= made < 60
    assert made + sum(left_out) == 100
    assert len(left_out) >= 2
    if style == "json":
        notes = [one for one in map(json.loads, proxy.err.splitlines()) if "left out" in one["message"]]
        assert {(one["level"], one["logger"]) for one in notes} == {("warning", "refractium.access")}


def test_each_worker_counts_the_lines_it_leaves_out(tmp_path: Path) -> None:
    write(tmp_path, 1, workers=2)
    with serving(cwd=tmp_path) as proxy:
        flood(proxy, 100)
        assert proxy.terminate() == 0
    made, left_out = made_and_left_out(proxy.err)
    assert left_out
    assert made + sum(left_out) == 100


@pytest.mark.parametrize("workers", [1, 2])
def test_a_reload_changes_the_limit_of_lines(tmp_path: Path, workers: int) -> None:
    write(tmp_path, 1, workers=workers)
    with serving(cwd=tmp_path) as proxy:
        write(tmp_path, 1000, workers=workers)
        proxy.await_err("configuration 2 is in force")
        flood(proxy, 100)
        assert proxy.terminate() == 0
    assert made_and_left_out(proxy.err) == (100, [])
