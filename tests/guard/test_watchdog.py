"""Plugins that are slow or that never return: the log names the plugin, and two signals end the program."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from refractium.guard import origins, watchdog
from refractium.throttle import Throttled
from support import slow_plugin
from support.backends import Backend, echo
from support.clients import ask, connect
from support.datagrams import UdpBackend
from support.datagrams import ask as ask_datagram
from support.datagrams import echo as echo_datagram
from support.hooks import until
from support.plugins import install, with_plugins
from support.process import of_threads, serving
from support.proxy import eventually
from support.status import status_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.process import Running

HEAD = r"""
import asyncio
import time

from refractium.contract import *


def compute(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def compute_in_c(seconds):
    sum(range(int(seconds * 100_000_000)))  # holds the lock of Python, and looks for no signals


WAYS = {b"s": time.sleep, b"p": compute, b"c": compute_in_c}


def block(data):
    WAYS[data[1:2]](float(data[2:]))


"""
PROTOCOL = (
    HEAD
    + r"""
@define_protocol("{name}", max_bytes=32, prefixes=(b"{letter}",), transport="{transport}")
def identify(data):
    block(data)
    return ProtocolMatch()


@hookimpl
def refractium_protocols():
    return [identify]
"""
)
METADATA = (
    HEAD
    + r"""
def read(data):
    block(data)
    return {"host": "x"}, frozenset()


@define_protocol("lazy", max_bytes=32, prefixes=(b"L",), metadata_keys=frozenset({"host"}))
def lazy(data):
    return DeferredMatch(read, data)


@hookimpl
def refractium_protocols():
    return [lazy]
"""
)
OTHERS = (
    HEAD
    + r"""
class Order(Balancer):
    name = "tired"

    def order(self, backends, client):
        time.sleep(0.3)
        return backends


@hookimpl
def refractium_balancers():
    return [Order]
"""
)
CHECK = (
    HEAD
    + r"""
class Check(HealthCheck[NoSettings]):
    name = "drowsy"
    settings = NoSettings

    async def check(self, endpoint, settings, timeout):
        time.sleep(0.3)


class Patient(HealthCheck[NoSettings]):
    name = "patient"
    settings = NoSettings

    async def check(self, endpoint, settings, timeout):
        await asyncio.sleep(0.3)


@hookimpl
def refractium_health_checks():
    return [Check()]
"""
)
PATIENT = CHECK.replace("[Check()]", "[Patient()]")


def protocol(name: str, letter: str, transport: str = "tcp") -> str:
    return PROTOCOL.replace("{name}", name).replace("{letter}", letter).replace("{transport}", transport)


def route(name: str, backend: str, more: str = "") -> str:
    return f'[[protocols]]\nname = "{name}"\nforward_to = "{backend}"\n{more}\n'


def server(workers: int) -> str:
    return f'[server]\nbind = "127.0.0.1"\nport = 0\nworkers = {workers}\nhot_reload = false\n'


def slow_lines(program: Running) -> list[str]:
    """Return the ids of the plugins that the log names as slow, in alphabetical order."""
    found = re.findall(r"warning plugin '(\w+)' of refractium-proto-\w+ 1\.0 has blocked", program.err)
    return sorted(found)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_each_kind_of_plugin_that_takes_long_is_named_once(tmp_path: Path, workers: int) -> None:
    site = tmp_path / "site"
    install(site, "sleeping", protocol("sleeping", "S"))
    install(site, "looping", protocol("looping", "P"))
    install(site, "native", protocol("native", "C"))
    install(site, "datagrams", protocol("datagrams", "D", "udp"))
    install(site, "quick", protocol("quick", "Q"))
    install(site, "metadata", METADATA)
    install(site, "tired", OTHERS)
    install(site, "drowsy", CHECK)
    install(site, "patient", PATIENT)
    with Backend(echo) as backend, UdpBackend(echo_datagram) as datagrams:
        at = backend.address
        (tmp_path / "refractium.toml").write_text(
            server(workers)
            + "".join(route(name, at) for name in ("sleeping", "looping", "native", "quick", "lazy"))
            + route("datagrams", datagrams.address)
            + route("ordered", at, 'patterns = ["ordered"]\nbalance = "tired"')
            + route(
                "checked", at, 'patterns = ["checked"]\nhealth = { kind = "drowsy", interval_ms = 60000 }'
            )
            + route("waited", at, 'patterns = ["waited"]\nhealth = { kind = "patient", interval_ms = 100 }')
        )
        with serving("--log-format", "plain", cwd=tmp_path, env=with_plugins(site)) as program:
            for data in (b"Ss0.3", b"Pp0.3", b"Qs0.001", b"Ls0.3", b"ordered"):
                assert ask(program.address, data).data == data
            assert ask_datagram(program.address, b"Ds0.3") == b"Ds0.3"
            # When C code releases the lock of Python, another thread may take it before the watchdog does.
            eventually(
                lambda: bool(ask(program.address, b"Cc0.3").data and "native" in slow_lines(program)),
                "the plugin that computes in C is named",
            )
            wanted = ["datagrams", "drowsy", "looping", "metadata", "native", "sleeping", "tired"]
            eventually(lambda: set(slow_lines(program)) >= set(wanted), "each slow plugin is named")
            if workers == 1:  # each process has a limit of its own
                assert slow_lines(program) == wanted
            assert program.terminate() == 0
    assert set(slow_lines(program)) == set(wanted)


LATE = (
    HEAD
    + r"""
class Late(HealthCheck[NoSettings]):
    name = "late"
    settings = NoSettings

    async def check(self, endpoint, settings, timeout):
        await asyncio.sleep(0.3)  # the watchdog sleeps after 0.1 s
        time.sleep(0.1)


class Order(Balancer):
    name = "made"

    def __init__(self):
        time.sleep(0.1)

    def order(self, backends, client):
        return backends


@hookimpl
def refractium_health_checks():
    return [Late()]


@hookimpl
def refractium_balancers():
    return [Order]
"""
)


@pytest.mark.slow
def test_a_call_that_no_client_causes_is_named_too(tmp_path: Path) -> None:
    install(tmp_path / "site", "late", LATE)
    install(tmp_path / "site", "lazy", METADATA)
    with Backend(echo) as backend:
        file, at = tmp_path / "refractium.toml", backend.address
        file.write_text(server(1) + route("lazy", at))
        with serving("--log-format", "plain", cwd=tmp_path, env=with_plugins(tmp_path / "site")) as program:
            with connect(program.address) as client:
                client.sendall(b"Ls0.1")
                # After a second, the access log contains the metadata of the open connection.
                program.await_err("plugin 'lazy' of .* has blocked the event loop .*: read ")
            file.write_text(server(1) + route("lazy", at, 'balance = "made"'))
            program.signal(signal.SIGHUP)
            program.await_err("plugin 'late' of .* has blocked the event loop .*: Order.__init__ ")
            assert program.terminate() == 0
        health = 'health = { kind = "late", interval_ms = 500 }'
        file.write_text(server(1) + route("lazy", at, health))
        with serving("--log-format", "plain", cwd=tmp_path, env=with_plugins(tmp_path / "site")) as program:
            program.await_err("plugin 'late' of .* has blocked the event loop .*: Late.check ")
            assert program.terminate() == 0


def test_the_rate_of_lines_is_limited_and_the_thread_sleeps_while_the_proxy_is_idle(tmp_path: Path) -> None:
    install(tmp_path / "site", "sleeping", protocol("sleeping", "S"))
    with Backend(echo) as backend:
        # Without a configuration file to watch, nothing else wakes a thread.
        flags = "-b", "127.0.0.1", "-p", 0, "-f", f"sleeping={backend.address}", "--log-format", "plain"
        with serving(*flags, cwd=tmp_path, env=with_plugins(tmp_path / "site")) as program:
            for _ in range(3):
                assert ask(program.address, b"Ss0.15").data == b"Ss0.15"
            program.await_err("has blocked the event loop for more than 40 ms: identify")
            eventually(lambda: not switches_within(program, 0.2), "no thread wakes up")
            assert program.terminate() == 0
    assert slow_lines(program) == ["sleeping"]


def switches_within(program: Running, seconds: float) -> int:
    """Return how often the threads of a program wake up within a number of seconds."""

    def switches() -> int:
        texts = of_threads(program.pid, "status")
        return sum(int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0]) for text in texts)

    before = switches()
    time.sleep(seconds)
    return switches() - before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            b"Ss1000",
            r"error plugin 'hanging' of refractium-proto-hanging 1\.0 has blocked .* 1 s, .*: block \(",
        ),
        (
            b"Sp1000",
            r"error plugin 'hanging' of .* has blocked .* 1 s, .*: compute \(.*, block \(.*, identify \(",
        ),
        # Python runs no other thread while C code holds the lock, so Python writes the stacks.
        (b"Sc100000", r"plugin_hanging\.py\", line \d+ in compute_in_c"),
    ],
    ids=["sleep", "python", "c"],
)
def test_a_call_that_never_returns_is_found_and_two_signals_end_the_program(
    tmp_path: Path, data: bytes, said: str
) -> None:
    install(tmp_path / "site", "hanging", protocol("hanging", "S"))
    with Backend(echo) as backend:
        (tmp_path / "refractium.toml").write_text(server(1) + route("hanging", backend.address))
        with (
            serving("--log-format", "plain", cwd=tmp_path, env=with_plugins(tmp_path / "site")) as program,
            connect(program.address) as client,
        ):
            client.sendall(data)
            program.await_err(said)
            program.signal(signal.SIGTERM)
            eventually(
                lambda: is_handled(program, signal.SIGTERM) is False, "the next signal ends the program"
            )
            program.signal(signal.SIGTERM)
            assert program.wait() == -signal.SIGTERM


def is_handled(program: Running, number: signal.Signals) -> bool:
    """Return whether a program has a handler for a signal."""
    status = Path(f"/proc/{program.pid}/status").read_text()
    return bool(int(status.partition("\nSigCgt:")[2].split()[0], 16) >> (number - 1) & 1)


@pytest.mark.slow
def test_workers_go_on_beside_a_worker_that_hangs_and_two_signals_end_them_all(tmp_path: Path) -> None:
    install(tmp_path / "site", "hanging", protocol("hanging", "S"))
    with Backend(echo) as backend:
        (tmp_path / "refractium.toml").write_text(
            server(2) + f'fallback_tcp = "{backend.address}"\n' + route("hanging", backend.address)
        )
        with (
            serving("--log-format", "plain", cwd=tmp_path, env=with_plugins(tmp_path / "site")) as program,
            connect(program.address) as client,
        ):
            client.sendall(b"Ss1000")
            program.await_err("error plugin 'hanging' of .* has blocked the event loop for more than 1 s")
            program.await_err(r"worker \d .*: it does not answer")
            assert ask(program.address, b"others").data == b"others"
            with connect(program.address) as another:
                another.sendall(b"Ss1000")
                program.await_err("(?s)more than 1 s.*more than 1 s")
                program.signal(signal.SIGTERM)
                program.await_err("SIGTERM: ")
                program.signal(signal.SIGTERM)
                program.await_err("SIGTERM again: ending at once")
                assert program.wait() == 0


BLOCKING = (
    HEAD
    + r"""
class Blocking(HealthCheck[NoSettings]):
    name = "blocking"
    settings = NoSettings

    async def check(self, endpoint, settings, timeout):
        await asyncio.to_thread(time.sleep, 1000)


class Stubborn(HealthCheck[NoSettings]):
    name = "stubborn"
    settings = NoSettings

    async def check(self, endpoint, settings, timeout):
        while True:
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                pass


@hookimpl
def refractium_health_checks():
    return [Blocking(), Stubborn()]
"""
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["blocking", "stubborn"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_check_that_never_ends_holds_up_neither_a_reload_nor_a_stop(
    tmp_path: Path, kind: str, workers: int
) -> None:
    install(tmp_path / "site", "checks", BLOCKING)
    with Backend(echo) as backend:
        health = f'health = {{ kind = "{kind}", interval_ms = 100, timeout_ms = 50 }}'
        route_to = route("any", backend.address, f'patterns = ["any"]\n{health}')
        (tmp_path / "refractium.toml").write_text(
            server(workers) + f'fallback_tcp = "{backend.address}"\n' + route_to.replace('"any"', '"web"', 1)
        )
        with serving("--log-format", "plain", cwd=tmp_path, env=with_plugins(tmp_path / "site")) as program:
            eventually(
                lambda: status_of(program).tcp.faults.get(f"check {kind}", 0) >= 3,
                "checks fail again and again",
            )
            assert status_of(program).routes[0].backends[0].state == "down"
            assert threads(program) < 30
            program.signal(signal.SIGHUP)
            program.await_err("configuration 2 is in force")
            assert ask(program.address, b"any").data == b"any"
            assert program.terminate() == 0
    assert "info stopped after 1 connections" in program.err
    assert "Traceback" not in program.err


def threads(program: Running) -> int:
    return len(list(Path(f"/proc/{program.pid}/task").iterdir()))


@pytest.mark.parametrize("way", [slow_plugin.compute, slow_plugin.sleep])
@pytest.mark.parametrize("look", [0.01, 0.03])
def test_one_look_suffices_to_find_a_call_of_50_ms(
    way: Callable[..., None], look: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watchdog, "_LOOK", look)
    monkeypatch.setitem(origins._plugins, slow_plugin.__name__, "plugin 'slow'")

    async def main() -> None:
        dog = watchdog.Watchdog()

        def clock() -> float:
            """Return a time that stands still while other programs use the processor."""
            now, delayed = dog._now()
            return now - delayed

        dog.start(asyncio.get_running_loop())
        try:
            dog.notice()
            slow_plugin.call(way, 0.05, clock, lambda: dog._call is not None)
            await until(lambda: bool(caplog.messages))
        finally:
            dog.stop()

    asyncio.run(main())
    (line,) = caplog.messages
    assert line.startswith("plugin 'slow' has blocked the event loop for more than 40 ms: call (")


@pytest.mark.parametrize(
    ("before", "turned", "gone", "after", "is_slow"),
    [
        ((1.0, 0.0), 1.0, math.inf, (1.05, 0.0), True),
        ((1.0, 0.0), 1.0, math.inf, (1.04, 0.0), False),
        # Other programs have used the processor.
        ((1.0, 5.0), 1.0, math.inf, (1.05, 5.02), False),
        ((1.0, 5.0), 1.0, math.inf, (1.07, 5.02), True),
        # The last look was late, but the batch of events began later.
        ((1.0, 0.0), 1.03, math.inf, (1.06, 0.0), False),
        ((1.0, 0.0), 1.03, math.inf, (1.08, 0.0), True),
        # Another call followed in the same batch of events.
        ((1.0, 0.0), 1.0, 1.04, (1.08, 0.0), False),
        ((1.0, 0.0), 1.0, 1.05, (1.08, 0.0), True),
    ],
)
def test_a_call_is_slow_by_the_moments_before_and_after(
    before: tuple[float, float],
    turned: float,
    gone: float,
    after: tuple[float, float],
    is_slow: bool,  # noqa: FBT001 - pytest passes it by name
    caplog: pytest.LogCaptureFixture,
) -> None:
    call = watchdog._Call(sys._getframe(), "plugin 'slow'", before, turned, Throttled(logging.getLogger()))
    call.gone = gone
    call.tell_if_slow(after)
    assert len(caplog.messages) == is_slow
