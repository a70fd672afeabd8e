"""Several workers in a program: they serve as one, and a worker that fails is replaced."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from refractium import (
    ConfigError,
    ListenError,
    PacketHook,
    RefractiumError,
    Supervisor,
)
from refractium.contract import NoSettings
from refractium.workers import crew
from support.backends import Backend, named, refusing
from support.clients import PATIENCE, ask, connect, receive, receive_all
from support.datagrams import UdpBackend, client, echo
from support.proxy import eventually
from support.supervised import INTERVAL_MS, Build, Supervised, checked, counted, unchecked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refractium.observe.status import Status


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@contextmanager
def connected(proxy: Supervised, count: int) -> Iterator[list[socket.socket]]:
    """Connect clients, and yield them once they are served; the kernel spreads them over the workers."""
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(proxy.address)) for _ in range(count)]
        for one in clients:
            one.sendall(b"hello")
            assert receive(one, 6) == b"ahello"
        yield clients


def test_all_workers_serve_connections_and_the_status_covers_all() -> None:
    with Backend(named("a")) as backend, Supervised(Build(backend.address), 3) as proxy:
        with connected(proxy, 60):
            eventually(lambda: proxy.status().tcp.active == 60, "60 connections are open")
            status = proxy.status()
            assert [one.number for one in status.workers] == [1, 2, 3]
            assert len({one.pid for one in status.workers}) == 3
            assert all(one.active and not one.restarts and one.since for one in status.workers)
            assert sum(one.active for one in status.workers) == 60
            assert [backend.active for route in status.routes for backend in route.backends] == [60]
            assert [one.address for one in status.listeners] == [f"127.0.0.1:{proxy.address[1]}"]
            assert proxy.supervisor.active == 60
        eventually(lambda: proxy.status().tcp.finished == 60, "all connections have ended")
        assert proxy.status().tcp.routes[0].ended == {"closed": 60}
        assert proxy.supervisor.active == 0
        assert repr(proxy.supervisor) == "<Supervisor of 3 workers>"
    assert proxy.supervisor.active == 0


def test_a_udp_session_stays_with_its_worker() -> None:
    with (
        UdpBackend(echo) as backend,
        Supervised(Build(udp=backend.address), 3) as proxy,
        ExitStack() as stack,
    ):
        clients = [stack.enter_context(client(proxy.address)) for _ in range(30)]
        for number in range(10):
            for one in clients:
                one.send(b"%d" % number)
                assert one.recv(10) == b"%d" % number
        assert len(backend.clients) == 30  # otherwise a session would have come from two workers
        assert all(one.active for one in proxy.workers)
        pid = proxy.kill(1)
        proxy.await_replaced(1, pid)
        lost = 30 - proxy.status().udp.active
        for one in clients:
            one.send(b"again")
            assert one.recv(10) == b"again"
        # The count of the backend does not show it: a new session may have the port of an ended one.
        eventually(lambda: proxy.status().udp.sessions == 30 + lost, "only lost sessions begin anew")
        assert 0 < lost < 30


def test_draining_sessions_stay_with_their_worker_although_another_worker_has_left() -> None:
    def say(word: bytes) -> None:
        for one in clients:
            one.send(word)

    def answered() -> int:
        """Return the number of clients that have an answer to their last datagram."""
        for at, one in enumerate(clients):
            with suppress(BlockingIOError):
                while True:
                    last[at] = one.recv(10)
        return last.count(b"last")

    def keep_talking() -> None:
        while not over.wait(0.05):  # a session that is silent for a second is finished
            say(b"more")

    with (
        UdpBackend(echo) as backend,
        Supervised(Build(udp=backend.address), 4) as proxy,
        ExitStack() as stack,
    ):
        clients = [stack.enter_context(client(proxy.address)) for _ in range(40)]
        last = [b""] * len(clients)
        for one in clients:
            one.send(b"first")
            assert one.recv(10) == b"first"
            one.setblocking(False)  # noqa: FBT003 - setblocking takes only positional arguments
        lost = proxy.workers[0].active
        assert 0 < lost < 40
        over = threading.Event()
        talking = threading.Thread(target=keep_talking)
        talking.start()
        stop = proxy.begin(proxy.supervisor.stop(20_000))
        eventually(lambda: proxy.status().listeners == (), "the supervisor has no listener any more")
        pid = proxy.kill(1)
        eventually(lambda: not is_running(pid), "one worker has ended, and its socket is closed")
        over.set()
        talking.join(PATIENCE)
        say(b"last")
        eventually(lambda: answered() == 40 - lost, "all clients of the other workers have answers")
        assert len(backend.clients) == 40
        stop()


def test_a_killed_worker_ends_only_its_own_connections_and_is_replaced() -> None:
    with Backend(named("a")) as backend, Supervised(Build(backend.address), 2) as proxy:
        with connected(proxy, 40) as clients:
            eventually(lambda: proxy.status().tcp.active == 40, "40 connections are open")
            lost = proxy.workers[0].active
            assert 0 < lost < 40
            pid = proxy.kill(1)
            with connect(proxy.address) as new:  # any worker may serve it
                new.sendall(b"x")
                assert receive(new, 2) == b"ax"
            proxy.await_replaced(1, pid)
            ends = Counter[str]()
            for one in clients:
                one.settimeout(0)
                try:
                    ends["ended"] += one.recv(1) == b""
                except BlockingIOError:
                    one.settimeout(PATIENCE)
                    one.sendall(b"on")
                    ends["goes on"] += receive(one, 2) == b"on"
                except ConnectionResetError:
                    ends["ended"] += 1
            assert ends == {"ended": lost, "goes on": 40 - lost}
            status = proxy.status()
            assert [one.restarts for one in status.workers] == [1, 0]
        eventually(lambda: proxy.status().tcp.active == 0, "no client is connected")
        tcp = proxy.status().tcp
        assert tcp.accepted == tcp.finished + sum(tcp.refused.values())
        assert tcp.routes[0].ended["lost"] == lost
        assert not is_running(pid)


def test_a_killed_worker_is_replaced_on_a_machine_without_a_free_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with Backend(named("a")) as backend, Supervised(Build(backend.address)) as proxy:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            pid = proxy.kill(1)
            proxy.await_replaced(1, pid)
        assert ask(proxy.address, b"x").data == b"ax"


def test_the_counts_of_a_killed_worker_are_released() -> None:
    build = Build(settings={"max_connections_per_ip": 20})
    with Backend(named("a")) as backend, ExitStack() as stack:
        proxy = stack.enter_context(Supervised(Build(backend.address, settings=build.settings)))
        stack.enter_context(connected(proxy, 20))
        assert ask(proxy.address, b"x").data == b""
        eventually(lambda: proxy.status().tcp.active == 20, "20 connections are open")
        held = proxy.workers[0].active
        pid = proxy.kill(1)
        proxy.await_replaced(1, pid)
        assert proxy.supervisor.active == 20 - held
        stack.enter_context(connected(proxy, held))
        assert ask(proxy.address, b"x").data == b""


def test_a_worker_that_does_not_answer_is_replaced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Backend(named("a")) as backend, Supervised(Build(backend.address)) as proxy:
        monkeypatch.setattr(crew, "_BEAT", 0.1)  # changed only now, because the start of workers takes longer
        (pid, _) = [one.pid for one in proxy.workers]
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        assert len(proxy.status().workers) == 2  # the status does not wait for the stopped worker
        assert time.monotonic() - began < 10
        eventually(
            lambda: f"worker 1 (process {pid}): it does not answer" in caplog.text,
            "the log reports the silent worker",
        )
        monkeypatch.setattr(crew, "_BEAT", 1.0)
        proxy.await_replaced(1, pid)
        with connected(proxy, 10):
            pass


def test_a_worker_that_starts_slowly_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While it imports its modules, a worker answers nothing, for longer than a serving worker may be
    silent."""
    monkeypatch.setattr(crew, "_BEAT", 0.25)
    slowly = partial(time.sleep, 1.5 * crew._MISSED_BEATS * 0.25)
    with Backend(named("a")) as backend, Supervised(Build(backend.address), begin=slowly) as proxy:
        monkeypatch.setattr(crew, "_BEAT", 1.0)
        assert [one.restarts for one in proxy.workers] == [0, 0]
        assert "does not answer" not in caplog.text


