"""Restarts with sockets from a service manager: the next process serves while the former process drains."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Final
from urllib.request import urlopen

import pytest

from support.activation import Activation, start_on
from support.backends import Backend, named
from support.clients import MIB, PATIENCE, ask, connect, payload, receive, receive_all, sending
from support.datagrams import UdpBackend, client, echo
from support.datagrams import ask as ask_datagram
from support.plugins import install
from support.process import Running, children, family, free_port
from support.proxy import eventually
from support.status import status_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HANG: Final = """
import gc, os, sys, time

def hang():
    print("hangs", flush=True)
    time.sleep(600)

gc.freeze = hang
"""
"""A ``sitecustomize`` that makes the program hang just before its event loop runs."""

each_number_of_workers = pytest.mark.parametrize("workers", [1, 2])


@pytest.fixture
def backend() -> Iterator[Backend]:
    with Backend(named("a")) as found:
        yield found


def configured(
    folder: Path, backend: Backend, *, more: str = "", udp: str = "127.0.0.1:9", **server: object
) -> None:
    lines = [f'fallback_tcp = "{backend.address}"', f'fallback_udp = "{udp}"', "[server]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in server.items()]
    (folder / "refractium.toml").write_text("\n".join([*lines, more]))


@contextmanager
def served(address: tuple[str, int]) -> Iterator[socket.socket]:
    """Yield a client with an open connection to the backend."""
    with connect(address) as sock:
        sock.sendall(b"hello")
        assert receive(sock, 6) == b"ahello"
        yield sock


def goes_on(sock: socket.socket) -> bool:
    sock.sendall(b"on")
    return receive(sock, 2) == b"on"


def stop(program: Running) -> None:
    """Stop a program, as a service manager does before it starts the next program."""
    program.signal(signal.SIGTERM)
    assert program.await_exit() == 0


def ends_within(seconds: float, program: Running) -> bool:
    """Return whether a program ends within a number of seconds."""
    fd = os.pidfd_open(program.pid)
    try:
        return bool(select.select([fd], [], [], seconds)[0])
    finally:
        os.close(fd)


@each_number_of_workers
def test_after_a_restart_new_clients_are_served_while_old_sessions_go_on(
    tmp_path: Path, backend: Backend, workers: int
) -> None:
    metrics = free_port()
    configured(tmp_path, backend, workers=workers, more=f'[metrics]\nbind = "127.0.0.1:{metrics}"\n')
    with ExitStack() as stack:
        service = stack.enter_context(Activation(tmp_path))
        old = stack.enter_context(service.start())
        session = stack.enter_context(served(service.address))
        stop(old)
        new = stack.enter_context(service.start())
        assert {ask(service.address, b"x").data for _ in range(20)} == {b"ax"}
        assert goes_on(session)
        status = status_of(new)
        assert (status.tcp.accepted, len(status.workers)) == (20, workers if workers > 1 else 0)
        with urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=PATIENCE) as answer:
            assert b'refractium_accepted_total{transport="tcp"} 20' in answer.read()
        data = payload("after the restart", MIB)
        with sending(session, data):
            assert receive_all(session) == (data, "eof")
        assert old.wait() == 0
        assert " info stopped after 1 connections" in old.err.splitlines()[-1]
        assert "error" not in old.err
        assert "warning" not in new.err
        assert new.terminate() == 0


@each_number_of_workers
def test_after_a_restart_the_next_process_receives_all_datagrams_and_old_sessions_their_answers(
    tmp_path: Path, backend: Backend, workers: int
) -> None:
    over = threading.Event()

    def answer_again_and_again() -> None:
        while not over.wait(0.05):  # a session ends after a second without a datagram
            udp.sendto(b"again", session)

    def asked(datagram: bytes) -> tuple[str, int]:
        while True:
            source: tuple[str, int]
            found, source = udp.recvfrom(100)
            if found == datagram:
                return source

    with ExitStack() as stack:
        udp = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        udp.settimeout(PATIENCE)
        udp.bind(("127.0.0.1", 0))
        configured(tmp_path, backend, workers=workers, udp=f"127.0.0.1:{udp.getsockname()[1]}")
        service = stack.enter_context(Activation(tmp_path))
        old = stack.enter_context(service.start())
        first = stack.enter_context(client(service.address))
        first.send(b"first")
        session = asked(b"first")
        answering = threading.Thread(target=answer_again_and_again)
        stack.callback(answering.join)
        stack.callback(over.set)
        answering.start()
        assert first.recv(100) == b"again"
        stop(old)
        early = stack.enter_context(client(service.address))
        early.send(b"early")
        stack.enter_context(service.start())
        udp.sendto(b"early too", asked(b"early"))
        assert early.recv(100) == b"early too"
        udp.sendto(b"last", session)
        while (found := first.recv(100)) != b"last":
            assert found == b"again"
        for number in range(50):
            with client(service.address) as one:
                one.send(b"%d" % number)
                udp.sendto(b"answer", asked(b"%d" % number))
                assert one.recv(100) == b"answer"
        first.send(b"first again")
        assert asked(b"first again") != session
        over.set()
        assert old.wait() == 0
        assert " and 1 sessions" in old.err.splitlines()[-1]


def test_the_next_process_starts_only_when_no_worker_receives_datagrams_any_more(
    tmp_path: Path, backend: Backend
) -> None:
    with ExitStack() as stack:
        datagrams = stack.enter_context(UdpBackend(echo))
        configured(tmp_path, backend, workers=2, udp=datagrams.address)
        service = stack.enter_context(Activation(tmp_path))
        old = stack.enter_context(service.start())
        hanging = family(old.pid)[-1]
        os.kill(hanging, signal.SIGSTOP)
        old.signal(signal.SIGTERM)
        old.await_err("SIGTERM: 0 connections may finish")
        assert not ends_within(1.0, old)
        os.kill(hanging, signal.SIGCONT)
        assert old.await_exit() == 0


@pytest.mark.slow
@each_number_of_workers
def test_under_load_restarts_refuse_no_client_and_lose_no_datagram(
    tmp_path: Path, backend: Backend, workers: int
) -> None:
    over = threading.Event()
    waits: list[float] = []

    def visit(number: int) -> None:
        while not over.is_set():
            began = time.monotonic()
            if number:
                assert ask(service.address, b"x").data == b"ax"
            else:
                assert ask_datagram(service.address, b"x") == b"x"
            waits.append(time.monotonic() - began)

    with ExitStack() as stack:
        datagrams = stack.enter_context(UdpBackend(echo))
        configured(tmp_path, backend, workers=workers, udp=datagrams.address)
        service = stack.enter_context(Activation(tmp_path))
        programs = [stack.enter_context(service.start())]
        sessions = [stack.enter_context(served(service.address))]
        pool = stack.enter_context(ThreadPoolExecutor(4))
        stack.callback(over.set)
        visitors = [pool.submit(visit, number) for number in range(4)]
        for _ in range(3):
            before = len(waits)
            eventually(lambda before=before: len(waits) > before + 50, "clients are served")  # type: ignore[misc]
            stop(programs[-1])
            programs.append(stack.enter_context(service.start()))
            sessions.append(stack.enter_context(served(service.address)))
        assert all(map(goes_on, sessions))
        over.set()
        for visitor in visitors:
            visitor.result(PATIENCE)
        assert max(waits) < 10, "a client waited for more than the start of the next process"
        for sock in sessions:
            sock.close()
        for program in programs[:-1]:
            assert program.wait() == 0
            assert "still open" not in program.err


def test_the_captures_of_the_old_and_of_the_next_process_are_both_whole(
    tmp_path: Path, backend: Backend
) -> None:
    from refractium_hooks_pcap.reader import examine  # noqa: PLC0415 - from another distribution

    more = f'[plugins.pcap]\npath = "{tmp_path}/all.pcapng"\n'
    configured(tmp_path, backend, hooks=["pcap"], more=more)
    with Activation(tmp_path) as service, service.start() as old, served(service.address) as session:
        eventually(
            lambda: status_of(old).hooks[0].outbound.delivered > 0, "the old process writes its capture"
        )
        stop(old)
        with service.start() as new:
            assert ask(service.address, b"of the next process").data == b"aof the next process"
            eventually(
                lambda: status_of(new).hooks[0].outbound.delivered > 0, "the next process writes its capture"
            )
            session.sendall(b"of the old process")
            assert receive(session, 18) == b"of the old process"
            session.close()
            assert old.wait() == 0
            assert new.terminate() == 0
    contents = {"all.pcapng": b"of the old process", "all_2.pcapng": b"of the next process"}
    for name, content in contents.items():
        with (tmp_path / name).open("rb") as file:
            extent = examine(file)
            assert extent is not None
            assert extent.end == (tmp_path / name).stat().st_size
        assert (tmp_path / name).read_bytes().count(content) == 2


def test_a_session_that_outlives_the_drain_timeout_is_cut(tmp_path: Path, backend: Backend) -> None:
    configured(tmp_path, backend, drain_timeout_ms=1000)
    with Activation(tmp_path) as service, service.start() as old, served(service.address) as session:
        stop(old)
        assert receive_all(session) == (b"", "reset")
        assert old.wait() == 0
        assert "cut at the drain timeout" in old.err


@each_number_of_workers
def test_a_killed_old_process_ends_only_its_own_sessions(
    tmp_path: Path, backend: Backend, workers: int
) -> None:
    configured(tmp_path, backend, workers=workers)
    with Activation(tmp_path) as service, service.start() as old, served(service.address) as session:
        processes = family(old.pid)[1:]
        stop(old)
        with service.start() as new, served(service.address) as other:
            for pid in processes:
                os.kill(pid, signal.SIGKILL)
            assert receive_all(session) == (b"", "reset")
            assert goes_on(other)
            assert ask(service.address, b"x").data == b"ax"
            other.close()
            assert new.terminate() == 0


@each_number_of_workers
def test_signals_to_all_processes_let_sessions_finish_and_a_later_signal_ends_them(
    tmp_path: Path, backend: Backend, workers: int
) -> None:
    """systemd sends SIGTERM twice to all processes of a service with KillMode=control-group."""
    configured(tmp_path, backend, workers=workers)
    with Activation(tmp_path) as service, service.start() as old, served(service.address) as session:
        launcher, serving, *others = family(old.pid)
        for pid in (launcher, serving, *others):
            os.kill(pid, signal.SIGTERM)
        assert old.await_exit() == 0
        for pid in (serving, *others):
            os.kill(pid, signal.SIGTERM)
        assert goes_on(session)

        def is_ended() -> bool:
            with suppress(ProcessLookupError):
                os.kill(serving, signal.SIGTERM)
            return "SIGTERM again: ending at once" in old.err

        eventually(is_ended, "a later signal ends the process")
        assert receive_all(session) == (b"", "reset")
        assert old.wait() == 0


def test_a_signal_to_the_serving_process_alone_has_no_effect(tmp_path: Path, backend: Backend) -> None:
    configured(tmp_path, backend)
    with Activation(tmp_path) as service, service.start() as program:
        (serving,) = children(program.pid)
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(serving, number)
        assert ask(service.address, b"x").data == b"ax"
        assert program.terminate() == 0
        assert program.err.count("may finish") == 1


def one_process_hook(backend: Backend, folder: Path) -> None:
    configured(folder, backend, hooks=["pcap"], more="[plugins.pcap]\nlisten = 0\n")


def own_listener(backend: Backend, folder: Path) -> None:
    listeners = [
        f'[[listeners]]\nbind = "127.0.0.1"\nport = {free_port()}\ntransports = ["{transport}"]\n'
        for transport in ("tcp", "udp")
    ]
    configured(folder, backend, more="\n".join(listeners))


@pytest.mark.parametrize(
    ("configure", "reason"),
    [
        (one_process_hook, "hook pcap can run in one process only"),
        (own_listener, r"systemd did not hand over the socket of udp://127\.0\.0\.1:\d+"),
    ],
)
def test_a_process_that_cannot_run_beside_the_next_one_drains_first(
    tmp_path: Path, backend: Backend, configure: Callable[[Backend, Path], None], reason: str
) -> None:
    configure(backend, tmp_path)
    with ExitStack() as stack:
        service = stack.enter_context(Activation(tmp_path, udp=configure is one_process_hook))
        program = stack.enter_context(service.start())
        session = stack.enter_context(served(service.address))
        program.signal(signal.SIGTERM)
        program.await_err(f"the next process has to wait for the end of this process: {reason}$")
        assert goes_on(session)
        program.signal(signal.SIGTERM)
        assert program.wait() == 0
        assert receive_all(session) == (b"", "reset")
        assert "SIGTERM again: ending at once" in program.err


def test_after_sigint_the_program_ends_when_its_sessions_have_ended(tmp_path: Path, backend: Backend) -> None:
    """A terminal sends SIGINT to both processes; the shell waits for the program."""
    configured(tmp_path, backend)
    with Activation(tmp_path) as service, service.start() as program, served(service.address) as session:
        for pid in family(program.pid):
            os.kill(pid, signal.SIGINT)
        program.await_err(r"SIGINT: 1 connections may finish$")
        assert goes_on(session)
        session.close()
        assert program.await_exit() == 0
        assert "stopped after 1 connections" in program.err


def test_if_the_launcher_is_killed_the_sessions_finish(tmp_path: Path, backend: Backend) -> None:
    configured(tmp_path, backend)
    with Activation(tmp_path) as service, service.start() as old, served(service.address) as session:
        old.signal(signal.SIGKILL)
        assert old.await_exit() == -signal.SIGKILL
        with service.start() as new:
            assert ask(service.address, b"x").data == b"ax"
            assert status_of(new).tcp.accepted == 1
            assert goes_on(session)
            session.close()
            assert old.wait() == -signal.SIGKILL
            assert "the process that has started this process, was killed" in old.err
            assert new.terminate() == 0


def test_the_service_manager_learns_how_the_serving_process_was_killed(
    tmp_path: Path, backend: Backend
) -> None:
    configured(tmp_path, backend)
    with Activation(tmp_path) as service, service.start() as program:
        (serving,) = children(program.pid)
        os.kill(serving, signal.SIGKILL)
        assert program.wait() == -signal.SIGKILL


def test_a_start_that_hangs_is_ended_by_a_signal(tmp_path: Path, backend: Backend) -> None:
    configured(tmp_path, backend)
    (tmp_path / "sitecustomize.py").write_text(HANG)
    with (
        Activation(tmp_path) as service,
        start_on(service.tcp, service.udp, cwd=tmp_path, PYTHONPATH=str(tmp_path)) as program,
    ):
        program.await_out("hangs")
        program.signal(signal.SIGTERM)
        assert program.wait() == -signal.SIGTERM


HANGING: Final = """
    import time
    from refractium.contract import *

    @define_protocol("hanging", max_bytes=1)
    def hanging(data):
        time.sleep(600)

    @hookimpl
    def refractium_protocols():
        return [hanging]
