"""The program with several workers, as users start it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.request import urlopen

import pytest

from support.backends import Backend, named
from support.clients import ask, connect, receive, receive_all
from support.datagrams import UdpBackend, client, echo, look_up
from support.process import Running, children, environment, free_port, run, serving
from support.proxy import eventually
from support.status import status_of

if TYPE_CHECKING:
    from collections.abc import Iterator

DIE: Final = """
import os, sys
if any("workers.worker" in word for word in sys.orig_argv) and {condition}:
    os._exit(7)
"""
"""A ``sitecustomize`` that makes workers die before they have started."""


def configured(folder: Path, *, more: str = "", top: str = "", **server: object) -> Path:
    """Write a configuration, with two workers unless another number is given."""
    values = {"bind": "127.0.0.1", "port": 0, "workers": 2, "max_connections_per_ip": 1000, **server}
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    path = folder / "refractium.toml"
    path.write_text("\n".join([top, "[server]", *lines, more]), encoding="utf-8")
    return path


def pids(program: Running) -> list[int]:
    """Return the process ids of the workers, in order."""
    found = [one.pid for one in status_of(program).workers]
    assert None not in found
    return [pid for pid in found if pid]


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@contextmanager
def connected(address: tuple[str, int], count: int) -> Iterator[list[socket.socket]]:
    """Connect clients, and yield them once they are served."""
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(address)) for _ in range(count)]
        for one in clients:
            one.sendall(b"hello")
            assert receive(one, 6) == b"ahello"
        yield clients


def oom_score_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def test_without_memory_the_kernel_kills_hooks_before_workers_and_workers_before_their_supervisor(
    tmp_path: Path,
) -> None:
    path = tmp_path / "{protocol}-{number}.pcapng"
    more = f'[plugins.pcap]\npath = "{path}"\n'
    with Backend(named("a")) as backend:
        configured(tmp_path, top=f'fallback_tcp = "{backend.address}"\n', hooks=["pcap"], more=more)
        with serving(cwd=tmp_path) as program:
            supervisor = oom_score_of(program.pid)
            for worker in pids(program):
                assert oom_score_of(worker) == min(1000, supervisor + 100)
                eventually(lambda worker=worker: bool(children(worker)), "the hook has begun")  # type: ignore[misc]
                (hook,) = children(worker)
                eventually(
                    lambda hook=hook: oom_score_of(hook) == min(1000, supervisor + 300),  # type: ignore[misc]
                    "the hook comes first",
                )


def test_start_status_metrics_and_stop_treat_all_workers_as_one_program(tmp_path: Path) -> None:
    with Backend(named("a")) as backend:
        configured(
            tmp_path,
            top=f'fallback_tcp = "{backend.address}"\n',
            workers=1,
            more='[metrics]\nbind = "127.0.0.1:0"\n',
        )
        with serving("--workers", 2, cwd=tmp_path) as program:
            metrics = program.await_out(r"^Metrics on (\S+)$").group(1)
            with connected(program.address, 20):
                eventually(lambda: status_of(program).tcp.active == 20, "20 connections are open")
                table = run("status", "-p", program.port).out
                (one, two) = status_of(program).workers
                for worker in (one, two):
                    row = rf"^{worker.number} +{worker.pid} +\d{{4}}-\S+ \S+ UTC +0 +{worker.active} *$"
                    assert re.search(row, table.partition("Workers")[2], re.MULTILINE), table
                with urlopen(metrics, timeout=20) as answer:  # noqa: S310 - our own address
                    text = answer.read().decode()
                assert 'refractium_connections_active{route="fallback",transport="tcp"} 20.0' in text
                assert f'refractium_worker_active{{worker="1"}} {one.active}.0' in text
                assert 'refractium_worker_up{worker="2"} 1.0' in text
                assert 'refractium_worker_restarts_total{worker="2"} 0.0' in text
            assert program.out.count("Listening on tcp://") == 1
            assert program.terminate() == 0
            assert not is_running(one.pid or 0)
            assert not is_running(two.pid or 0)
            assert "stopped after 20 connections" in program.err.splitlines()[-1]


def test_first_bytes_that_decide_no_route_reach_no_backend_of_any_worker(tmp_path: Path) -> None:
    with Backend(named("ours")) as ours, Backend(named("others")) as others, ExitStack() as stack:
        more = (
            "[plugins.http]\nmax_header_bytes = 4096\n"
            f'[[protocols]]\nname = "http"\nhost = "a.example"\nid = "ours"\nforward_to = "{ours.address}"\n'
            f'[[protocols]]\nname = "http"\nforward_to = "{others.address}"\n'
            f'[[protocols]]\nname = "socks"\nforward_to = "{others.address}"\n'
            'patterns = [{ hex = "05 01" }]\n'
            '[[protocols]]\nname = "dns"\ntransport = "tcp"\nforward_to = "127.0.0.1:1"\n'
        )
        path = configured(tmp_path, more=more, peek_timeout_ms=60_000)
        program = stack.enter_context(serving("-c", path))
        address = ("127.0.0.1", program.port)
        for _ in range(4):
            within, beyond = (
                b"GET / HTTP/1.1\r\nX: ".ljust(size, b"x") + b"\r\nHost: a.example\r\n\r\n"
                for size in (4000, 4096)
            )
            assert ask(address, within).data.startswith(b"ours")
            assert ask(address, beyond).data == b""
            with connect(address) as client:
                client.sendall(b"\x05\x01\x00")
                assert receive(client, 6) == b"others"
        assert others.accepted == 4
        assert status_of(program).tcp.outcomes == {"identified": 8, "too_large": 4}


def test_auto_starts_as_many_workers_as_processors(tmp_path: Path) -> None:
    few = min(os.sched_getaffinity(0))
    configured(tmp_path, top='fallback_tcp = "127.0.0.1:9"\n', workers=1)
    shell = f'exec taskset -c {few} "$@"'
    with Running("--workers", "auto", cwd=tmp_path, shell=shell) as program:
        program.await_out("Listening on")
        assert status_of(program).workers == ()  # one worker: the program serves itself
        program.terminate()
    wrong = run("--workers", "0", cwd=tmp_path)
    assert (wrong.code, "1<=x<=256" in wrong.err) == (2, True)


# Limits


class Counting:
    """The number of concurrent connections of a backend, and its maximum."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = 0
        self.most = 0

    def __call__(self, sock: socket.socket) -> None:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            named("a")(sock)
        finally:
            with self._lock:
                self._now -= 1