def test_many_simultaneous_questions_do_not_shorten_the_time_a_worker_has_to_answer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Backend(named("a")) as backend, Supervised(Build(backend.address)) as proxy:
        monkeypatch.setattr(crew, "_BEAT", 0.5)
        pid = proxy.kill(1, signal.SIGSTOP)

        async def ask_often() -> None:
            await asyncio.gather(*(proxy.supervisor.status() for _ in range(20)))

        for _ in range(2):  # each round takes a second, in which there are two beats
            proxy.call(ask_often())
        os.kill(pid, signal.SIGCONT)
        assert proxy.workers[0].pid == pid
        assert "does not answer" not in caplog.text


def test_all_workers_apply_another_configuration_and_connections_stay() -> None:
    with (
        Backend(named("a")) as old,
        Backend(named("b")) as new,
        Supervised(Build(old.address), 3) as proxy,
        connected(proxy, 10) as clients,
    ):
        before = [one.pid for one in proxy.workers]
        proxy.call(proxy.supervisor.apply(Build(new.address)))
        assert {ask(proxy.address, b"x").data for _ in range(20)} == {b"bx"}
        for one in clients:
            one.sendall(b"on")
            assert receive(one, 2) == b"on"
        status = proxy.status()
        assert (status.generation, [one.pid for one in status.workers]) == (2, before)
        assert status.last_reload is not None
        assert status.last_reload.ok


