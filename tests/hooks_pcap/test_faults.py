"""The mirror in a running proxy when processes are killed and when a disk is full."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import signal
import struct
import subprocess
import termios
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from hooks_pcap.capturing import PCAPNG, read_file, records_of
from hooks_pcap.following import assert_sound, follow
from hooks_pcap.mirroring import (
    await_captured,
    await_end_of,
    configuration,
    mirroring,
    state_of,
    tallies,
)
from hooks_pcap.test_outputs_files import small_disk
from refractium_hooks_pcap.outputs.files import FileSeries, Rotation
from refractium_hooks_pcap.outputs.names import FileNames
from refractium_hooks_pcap.reader import Reader
from support.backends import Backend, echo
from support.clients import ask, connect, payload, receive
from support.process import TIMEOUT, Running, children, run
from support.programs import require_program
from support.proxy import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUTES: Final = 4
"""Number of routes. Each has a hook with a file and a process of its own. The last one gets clients that
match no pattern."""
PROXIES: Final = 10
"""Number of proxies. Each is killed after the processes of its hooks, which makes fifty kills."""


@contextmanager
def load(proxy: Running) -> Iterator[None]:
    """Send sessions of up to 20 KB both ways on every route, one after the other, while the block runs."""
    over = threading.Event()

    def talk(route: int) -> None:
        chance = random.Random(route)  # noqa: S311 - test data
        while not over.wait(0.002):
            with suppress(OSError):
                ask(proxy.address, b"%d" % route + chance.randbytes(chance.randrange(20_000)))

    threads = [threading.Thread(target=talk, args=(route,)) for route in range(ROUTES)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(TIMEOUT)


def routed(folder: Path, backend: str) -> tuple[str, list[Path]]:
    """Return a configuration with all routes, and the files of their hooks."""
    paths = [folder / f"{route}.pcapng" for route in range(ROUTES)]
    lines = [configuration(backend, paths[-1])]
    for route, path in enumerate(paths[:-1]):
        lines += [f'[[protocols]]\nname = "route{route}"\npatterns = [{{ regex = "^{route}" }}]']
        lines += [f'forward_to = "{backend}"\nhooks = [{{ name = "pcap", path = "{path}" }}]']
    return "\n".join(lines), paths


def in_pipe(pid: int) -> int:
    """Return the number of bytes on their way to the process of a hook, whose arguments end with two
    descriptors."""
    events = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[-3].decode()
    with Path(f"/proc/{pid}/fd/{events}").open("rb") as pipe:
        count: int = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]
        return count


def stop_to_kill(proxy: Running) -> list[int]:
    """Stop a proxy so that it starts no further process, and return its present children."""
    proxy.signal(signal.SIGSTOP)
    return children(proxy.pid)


def whole_packets(path: Path) -> int:
    """Return the number of packets up to the last whole one; none of them may be damaged."""
    reader, count, data = Reader(), 0, path.read_bytes()
    while more := reader.feed(data):
        count += len(more)
        data = b""
    return count


def has_packets(path: Path) -> bool:
    return path.exists() and whole_packets(path) > 0


def append(path: Path) -> None:
    """Write one more packet to a file, as the next run does."""
    files = FileSeries(FileNames.parse(str(path), numbered=False), PCAPNG, Rotation())
    files.write(records_of(b"one more")[-1:])
    files.close()


def assert_opens(paths: list[Path]) -> None:
    command = [require_program("capinfos"), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert done.returncode == 0, done.stderr


# Kills


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_after_kills_at_fifty_moments_every_file_is_valid_up_to_its_last_record(tmp_path: Path) -> None:
    seed = time.time_ns()
    print("seed", seed)  # noqa: T201 - shown if the test fails
    chance = random.Random(seed)  # noqa: S311 - test data
    with Backend(echo) as backend:
        for number in range(PROXIES):
            (folder := tmp_path / str(number)).mkdir()
            text, paths = routed(folder, backend.address)
            with mirroring(folder, text) as proxy, load(proxy):
                eventually(lambda: all(map(has_packets, paths)), "every hook writes")  # noqa: B023 - at once
                hooks = children(proxy.pid)
                assert len(hooks) == ROUTES
                for pid in chance.sample(hooks, ROUTES):
                    time.sleep(chance.random() * 0.1)
                    os.kill(pid, signal.SIGKILL)
                time.sleep(chance.random() * 0.1)
                hooks = stop_to_kill(proxy)
                proxy.signal(signal.SIGKILL)
                assert proxy.wait() == -signal.SIGKILL
                await_end_of(hooks)
            for path in paths:
                count = whole_packets(path)
                assert count
                append(path)
                assert len(read_file(path)) == count + 1
            assert_opens(paths)
            shutil.rmtree(folder)


def test_packets_on_their_way_to_the_hook_of_a_killed_proxy_are_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    text = configuration("{address}", path)
    data = payload("killed", 200_000)
    with (
        Backend(echo) as backend,
        mirroring(tmp_path, text.replace("{address}", backend.address)) as proxy,
        connect(proxy.address) as client,
    ):
        client.sendall(b"first")
        assert receive(client, 5) == b"first"
        await_captured(proxy)
        (hook,) = children(proxy.pid)
        os.kill(hook, signal.SIGSTOP)
        eventually(lambda: state_of(hook) == "T", "the process of the hook is stopped")
        client.sendall(data)
        assert receive(client, len(data)) == data
        eventually(lambda: in_pipe(hook) > 2 * len(data), "the data is on its way to the hook")
        proxy.signal(signal.SIGKILL)
        assert proxy.wait() == -signal.SIGKILL
        os.kill(hook, signal.SIGCONT)
        await_end_of([hook])
    raw = ("-d", f"tcp.port=={backend.port},data")
    (one,) = follow(path, *raw)
    assert (one.up == one.down == b"first" + data) is True


def test_the_successor_of_a_killed_hook_appends(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    with Backend(echo) as backend, mirroring(tmp_path, configuration(backend.address, path)) as proxy:
        assert ask(proxy.address, b"first").data == b"first"
        await_captured(proxy)
        with connect(proxy.address) as client:
            client.sendall(b"old")
            assert receive(client, 3) == b"old"
            await_captured(proxy)
            (pid,) = children(proxy.pid)
            os.kill(pid, signal.SIGKILL)
            proxy.await_err("its process was killed by signal 9; a new one in")
            eventually(lambda: children(proxy.pid) not in ([], [pid]), "the hook has another process")
            client.sendall(b" and on")
            assert receive(client, 7) == b" and on"
        assert ask(proxy.address, b"second").data == b"second"
        # Some of the packets on their way to the killed hook are dropped.
        eventually(
            lambda: all(one.seen == one.delivered + one.dropped for one in tallies(proxy)), "it is told"
        )
        assert proxy.terminate() == 0
    assert_sound(path)
    assert [(one.up, one.down) for one in follow(path)] == [
        (one, one) for one in (b"first", b"old", b"second")
    ]


# Full disks


def test_a_full_disk_loses_packets_and_nothing_else(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, "64k"), Backend(echo) as backend:
        path = disk / "a.pcapng"
        with mirroring(tmp_path, configuration(backend.address, path)) as proxy:
            for number in range(100):
                data = payload(number, 20_000)
                assert ask(proxy.address, data).data == data
            await_captured(proxy)
            assert proxy.terminate() == 0
            assert proxy.err.count(" error ") == 1
            assert f"cannot write {path}, packets are lost: No space left on device" in proxy.err
        assert 30_000 < path.stat().st_size <= 65_536
        assert read_file(path)


def test_a_device_as_a_file_is_refused_before_anything_starts(tmp_path: Path) -> None:
    path = tmp_path / "refractium.toml"
    path.write_text(configuration("127.0.0.1:1", "/dev/full"))
    done = run("tcp", "-c", path)
    assert done.code == 2
    assert "plugins.pcap.path: /dev/full is neither a file nor a FIFO" in done.err