def enter(address: tuple[str, int], source: str | None = None) -> socket.socket | None:
    """Connect a client that stays; return None if it was refused."""
    one = connect(address, source=source)
    try:
        one.sendall(b"x")
        if receive(one, 2) == b"ax":
            return one
    except ConnectionError:
        pass
    one.close()
    return None


def test_of_a_thousand_concurrent_clients_exactly_the_limit_is_admitted(tmp_path: Path) -> None:
    counting = Counting()
    with Backend(counting) as backend, ThreadPoolExecutor(100) as pool, ExitStack() as stack:
        configured(
            tmp_path, top=f'fallback_tcp = "{backend.address}"\n', max_connections=100, peek_timeout_ms=20_000
        )
        program = stack.enter_context(serving("tcp", cwd=tmp_path))
        let_in = [one for one in pool.map(enter, [program.address] * 1000) if one is not None]
        assert (len(let_in), counting.most) == (100, 100)
        status = status_of(program)
        assert (status.tcp.active, status.tcp.refused) == (100, {"max_connections": 900})
        let_in.pop().close()
        eventually(lambda: status_of(program).tcp.active == 99, "one client has left")
        found = [one for one in pool.map(enter, [program.address] * 20) if one is not None]
        assert (len(found), counting.most) == (1, 100)
        for one in (*let_in, *found):
            one.close()


@pytest.mark.needs_ipv6
def test_the_limit_of_each_address_is_exact_and_mapped_clients_count_by_ipv4_address(tmp_path: Path) -> None:
    sources = [f"127.0.0.{number}" for number in range(1, 6)]
    with Backend(named("a")) as backend, ThreadPoolExecutor(50) as pool:
        configured(tmp_path, top=f'fallback_tcp = "{backend.address}"\n', bind="::", max_connections_per_ip=7)
        with serving("tcp", cwd=tmp_path) as program:
            tries = [source for _ in range(20) for source in sources]
            let_in = list(pool.map(lambda source: enter(program.address, source), tries))
            found = Counter(source for source, one in zip(tries, let_in, strict=True) if one is not None)
            assert found == dict.fromkeys(sources, 7)
            let_in.append(enter(("::1", program.port)))
            assert let_in[-1] is not None  # a client with another address
            assert status_of(program).tcp.refused == {"max_connections_per_ip": 100 - 35}
            for one in let_in:
                if one is not None:
                    one.close()


# Death of workers