def test_an_invalid_configuration_changes_nothing() -> None:
    with Backend(named("a")) as backend, Supervised(Build(backend.address)) as proxy:
        for bad, error in ((Build("nowhere"), ConfigError), (Build(only_in=0), ValueError)):
            with pytest.raises(error):
                proxy.call(proxy.supervisor.apply(bad))
        proxy.in_loop(proxy.supervisor.reload_failed, ["it was no good"])
        status = proxy.status()
        assert (status.generation, status.reloads_failed) == (1, 1)
        assert status.last_reload is not None
        assert status.last_reload.errors == ("it was no good",)
        assert {ask(proxy.address, b"x").data for _ in range(10)} == {b"ax"}


def test_a_worker_that_cannot_apply_a_valid_configuration_is_replaced(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A module may have changed on the disk meanwhile, for instance."""
    with Backend(named("a")) as backend, Supervised(Build(backend.address)) as proxy:
        before = [one.pid for one in proxy.workers]
        proxy.call(proxy.supervisor.apply(Build(backend.address, only_in=os.getpid())))
        eventually(lambda: caplog.text.count("ValueError: not here") >= 4, "the workers are tried again")
        proxy.call(proxy.supervisor.apply(Build(backend.address)))
        eventually(lambda: proxy.all_serve, "all workers serve")
        assert not {one.pid for one in proxy.workers} & {*before}
        with connected(proxy, 10):
            pass


def test_workers_that_cannot_start_are_tried_again_before_the_start_fails_with_the_reason() -> None:
    with pytest.raises(RefractiumError, match=r"worker \d does not start: ValueError: not here"):  # noqa: SIM117
        with Supervised(Build("127.0.0.1:9", only_in=os.getpid())):
            pass


def test_a_build_function_that_workers_cannot_import_is_refused() -> None:
    def nothing() -> Any:
        return None

    async def run() -> None:
        with pytest.raises(ValueError, match="take a function at the top of a module"):
            Supervisor(nothing, 2)
        with pytest.raises(ValueError, match="take a function at the top of a module"):
            Supervisor(Build("127.0.0.1:9"), 2, nothing)

    asyncio.run(run())


def test_functions_of_the_main_program_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        monkeypatch.setattr(checked, "__module__", "__main__")
        with pytest.raises(ValueError, match="which workers do not run"):
            Supervisor(checked, 2)  # type: ignore[arg-type]

    asyncio.run(run())


class Loud(PacketHook[NoSettings]):
    name = "loud"

    @classmethod
    def takes_stdout(cls, settings: NoSettings) -> bool:
        return isinstance(settings, NoSettings)


def test_a_hook_that_can_exist_only_once_is_refused_unless_there_is_one_worker() -> None:
    async def run() -> None:
        build = Build("127.0.0.1:9", hooks=(Loud,))
        with pytest.raises(ConfigError, match=r"hook loud can run in one process only.*stdout"):
            Supervisor(build, 2)
        await Supervisor(build, 1).stop()
        supervisor = Supervisor(Build("127.0.0.1:9"), 2)
        with pytest.raises(ConfigError, match="hook loud can run in one process only"):
            await supervisor.apply(build)
        await supervisor.stop()

    asyncio.run(run())


def test_the_counts_of_hooks_are_summed_over_all_workers() -> None:
    with Backend(named("a")) as backend, Supervised(Build(backend.address, hooks=(counted,)), 2) as proxy:
        with connected(proxy, 20):
            pass
        eventually(lambda: proxy.status().hooks[0].inbound.delivered == 20, "20 packets are counted")
        (hook,) = proxy.status().hooks
        assert (hook.name, hook.state, hook.inbound.seen_bytes) == ("counted", "running", 100)


# Backends


def test_backends_are_checked_once_for_all_workers() -> None:
    probes = 0

    def count(sock: socket.socket) -> None:
        nonlocal probes
        probes += 1
        named("a")(sock)

    with Backend(named("b")) as stays, Backend(count) as counts, ExitStack() as stack:
        goes = stack.enter_context(Backend(named("c")))
        proxy = stack.enter_context(
            Supervised(Build((counts.address, stays.address, goes.address), routes=checked), 4)
        )
        began, before = time.monotonic(), probes
        eventually(lambda: probes - before >= 10, "there were ten checks")
        assert time.monotonic() - began > 6 * INTERVAL_MS / 1000, "each worker runs checks of its own"
        assert {ask(proxy.address, b"magic").data[:1] for _ in range(60)} == {b"a", b"b", b"c"}
        goes.__exit__()
        eventually(lambda: "down" in states(proxy), "one backend is down")
        for _ in range(40):  # no worker tries this backend any more
            assert ask(proxy.address, b"magic").data[:1] in {b"a", b"b"}
        with Backend(named("c"), port=goes.port):
            eventually(lambda: states(proxy) == ["up"] * 3, "the backend is up again")
            eventually(lambda: ask(proxy.address, b"magic").data[:1] == b"c", "the backend is used again")
            pid = proxy.kill(2)
            proxy.await_replaced(2, pid)
            assert states(proxy) == ["up"] * 3


def states(proxy: Supervised) -> list[str]:
    return [backend.state for route in proxy.status().routes for backend in route.backends]


def test_failures_of_clients_of_all_workers_are_counted_together(caplog: pytest.LogCaptureFixture) -> None:
    with refusing() as dead, Backend(named("a")) as alive:
        build = Build((dead, alive.address), routes=unchecked)
        with Supervised(build, 3) as proxy:
            for _ in range(12):
                assert ask(proxy.address, b"magic").data == b"amagic"
            eventually(lambda: states(proxy)[0] == "down", "the backend is down")
            assert caplog.text.count(f"backend {dead} is down") == 1
            pid = proxy.kill(1)
            proxy.await_replaced(1, pid)
            assert states(proxy)[0] == "down"


# Start and stop


def test_a_port_in_use_is_an_error_and_not_shared() -> None:
    with Backend(named("a")) as backend, Supervised(Build(backend.address, backend.address)) as proxy:
        host, port = proxy.address

        async def start() -> None:
            supervisor = Supervisor(Build(backend.address), 2)
            try:
                with pytest.raises(ListenError, match="in use by another program"):
                    await supervisor.start_tcp(host, port)
                (udp,) = [one for one in proxy.supervisor._listeners if one.transport == "udp"]
                with pytest.raises(ListenError, match="in use by another program"):
                    await supervisor.start_udp(*Supervised.ip_and_port(udp.address))
            finally:
                await supervisor.stop()

        asyncio.run(start())


def test_connections_finish_after_a_stop_and_the_rest_is_cut_and_counted() -> None:
    with Backend(named("a")) as backend, Supervised(Build(backend.address), 3) as proxy:
        with connected(proxy, 20) as clients:
            pids = [one.pid for one in proxy.workers]
            stop = proxy.begin(proxy.supervisor.stop(2_000))
            eventually(lambda: proxy.status().listeners == (), "the supervisor has stopped listening")
            for one in clients[:15]:
                one.sendall(b"last words")
                one.shutdown(socket.SHUT_WR)
                assert receive_all(one) == (b"last words", "eof")
            assert stop() == 5
            assert {receive_all(one) for one in clients[15:]} == {(b"", "reset")}
        status = proxy.status()
        assert status.tcp.routes[0].ended == {"closed": 15, "drained": 5}
        assert (status.tcp.accepted, status.tcp.active, status.workers[0].pid) == (20, 0, None)
        assert not any(is_running(pid) for pid in pids if pid)
        with pytest.raises(RuntimeError, match="make a new one"):
            proxy.call(proxy.supervisor.start_tcp("127.0.0.1", 0))
        with pytest.raises(RuntimeError, match="make a new one"):
            proxy.call(proxy.supervisor.apply(Build(backend.address)))


def test_a_second_stop_ends_the_wait_of_the_first() -> None:
    with Backend(named("a")) as backend, Supervised(Build(backend.address)) as proxy, connected(proxy, 4):
        first = proxy.begin(proxy.supervisor.stop(600_000))
        eventually(lambda: proxy.status().listeners == (), "the supervisor has stopped listening")
        assert proxy.call(proxy.supervisor.stop(0)) == 4
        first()


def test_a_worker_that_dies_while_it_stops_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "_FIRST_PAUSE", 0.0)
    with (
        Backend(named("a")) as backend,
        Supervised(Build(backend.address)) as proxy,
        connected(proxy, 10) as clients,
    ):
        stop = proxy.begin(proxy.supervisor.stop(20_000))
        eventually(lambda: proxy.status().listeners == (), "the supervisor has stopped listening")
        pid = proxy.kill(1)
        eventually(lambda: not is_running(pid), "the killed worker is gone")
        for one in clients:
            one.close()
        stop()
        assert [one.restarts for one in proxy.workers] == [0, 0]


def test_a_listener_can_be_removed_while_its_connections_go_on() -> None:
    with Backend(named("a")) as backend, Supervised(Build(backend.address)) as proxy:
        (other,) = proxy.call(proxy.supervisor.start_tcp("127.0.0.1", 0))
        with connected(proxy, 10) as clients:
            proxy.call(proxy.supervisor.stop_listening("tcp", f"127.0.0.1:{proxy.address[1]}"))
            eventually(lambda: refuses(proxy.address), "new connections are refused")
            for one in clients:
                one.sendall(b"on")
                assert receive(one, 2) == b"on"
            assert ask(proxy.ip_and_port(other), b"x").data == b"ax"
            assert [one.address for one in proxy.status().listeners] == [other]
        with pytest.raises(ValueError, match="is not listened on"):
            proxy.call(proxy.supervisor.stop_listening("tcp", "127.0.0.1:1"))


def refuses(address: tuple[str, int]) -> bool:
    try:
        connect(address).close()
    except ConnectionError:
        return True
    return False


def test_a_listener_without_its_rules_is_still_in_the_status_and_does_not_harm_a_new_worker() -> None:
    with (
        Backend(named("a")) as backend,
        Supervised(Build(backend.address, listeners=("one", "two"))) as proxy,
    ):
        (other,) = proxy.call(proxy.supervisor.start_tcp("127.0.0.1", 0, "two"))
        proxy.call(proxy.supervisor.apply(Build(backend.address, listeners=("two",))))
        assert len(proxy.status().listeners) == 2
        pid = proxy.kill(1)
        proxy.await_replaced(1, pid)
        assert {ask(proxy.ip_and_port(other), b"x").data for _ in range(10)} == {b"ax"}
        with pytest.raises(ValueError, match='no listener "one"'):
            proxy.call(proxy.supervisor.start_tcp("127.0.0.1", 0, "one"))


async def has_listeners(supervisor: Supervisor) -> Status:
    """Wait until the supervisor listens, of which no event tells."""
    while not (status := await supervisor.status()).listeners:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return status


def test_a_supervisor_serves_until_it_is_stopped_or_its_task_is_cancelled() -> None:
    async def serve(backend: str) -> None:
        async with Supervisor(Build(backend), 2) as supervisor:
            serving = asyncio.create_task(supervisor.run_tcp("127.0.0.1", 0))
            listeners = (await has_listeners(supervisor)).listeners
            address = Supervised.ip_and_port(listeners[0].address)
            answer = await asyncio.to_thread(ask, address, b"x")
            assert answer.data == b"ax"
            await supervisor.stop()
            await serving
        cancelled = Supervisor(Build(udp=backend), 2)
        serving = asyncio.create_task(cancelled.run_udp("127.0.0.1", 0))
        await has_listeners(cancelled)
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        assert (await cancelled.status()).listeners == ()

    with Backend(named("a")) as backend:
        asyncio.run(serve(backend.address))


def test_a_worker_that_dies_while_hundreds_connect_loses_only_accepted_clients() -> None:
    failures: list[str] = []
    over = threading.Event()

    def visit() -> None:
        while not over.is_set():
            with connect(proxy.address) as one:
                try:
                    one.sendall(b"x")
                    if receive(one, 2) != b"ax":
                        failures.append("ended")
                except ConnectionError as error:
                    failures.append(str(error))

    with Backend(named("a")) as backend, Supervised(Build(backend.address)) as proxy:
        threads = [threading.Thread(target=visit) for _ in range(8)]
        for one in threads:
            one.start()
        pid = proxy.kill(1)
        proxy.await_replaced(1, pid)
        over.set()
        for one in threads:
            one.join(PATIENCE)
        # Each thread had at most one connection to the worker.
        assert len(failures) <= len(threads)
