"""Local plugins that change while the program serves."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from support.backends import Backend, echo
from support.clients import ask, connect, receive
from support.local import recognising, recording, rewrite
from support.process import children, serving
from support.proxy import eventually
from support.status import status_of

if TYPE_CHECKING:
    from pathlib import Path

    from support.process import Running

both = pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])


def config(backend: str, workers: int, plugins: str = 'paths = ["plugins/mine.py"]', more: str = "") -> str:
    return (
        f'[server]\nbind = "127.0.0.1"\nport = 0\nworkers = {workers}\n[plugins]\n{plugins}\n'
        f'[[protocols]]\nname = "mine"\nforward_to = "{backend}"\n{more}'
    )


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    folder = tmp_path / "plugins"
    folder.mkdir()
    return folder / "mine.py"


def answers(program: Running, data: bytes) -> bool:
    """Return whether clients with these first bytes reach the backend, of each of several connections."""
    found = {ask(program.address, data).data for _ in range(4)}
    assert len(found) == 1
    return found == {data}


@both
def test_new_connections_use_changed_code_and_broken_code_is_told_with_its_line(
    tmp_path: Path, plugin: Path, workers: int
) -> None:
    plugin.write_text(recognising("A"))
    with Backend(echo) as backend:
        (tmp_path / "refractium.toml").write_text(config(backend.address, workers))
        with serving("--log-format", "plain", cwd=tmp_path) as program:
            with connect(program.address) as old:
                old.sendall(b"A")
                assert receive(old, 1) == b"A"
                first = next(one for one in status_of(program).plugins if one.id == "mine")
                assert first.distribution == "plugins/mine.py"
                rewrite(plugin, recognising("B"))
                program.await_err("configuration 2 is in force")
                assert answers(program, b"B")
                assert not answers(program, b"A")
                second = next(one for one in status_of(program).plugins if one.id == "mine")
                assert second.version != first.version

                rewrite(plugin, "\n\nthis is = not Python\n")
                program.await_err(r"not reloaded: .*plugins/mine\.py:3: SyntaxError")
                assert answers(program, b"B")
                rewrite(plugin, recognising("C") + "\n1 / 0\n")
                program.await_err(r"not reloaded: .*plugins/mine\.py:\d+: ZeroDivisionError")
                assert answers(program, b"B")
                (shown,) = [one for one in status_of(program).plugins if one.id == "mine"]
                assert shown == second
                rewrite(plugin, recognising("D"))
                program.await_err("configuration 3 is in force")
                assert answers(program, b"D")
                old.sendall(b"still there")
                assert receive(old, 11) == b"still there"
            assert "Traceback" not in program.err
            assert program.terminate() == 0


def test_a_file_of_the_flag_is_watched_without_a_configuration_file(tmp_path: Path, plugin: Path) -> None:
    plugin.write_text(recognising("A"))
    with Backend(echo) as backend:
        flags = ("-b", "127.0.0.1", "-p", "0", "-f", f"mine={backend.address}", "--plugin", plugin)
        with serving("tcp", *flags, cwd=tmp_path) as program:
            assert answers(program, b"A")
            rewrite(plugin, recognising("B"))
            program.await_err("configuration 2 is in force")
            assert answers(program, b"B")
            assert program.terminate() == 0


@both
def test_a_reload_adds_and_removes_files(tmp_path: Path, plugin: Path, workers: int) -> None:
    plugin.write_text(recognising("A"))
    other = tmp_path / "other"
    other.mkdir()
    (other / "second.py").write_text("1 / 0\n")
    file = tmp_path / "refractium.toml"
    with Backend(echo) as backend:
        file.write_text(config(backend.address, workers))
        with serving("--log-format", "plain", cwd=tmp_path) as program:
            new = config(backend.address, workers, 'paths = ["other/second.py"]').replace(
                '"mine"', '"second"'
            )
            rewrite(file, new)
            program.await_err(r"not reloaded: .*other/second\.py:1: ZeroDivisionError")
            assert answers(program, b"A")
            rewrite(other / "second.py", recognising("B", "second"))  # which is watched although it failed
            program.await_err("configuration 2 is in force")
            assert answers(program, b"B")
            assert not answers(program, b"A")
            assert "mine" not in {one.id for one in status_of(program).plugins}
            rewrite(other / "second.py", recognising("C", "second"))
            program.await_err("configuration 3 is in force")
            assert answers(program, b"C")
            assert program.terminate() == 0


@pytest.mark.slow
def test_a_new_worker_runs_the_code_in_force_although_the_file_is_broken(
    tmp_path: Path, plugin: Path
) -> None:
    plugin.write_text(recognising("A"))
    with Backend(echo) as backend:
        (tmp_path / "refractium.toml").write_text(config(backend.address, 2))
        with serving("--log-format", "plain", cwd=tmp_path) as program:
            rewrite(plugin, "1 / 0\n")
            program.await_err("not reloaded")
            killed = status_of(program).workers[0].pid
            assert killed is not None
            os.kill(killed, signal.SIGKILL)

            def is_replaced() -> bool:
                alive = [one for one in status_of(program).workers if one.pid]
                return len(alive) == 2 and killed not in {one.pid for one in alive}

            eventually(is_replaced, "another worker serves")
            assert answers(program, b"A")
            assert program.terminate() == 0


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_changed_hook_sees_new_sessions(tmp_path: Path, plugin: Path, isolation: str) -> None:
    plugin.write_text(recording("old", tmp_path / "seen", isolation))
    with Backend(echo) as backend:
        text = config(backend.address, 1, more='hooks = ["mine"]\n').replace('name = "mine"', 'name = "any"')
        (tmp_path / "refractium.toml").write_text(text)

        def seen(line: str) -> bool:
            path = tmp_path / "seen"
            return path.exists() and line in path.read_text().splitlines()

        with serving("--log-format", "plain", cwd=tmp_path) as program:
            assert ask(program.address, b"one").data == b"one"
            eventually(lambda: seen("old one"), "the hook sees the first session")
            rewrite(plugin, recording("new", tmp_path / "seen", isolation))
            program.await_err("configuration 2 is in force")
            assert ask(program.address, b"two").data == b"two"
            eventually(lambda: seen("new two"), "the changed hook sees the second session")
            if isolation == "process":
                rewrite(plugin, "1 / 0\n")
                program.await_err("not reloaded")
                for child in children(program.pid):
                    os.kill(child, signal.SIGKILL)
                program.await_err("a new one in")
                eventually(lambda: bool(children(program.pid)), "there is another process")

                def is_seen() -> bool:
                    assert ask(program.address, b"three").data == b"three"
                    return seen("new three")

                eventually(is_seen, "the new process has the code in force")
            assert program.terminate() == 0


@both
@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_an_open_session_keeps_the_hook_with_which_it_began(
    tmp_path: Path, plugin: Path, workers: int, isolation: str
) -> None:
    seen = tmp_path / "seen"
    plugin.write_text(recording("old", seen, isolation))
    with Backend(echo) as backend:
        text = config(backend.address, workers, more='hooks = ["mine"]\n')
        (tmp_path / "refractium.toml").write_text(text.replace('name = "mine"', 'name = "any"'))
        with serving("--log-format", "plain", cwd=tmp_path) as program:
            with connect(program.address) as old:
                old.sendall(b"a")
                assert receive(old, 1) == b"a"
                rewrite(plugin, recording("new", seen, isolation))
                program.await_err("configuration 2 is in force")
                assert ask(program.address, b"b").data == b"b"
                old.sendall(b"c")
                assert receive(old, 1) == b"c"
            assert program.terminate() == 0
    assert sorted(seen.read_text().splitlines()) == ["new b", "new b", "old a", "old a", "old c", "old c"]


def test_without_hot_reload_only_sighup_applies_a_changed_file(tmp_path: Path, plugin: Path) -> None:
    plugin.write_text(recognising("A"))
    with Backend(echo) as backend:
        (tmp_path / "refractium.toml").write_text(config(backend.address, 1))
        with serving("--no-hot-reload", cwd=tmp_path) as program:
            rewrite(plugin, recognising("B"))
            assert answers(program, b"A")
            program.signal(signal.SIGHUP)
            program.await_err("configuration 2 is in force")
            assert answers(program, b"B")
            assert program.terminate() == 0