def test_a_worker_killed_under_load_ends_only_its_own_connections(tmp_path: Path) -> None:
    over = threading.Event()
    worst = 0.0

    def visit() -> int:
        nonlocal worst
        broken = 0
        while not over.is_set():
            began = time.monotonic()
            broken += ask(program.address, b"x").data != b"ax"
            worst = max(worst, time.monotonic() - began)
        return broken

    with Backend(named("a")) as backend, ThreadPoolExecutor(4) as pool:
        configured(tmp_path, top=f'fallback_tcp = "{backend.address}"\n')
        with serving("tcp", cwd=tmp_path) as program, connected(program.address, 30) as clients:
            visitors = [pool.submit(visit) for _ in range(4)]
            first = pids(program)[0]
            os.kill(first, signal.SIGKILL)
            program.await_err(rf"worker 1 \(process {first}\): it was killed by signal 9$")
            eventually(
                lambda: status_of(program).workers[0].pid not in {None, first},
                "the killed worker is replaced",
            )
            eventually(lambda: status_of(program).workers[0].active > 0, "the new worker serves clients")
            over.set()
            # At most the one connection of each visitor that the worker had accepted; waiting clients were
            # served.
            assert sum(one.result() for one in visitors) <= 4
            assert worst < 10, "a client waited too long; on an idle machine the longest wait is a second"
            alive = 0
            for one in clients:
                try:
                    one.sendall(b"on")
                    alive += receive(one, 2) == b"on"
                except ConnectionError:
                    pass
            lost = 30 - alive
            assert 0 < lost < 30
            eventually(
                lambda: status_of(program).tcp.active == alive, "lost connections are no longer counted"
            )
            ended = next(one for one in status_of(program).tcp.routes if one.name == "fallback").ended
            assert ended["lost"] >= lost
            assert [one.restarts for one in status_of(program).workers] == [1, 0]


@pytest.fixture
def dying(tmp_path: Path) -> Path:
    """Return a folder for PYTHONPATH that makes workers die while it contains a file ``sick``."""
    folder = tmp_path / "site"
    folder.mkdir()
    sick = folder / "sick"
    sick.touch()
    (folder / "sitecustomize.py").write_text(DIE.format(condition=f"os.path.exists({str(sick)!r})"))
    return folder


def test_workers_that_die_at_the_start_are_tried_three_times_before_an_error(
    tmp_path: Path, dying: Path
) -> None:
    configured(tmp_path, top='fallback_tcp = "127.0.0.1:9"\n', workers=2)
    done = run(cwd=tmp_path, env=environment(PYTHONPATH=str(dying)))
    assert done.code == 1
    assert "Listening on" not in done.out
    assert re.search(r"^error: worker \d does not start: it ended with status 7$", done.err, re.MULTILINE)
    assert "Traceback" not in done.err
    assert 3 <= len(re.findall(r"worker \d \(process \d+\): it ended with status 7", done.err)) <= 6


def test_a_worker_that_keeps_dying_is_restarted_ever_more_seldom_and_delays_nothing(
    tmp_path: Path, dying: Path
) -> None:
    (dying / "sick").unlink()
    with Backend(named("a")) as old, Backend(named("b")) as new:
        configured(tmp_path, top=f'fallback_tcp = "{old.address}"\n', workers=2)
        env = environment(PYTHONPATH=str(dying))
        with serving("--no-hot-reload", cwd=tmp_path, env=env) as program:
            second = pids(program)[1]
            (dying / "sick").touch()
            os.kill(second, signal.SIGKILL)
            times = []
            for count in range(1, 5):
                program.await_err(rf"(?:^.*worker 2 .*: it ended with status 7\n(?:.*\n)*){{{count}}}")
                times.append(time.monotonic())
            assert times[3] - times[2] > 0.3
            more = f'fallback_tcp = "{new.address}"\nfallback_udp = "{new.address}"\n'
            configured(tmp_path, top=more, workers=2)
            program.signal(signal.SIGHUP)
            program.await_err("configuration 2 is in force")
            program.await_out("Listening on udp://")
            table = run("status", "-p", program.port).out
            (dying / "sick").unlink()
            eventually(lambda: status_of(program).workers[1].pid is not None, "the second worker is back")
            assert {ask(program.address, b"x").data for _ in range(20)} == {b"bx"}
            assert "Workers" in table
            assert program.terminate() == 0