"""


@pytest.mark.slow
def test_two_signals_end_a_program_whose_plugin_hangs(tmp_path: Path, backend: Backend) -> None:
    install(tmp_path / "site", "hanging", HANGING)
    configured(tmp_path, backend, more=f'[[protocols]]\nname = "hanging"\nforward_to = "{backend.address}"\n')
    with (
        Activation(tmp_path) as service,
        service.start(PYTHONPATH=str(tmp_path / "site")) as program,
        connect(service.address) as client,
    ):
        client.sendall(b"x")
        program.await_err("plugin 'hanging' of .* has blocked the event loop for more than 1 s")
        program.signal(signal.SIGTERM)
        program.signal(signal.SIGINT)
        assert program.wait() == -signal.SIGKILL


def test_an_invalid_configuration_ends_the_start_with_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "refractium.toml").write_text("[server]\nprt = 1\n")
    with Activation(tmp_path) as service, start_on(service.tcp, cwd=tmp_path) as program:
        assert program.wait() == 2
        assert program.err.count("error:") == program.err.count("prt") == 1


def test_the_service_manager_hears_from_the_process_that_it_has_started(
    tmp_path: Path, backend: Backend
) -> None:
    configured(tmp_path, backend)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, Activation(tmp_path) as service:
        manager.settimeout(PATIENCE)
        manager.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        manager.bind(str(tmp_path / "notify"))

        def told() -> tuple[bytes, int]:
            message, ancillary, _, _ = manager.recvmsg(1000, 100)
            return message, int.from_bytes(ancillary[0][2][:4], "little")

        with service.start(NOTIFY_SOCKET=str(tmp_path / "notify")) as program:
            assert told() == (b"READY=1", program.pid)
            program.signal(signal.SIGHUP)
            message, pid = told()
            assert (message.splitlines()[0], pid) == (b"RELOADING=1", program.pid)
            assert told() == (b"READY=1", program.pid)
            stop(program)
            assert told() == (b"STOPPING=1", program.pid)
