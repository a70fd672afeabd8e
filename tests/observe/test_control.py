"""The control socket: the users that get an answer, and the fate of its file."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
import uvloop

from refractium import Refractium, RefractiumError
from refractium.observe import control
from refractium.observe.control import ControlSocket, ask, decode
from refractium.observe.status import Reload
from support.clients import PATIENCE
from support.proxy import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator

    from refractium.observe.status import Status

    Loop = Callable[[], asyncio.AbstractEventLoop]

NOBODY = 65_534


@pytest.fixture
def path() -> Iterator[Path]:
    """Return a path for the socket in a folder that every user may enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder, "control.sock")


@pytest.fixture(params=[uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def loop(request: pytest.FixtureRequest) -> Loop:
    found: Loop = request.param
    return found


def run(loop: Loop, coroutine: Coroutine[None, None, None]) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(asyncio.wait_for(coroutine, 2 * PATIENCE))


async def status_of_nothing() -> Status:
    return await Refractium().status()


@asynccontextmanager
async def opened(
    path: Path, status: Callable[[], Awaitable[Status]] = status_of_nothing
) -> AsyncIterator[ControlSocket]:
    control = ControlSocket(path, status)
    await control.open()
    try:
        yield control
    finally:
        await control.close()


def mode_of(path: Path) -> int:
    return path.stat().st_mode


def open_to_all(path: Path) -> None:
    path.chmod(0o666)


def replace(path: Path) -> None:
    path.unlink()
    path.write_text("another's")


async def answer(path: Path) -> Status:
    return decode(await asyncio.to_thread(ask, [path]))


def test_the_socket_answers_its_own_user_and_is_removed_at_the_end(path: Path, loop: Loop) -> None:
    async def main() -> None:
        engine = Refractium()

        async def status() -> Status:
            return engine.status_now()

        async with opened(path, status):
            mode = mode_of(path)
            assert stat.S_ISSOCK(mode)
            assert stat.S_IMODE(mode) == 0o600
            for _ in range(20):
                told = await answer(path)
                assert told.generation == 1
                assert told.started == engine.status_now().started

    run(loop, main())
    assert not path.exists()


def test_a_socket_that_somebody_has_removed_comes_back(
    path: Path, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "_LOOK", 0.02)

    async def main() -> None:
        async with opened(path):
            for _ in range(3):
                await asyncio.to_thread(path.unlink)
                await asyncio.to_thread(eventually, path.exists, "it is there again")
                assert (await answer(path)).generation == 1
                assert stat.S_IMODE(mode_of(path)) == 0o600

    run(loop, main())
    assert not path.exists()


def test_a_stale_socket_is_replaced(path: Path, loop: Loop) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    assert path.exists()

    async def main() -> None:
        async with opened(path):
            assert (await answer(path)).generation == 1

    run(loop, main())


def test_the_socket_of_a_living_instance_is_left_alone(path: Path, loop: Loop) -> None:
    async def main() -> None:
        async with opened(path) as first:
            with pytest.raises(OSError, match="in use"):
                await ControlSocket(path, status_of_nothing).open()
            assert first.path.exists()
            assert (await answer(path)).generation == 1

    run(loop, main())


def test_a_file_that_is_not_a_socket_is_left_alone(path: Path, loop: Loop) -> None:
    path.write_text("mine")
    with pytest.raises(OSError, match="in use"):
        run(loop, ControlSocket(path, status_of_nothing).open())
    assert path.read_text() == "mine"


def test_a_file_that_replaced_the_socket_stays(path: Path, loop: Loop) -> None:
    async def main() -> None:
        async with opened(path):
            replace(path)

    run(loop, main())
    assert path.read_text() == "another's"


def test_a_client_that_does_not_read_delays_neither_others_nor_the_stop(path: Path, loop: Loop) -> None:
    large = Reload(datetime.now(UTC), ok=False, errors=("x" * 4_000_000,))
    engine = Refractium()

    async def status() -> Status:
        return msgspec.structs.replace(engine.status_now(), last_reload=large)

    async def main() -> None:
        async with opened(path, status):
            with socket.socket(socket.AF_UNIX) as lazy:
                lazy.connect(str(path))
                told = await answer(path)
                assert told.last_reload == large

    run(loop, main())


def test_no_more_than_eight_clients_are_answered_at_once(path: Path, loop: Loop) -> None:
    large = Reload(datetime.now(UTC), ok=False, errors=("x" * 4_000_000,))
    engine = Refractium()

    async def status() -> Status:
        return msgspec.structs.replace(engine.status_now(), last_reload=large)

    async def main() -> None:
        async with opened(path, status):
            lazy = [socket.socket(socket.AF_UNIX) for _ in range(8)]
            for sock in lazy:
                sock.connect(str(path))
            with pytest.raises(RefractiumError, match="busy"):
                await answer(path)
            for sock in lazy:
                sock.close()

    run(loop, main())


def connect_as_nobody(path: Path) -> tuple[int, str]:
    code = f"""
import os, socket
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
with socket.socket(socket.AF_UNIX) as client:
    client.connect({str(path)!r})
    print(client.recv(9))
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        # Coverage would write its data as that user, who may not write there.
        env={key: value for key, value in os.environ.items() if not key.startswith("COV")},
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_user_can_neither_connect_nor_get_an_answer(path: Path, loop: Loop) -> None:
    async def main() -> None:
        async with opened(path):
            code, said = await asyncio.to_thread(connect_as_nobody, path)
            assert code == 1
            assert "PermissionError" in said
            open_to_all(path)
            code, said = await asyncio.to_thread(connect_as_nobody, path)
            assert (code, said) == (0, "b''\n")
            assert (await answer(path)).generation == 1

    run(loop, main())


LISTEN_AS_NOBODY = f"""
import os, socket, sys
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
with socket.socket(socket.AF_UNIX) as server:
    server.bind(sys.argv[1])
    server.listen()
    print("listens", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
@pytest.mark.parametrize(
    ("mode", "owner", "said"),
    [(0o1777, 0, "is not answered by a process of yours"), (0o755, NOBODY, "does not answer: timed out")],
)
def test_only_an_instance_that_may_own_the_socket_is_trusted(
    path: Path, mode: int, owner: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "_PATIENCE", 0.3)
    path.parent.chmod(mode)
    os.chown(path.parent, owner, owner)
    command = [sys.executable, "-I", "-c", LISTEN_AS_NOBODY, str(path)]
    env = {key: value for key, value in os.environ.items() if not key.startswith("COV")}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"listens\n"
        with pytest.raises(RefractiumError, match=said):
            ask([path])
        other.communicate()


def test_the_client_names_the_path_at_which_nobody_answers(path: Path) -> None:
    with pytest.raises(RefractiumError, match=rf"{path}; .*/nowhere"):
        ask([path, Path("/nowhere")])
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(RefractiumError, match="any more"):
        ask([path])


def test_an_answer_of_something_else_is_an_error() -> None:
    with pytest.raises(RefractiumError, match="another version"):
        decode(b'{"version": 3}')