def test_workers_leave_when_their_supervisor_is_killed_and_the_port_is_free(tmp_path: Path) -> None:
    with Backend(named("a")) as backend:
        configured(tmp_path, top=f'fallback_tcp = "{backend.address}"\nfallback_udp = "127.0.0.1:9"\n')
        with serving(cwd=tmp_path) as program, connected(program.address, 10) as clients:
            workers = pids(program)
            port = program.port
            program.signal(signal.SIGKILL)
            eventually(lambda: refuses(program.address), "new connections are refused")
            for one in clients:  # open connections may finish
                one.sendall(b"on")
                assert receive(one, 2) == b"on"
                one.close()
            eventually(lambda: not any(map(is_running, workers)), "the workers have ended")
        with serving("-p", port, cwd=tmp_path) as again:
            assert ask(again.address, b"x").data == b"ax"


def test_a_second_instance_on_the_port_fails_loudly(tmp_path: Path) -> None:
    configured(tmp_path, top='fallback_tcp = "127.0.0.1:9"\nfallback_udp = "127.0.0.1:9"\n')
    with serving(cwd=tmp_path) as program:
        program.await_out("Listening on udp://")
        for transport in ("tcp", "udp"):
            done = run(transport, "-p", program.port, cwd=tmp_path)
            assert done.code == 1
            assert (
                f"cannot listen on {transport}://127.0.0.1:{program.port}: the address is in use" in done.err
            )


# Signals


def test_sigterm_lets_connections_of_all_workers_finish_and_cuts_the_rest(tmp_path: Path) -> None:
    with Backend(named("a")) as backend:
        configured(tmp_path, top=f'fallback_tcp = "{backend.address}"\n', drain_timeout_ms=4000)
        with serving("tcp", cwd=tmp_path) as program, connected(program.address, 20) as clients:
            program.signal(signal.SIGTERM)
            program.await_err(r"SIGTERM: 20 connections may finish$")
            eventually(lambda: refuses(program.address), "new connections are refused")
            for one in clients[:17]:
                one.sendall(b"last words")
                one.shutdown(socket.SHUT_WR)
                assert receive_all(one) == (b"last words", "eof")
            assert program.wait() == 0
            assert {receive_all(one) for one in clients[17:]} == {(b"", "reset")}
            assert program.err.count("s closed\n") == 17
            assert program.err.count("s cut at the drain timeout\n") == 3
            cut = re.findall(r"warning stopped with (\d) connections or sessions still open", program.err)
            assert sum(map(int, cut)) == 3


def refuses(address: tuple[str, int]) -> bool:
    try:
        connect(address).close()
    except ConnectionError:
        return True
    return False


def test_a_second_signal_ends_all_workers_at_once(tmp_path: Path) -> None:
    with Backend(named("a")) as backend:
        configured(tmp_path, top=f'fallback_tcp = "{backend.address}"\n', drain_timeout_ms=600_000)
        with serving("tcp", cwd=tmp_path) as program, connected(program.address, 8) as clients:
            workers = pids(program)
            program.signal(signal.SIGTERM)
            program.await_err(r"SIGTERM: 8 connections may finish$")
            program.signal(signal.SIGTERM)
            assert program.wait() == 0
            assert {receive_all(one) for one in clients} == {(b"", "reset")}
            assert program.err.count("s cut by the stop\n") == 8
            assert not any(map(is_running, workers))


def test_only_the_supervisor_acts_on_signals_to_all_processes(tmp_path: Path) -> None:
    """A service manager that ends a whole group sends the signal to every process."""
    with Backend(named("a")) as backend:
        configured(tmp_path, top=f'fallback_tcp = "{backend.address}"\n')
        with serving("tcp", cwd=tmp_path) as program, connected(program.address, 6) as clients:
            for pid in (*pids(program), program.pid):
                os.kill(pid, signal.SIGTERM)
            program.await_err(r"SIGTERM: 6 connections may finish$")
            for one in clients:
                one.sendall(b"on")
                assert receive(one, 2) == b"on"
                one.close()
            assert program.wait() == 0


# Reload


def test_an_invalid_file_changes_no_worker_and_the_status_reports_it(
    tmp_path: Path,
) -> None:
    with Backend(named("a")) as backend, Backend(named("b")) as other:
        good = f'fallback_tcp = "{backend.address}"\n'
        configured(tmp_path, top=good)
        with serving("tcp", cwd=tmp_path) as program:
            configured(tmp_path, top=good, prt=1)
            program.signal(signal.SIGHUP)
            program.await_err("not reloaded: .*prt")
            last = status_of(program).last_reload
            assert last is not None
            assert not last.ok
            assert {ask(program.address, b"x").data for _ in range(20)} == {b"ax"}
            configured(tmp_path, top=f'fallback_tcp = "{other.address}"\n', workers=3)
            program.await_err("configuration 2 is in force")
            program.await_err(r"server.workers: .* 2 until a restart$")
            assert {ask(program.address, b"x").data for _ in range(20)} == {b"bx"}


