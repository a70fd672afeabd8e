"""The mirror in a running proxy: stopped, reloaded, and viewed meanwhile."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import threading
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from hooks_pcap.capturing import files_in
from hooks_pcap.following import assert_sound, follow
from hooks_pcap.mirroring import await_captured, configuration, mirroring, queued_bytes, runs
from support.backends import Backend, digest, echo, sink
from support.clients import MIB, ask, connect, payload, receive, receive_all
from support.process import TIMEOUT, Running, children, free_port, serving
from support.programs import require_program
from support.proxy import eventually
from support.status import status_of

if TYPE_CHECKING:
    from pathlib import Path

BURST: Final = 8 * MIB


# Stop


def test_all_traffic_before_the_stop_is_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    data = payload("burst", BURST)
    with (
        Backend(sink) as backend,
        mirroring(tmp_path, configuration(backend.address, path)) as proxy,
        connect(proxy.address) as client,
    ):
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        answer = receive_all(client).data
        assert answer == digest(data)
        # Some packets may still be on their way, but no more than the time limit of the stop allows to
        # write.
        eventually(lambda: queued_bytes(proxy) < MIB // 4, "the hook keeps up")
        pids = children(proxy.pid)
        assert proxy.terminate() == 0
        assert not any(runs(pid) for pid in pids)
    assert_sound(path, "-d", f"tcp.port=={backend.port},data")
    (one,) = follow(path, "-d", f"tcp.port=={backend.port},data")
    assert (one.up == data) is True
    assert one.down == answer


# Rotation and reload


def test_rotated_files_under_load_lose_no_packet_and_repeat_none(tmp_path: Path) -> None:
    folder = tmp_path / "captures"
    folder.mkdir()
    text = configuration("{address}", folder / "a.pcapng", max_bytes=300_000)
    sent: Counter[bytes] = Counter()

    def talk(proxy: Running, number: int) -> None:
        chance = random.Random(number)  # noqa: S311 - test data
        for _ in range(25):
            data = chance.randbytes(chance.randrange(1, 100_000))
            assert ask(proxy.address, data).data == data
            sent[data] += 1

    with (
        Backend(echo) as backend,
        mirroring(tmp_path, text.replace("{address}", backend.address)) as proxy,
    ):
        threads = [threading.Thread(target=talk, args=(proxy, number)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT)
        await_captured(proxy)
        assert proxy.terminate() == 0
    assert sent.total() == 100
    names = files_in(folder)
    assert len(names) > 20
    assert all((folder / name).stat().st_size <= 300_000 for name in names)
    whole = tmp_path / "whole.pcapng"
    whole.write_bytes(b"".join((folder / name).read_bytes() for name in names))
    raw = ("-d", f"tcp.port=={backend.port},data")
    assert_sound(whole, *raw)
    found = follow(whole, *raw)
    assert Counter(one.up for one in found) == sent
    assert Counter(one.down for one in found) == sent


def test_after_a_reload_old_sessions_go_on_in_the_old_file_and_new_ones_in_the_new(tmp_path: Path) -> None:
    old, new = tmp_path / "old.pcapng", tmp_path / "new.pcapng"
    port = free_port()
    with (
        Backend(echo) as backend,
        mirroring(tmp_path, configuration(backend.address, old, port=port)) as proxy,
        connect(proxy.address) as client,
    ):
        client.sendall(b"before")
        assert receive(client, 6) == b"before"
        changed = tmp_path / "changed"
        changed.write_text(configuration(backend.address, new, port=port))
        changed.rename(tmp_path / "refractium.toml")
        proxy.await_err("configuration 2 is in force")
        assert ask(proxy.address, b"after").data == b"after"
        client.sendall(b" and after")
        assert receive(client, 10) == b" and after"
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == (b"", "eof")
        await_captured(proxy)
        assert proxy.terminate() == 0
    for path, data in ((old, b"before and after"), (new, b"after")):
        assert_sound(path)
        assert [(one.up, one.down) for one in follow(path)] == [(data, data)]


# Viewers


def test_stdout_is_a_capture_that_tshark_reads_from_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "refractium.toml"
    data = payload("piped", 200_000)
    with ExitStack() as stack:
        backend = stack.enter_context(Backend(echo))
        path.write_text(configuration(backend.address, "-"))
        read_end, write_end = os.pipe()
        command = [require_program("tshark"), "-n", "-l", "-i", "-", "-d", f"tcp.port=={backend.port},data"]
        tshark = stack.enter_context(
            subprocess.Popen(
                [*command, "-T", "fields", "-e", "tcp.dstport", "-e", "tcp.payload"],
                stdin=read_end,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(tshark.kill)
        os.close(read_end)
        proxy = stack.enter_context(Running("tcp", "-c", path, stdout=write_end))
        os.close(write_end)
        port = int(proxy.await_err(r"^Listening on tcp://\S+:(\d+)$")[1])
        assert ask(("127.0.0.1", port), data).data == data

        def is_written() -> bool:
            told = [one for hook in status_of(proxy, port).hooks for one in (hook.inbound, hook.outbound)]
            return all(one.seen == one.delivered for one in told)

        eventually(is_written, "the hook has written all packets")
        assert proxy.terminate() == 0
        out, err = tshark.communicate(timeout=TIMEOUT)
    sides: dict[bool, bytes] = {True: b"", False: b""}
    for line in out.splitlines():
        to, _, sent = line.partition("\t")
        sides[int(to) == backend.port] += bytes.fromhex(sent)
    assert sides == {True: data, False: data}, err


def test_tshark_captures_live_from_a_port(tmp_path: Path) -> None:
    listen = free_port()
    path = tmp_path / "refractium.toml"
    with ExitStack() as stack:
        backend = stack.enter_context(Backend(echo))
        text = configuration(backend.address, tmp_path / "a.pcapng", listen=f'"127.0.0.1:{listen}"')
        path.write_text(text)
        proxy = stack.enter_context(serving("tcp", "-c", path))
        proxy.await_err(f"listening for viewers on TCP@127.0.0.1:{listen}")
        command = [require_program("tshark"), "-n", "-l", "-i", f"TCP@127.0.0.1:{listen}"]
        # tshark does not see packets that pass before it has connected.
        tshark = stack.enter_context(
            subprocess.Popen(
                [*command, "-d", f"tcp.port=={backend.port},data", "-T", "fields", "-e", "tcp.payload"],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(tshark.kill)
        proxy.await_err("viewer 127.0.0.1:[0-9]+ connected")
        assert ask(proxy.address, b"seen by others").data == b"seen by others"
        await_captured(proxy)
        assert proxy.terminate() == 0
        out, err = tshark.communicate(timeout=TIMEOUT)
    assert [bytes.fromhex(line) for line in out.splitlines() if line] == [b"seen by others"] * 2, err
    assert [(one.up, one.down) for one in follow(tmp_path / "a.pcapng")] == [(b"seen by others",) * 2]