def test_a_listener_that_is_removed_finishes_its_connections(tmp_path: Path) -> None:
    def file(*ports: int) -> None:
        tables = [f'[[listeners]]\nbind = "127.0.0.1"\nport = {port}\n' for port in ports]
        text = f'fallback_tcp = "{backend.address}"\n[server]\nworkers = 2\n'
        (tmp_path / "refractium.toml").write_text(text + "".join(tables))

    with Backend(named("a")) as backend:
        ports = free_port(), free_port()
        file(*ports)
        with serving("tcp", cwd=tmp_path) as program:
            program.await_out(f"Listening on tcp://127.0.0.1:{ports[1]}")
            with connected(("127.0.0.1", ports[1]), 10) as clients:
                file(ports[0])
                program.await_err("configuration 2 is in force")
                eventually(lambda: refuses(("127.0.0.1", ports[1])), "new connections are refused")
                for client_ in clients:
                    client_.sendall(b"on")
                    assert receive(client_, 2) == b"on"
                assert ask(("127.0.0.1", ports[0]), b"x").data == b"ax"
            assert program.terminate() == 0


# UDP, captures and logs


def test_udp_answers_reach_their_own_clients_and_sessions_stay(tmp_path: Path) -> None:
    with UdpBackend(echo) as backend, ExitStack() as stack:
        configured(tmp_path, top=f'fallback_udp = "{backend.address}"\n')
        program = stack.enter_context(serving("udp", cwd=tmp_path))
        clients = [stack.enter_context(client(program.address)) for _ in range(50)]
        for number in range(20):
            for at, one in enumerate(clients):
                one.send(b"%d of %d" % (number, at))
            for at, one in enumerate(clients):
                assert one.recv(100) == b"%d of %d" % (number, at)
        assert len(backend.clients) == 50
        status = status_of(program)
        assert (status.udp.sessions, status.udp.active, status.udp.dropped) == (50, 50, 0)
        assert all(one.active for one in status.workers)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_client_can_look_up_any_number_of_names_whatever_its_limits(tmp_path: Path, workers: int) -> None:
    """Each lookup has a port of its own, so the next lookup may reach another worker."""
    with UdpBackend(echo) as backend, Backend(named("a")) as tcp:
        configured(
            tmp_path,
            top=f'fallback_tcp = "{tcp.address}"\n',
            more=f'[[protocols]]\nname = "dns"\ntransport = "udp"\nforward_to = "{backend.address}"\n',
            workers=workers,
            max_connections_per_ip=1,
            max_udp_sessions_per_ip=1,
            max_udp_sessions=2,
        )
        with serving(cwd=tmp_path) as program, connected(program.address, 1):
            assert look_up(program.address, 300) == 300
            eventually(lambda: not status_of(program).udp.active, "all sessions have ended")
            status = status_of(program)
    assert (status.udp.refused, status.tcp.active) == ({}, 1)
    # The kernel may choose a port again while the last session of this port is still kept.
    assert {one.name: one.ended for one in status.udp.routes} == {"dns": {"answered": status.udp.sessions}}
    assert status.udp.sessions > 200


@pytest.mark.parametrize("workers", [1, 2])
def test_udp_clients_continue_after_silence_at_the_backend_that_knows_them(
    tmp_path: Path, workers: int
) -> None:
    with ExitStack() as stack:
        backends = [
            stack.enter_context(UdpBackend(lambda _: [b"0"])),
            stack.enter_context(UdpBackend(lambda _: [b"1"])),
        ]
        addresses = json.dumps([one.address for one in backends])
        route = '[[protocols]]\nname = "hello"\ntransport = "udp"\npatterns = ["hello"]\n'
        route += f"forward_to = {addresses}\n"
        configured(tmp_path, more=route, workers=workers, udp_session_timeout_ms=300)
        program = stack.enter_context(serving("udp", cwd=tmp_path))
        clients = [stack.enter_context(client(program.address)) for _ in range(40)]
        chosen = []
        for sock in clients:
            sock.send(b"hello")
            chosen.append(sock.recv(9))
        assert {*chosen} == {b"0", b"1"}
        eventually(lambda: not status_of(program).udp.active, "all sessions have ended")
        for sock, backend in zip(clients, chosen, strict=True):
            sock.send(b"more")
            assert sock.recv(9) == backend
        assert status_of(program).udp.outcomes == {"identified": 40, "resumed": 40}


@pytest.mark.parametrize("workers", [1, 2])
def test_connections_and_sessions_have_separate_limits(tmp_path: Path, workers: int) -> None:
    with UdpBackend(echo) as backend, Backend(named("a")) as tcp, ExitStack() as stack:
        configured(
            tmp_path,
            top=f'fallback_tcp = "{tcp.address}"\nfallback_udp = "{backend.address}"\n',
            workers=workers,
            max_connections_per_ip=2,
            max_udp_sessions_per_ip=3,
        )
        program = stack.enter_context(serving(cwd=tmp_path))
        clients = [stack.enter_context(client(program.address)) for _ in range(3)]
        for sock in clients:
            sock.send(b"?")
            assert sock.recv(9) == b"?"
        stack.enter_context(connected(program.address, 2))
        with client(program.address) as fourth, connect(program.address) as third:
            fourth.send(b"?")
            assert not receive_all(third).data
            eventually(lambda: status_of(program).udp.refused != {}, "the fourth session is refused")
            status = status_of(program)
    assert status.tcp.refused == {"max_connections_per_ip": 1}
    assert status.udp.refused == {"max_udp_sessions_per_ip": 1}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_five_thousand_lookups_of_one_address_are_answered_with_the_default_limits(
    tmp_path: Path, workers: int
) -> None:
    with UdpBackend(echo) as backend, ThreadPoolExecutor(10) as pool:
        more = f'[[protocols]]\nname = "dns"\ntransport = "udp"\nforward_to = "{backend.address}"\n'
        path = tmp_path / "refractium.toml"
        path.write_text(f'[server]\nbind = "127.0.0.1"\nport = 0\nworkers = {workers}\n{more}')
        with serving("udp", cwd=tmp_path) as program:
            answered = sum(pool.map(partial(look_up, program.address), [500] * 10))
            assert answered == 5_000
            eventually(lambda: not status_of(program).udp.active, "all sessions have ended")


def test_captures_of_several_workers_are_all_whole(tmp_path: Path) -> None:
    from refractium_hooks_pcap.reader import examine  # noqa: PLC0415 - from another distribution

    with Backend(named("a")) as backend:
        more = f'[plugins.pcap]\npath = "{tmp_path}/all.pcapng"\n'
        configured(tmp_path, top=f'fallback_tcp = "{backend.address}"\n', hooks=["pcap"], more=more)
        with serving("tcp", cwd=tmp_path) as program:
            with connected(program.address, 40):
                pass
            eventually(lambda: status_of(program).hooks[0].inbound.delivered == 40, "40 delivered packets")
            assert program.terminate() == 0
    captures = sorted(tmp_path.glob("all*.pcapng"))
    assert len(captures) == 2
    found = 0
    for path in captures:
        with path.open("rb") as file:
            extent = examine(file)
            assert extent is not None
            assert extent.end == path.stat().st_size
        found += path.read_bytes().count(b"protocol=fallback")
    assert found == 40


@pytest.mark.parametrize("settings", ["listen = 0", 'path = "-"', 'path = "{fifo}"'])
def test_hooks_that_can_exist_only_once_are_refused_with_several_workers(
    tmp_path: Path, settings: str
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    more = "[plugins.pcap]\n" + settings.replace("{fifo}", str(fifo))
    configured(tmp_path, top='fallback_tcp = "127.0.0.1:9"\n', hooks=["pcap"], more=more)
    for command in ((), ("check",)):
        done = run(*command, cwd=tmp_path)
        assert done.code == 2
        assert "server.workers: hook pcap can run in one process only, not in each worker" in done.err
    assert run("check", "--workers", 1, cwd=tmp_path).code == 0


def test_lines_of_all_workers_are_whole(tmp_path: Path) -> None:
    with Backend(named("a")) as backend, ThreadPoolExecutor(8) as pool:
        configured(tmp_path, top=f'fallback_tcp = "{backend.address}"\n')
        with serving("tcp", "--log-format", "json", cwd=tmp_path) as program:
            answers = list(pool.map(lambda _: ask(program.address, b"x").data, range(800)))
            assert set(answers) == {b"ax"}
            assert program.terminate() == 0
            lines = [json.loads(line) for line in program.err.splitlines()]
            assert sum("connection" in line for line in lines) == 800
