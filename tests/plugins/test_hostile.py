"""A plugin that raises every exception in every call, in real programs with one process and with workers."""

from __future__ import annotations

import json
import signal
from textwrap import dedent
from typing import TYPE_CHECKING

import pytest

from support.backends import Backend, echo
from support.clients import ask, connect, receive
from support.datagrams import UdpBackend
from support.datagrams import ask as ask_datagram
from support.datagrams import echo as echo_datagram
from support.plugins import install, with_plugins
from support.process import run, serving
from support.proxy import eventually
from support.status import status_of

if TYPE_CHECKING:
    from pathlib import Path

    from support.process import Running

ERRORS = 8
"""The number of exceptions that the plugin raises, by the second byte of the client."""

HOSTILE = r"""
    import asyncio
    import itertools
    from pathlib import Path

    from msgspec import Struct

    from refractium.contract import *

    class Boom(BaseException):
        def __str__(self):
            raise SystemExit(9)

    ERRORS = (
        lambda: SystemExit(3), KeyboardInterrupt, GeneratorExit, RecursionError, MemoryError,
        asyncio.CancelledError, Boom, lambda: BaseException("red \x1b[31m\nnext line"),
    )
    TURNS = itertools.cycle(ERRORS)

    def fail(number):
        raise ERRORS[number]()

    def fail_in_turn(*_):
        raise next(TURNS)()

    def thrown(*_):
        return (one for one in ()).throw(KeyboardInterrupt)

    class Text(str):
        __str__ = __format__ = __hash__ = __eq__ = fail_in_turn

    @define_protocol("raising", max_bytes=2)
    def raising(data):
        return fail(data[1]) if data[:1] == b"!" else NO

    @define_protocol("raising", max_bytes=2, transport="udp")
    def raising_udp(data):
        return fail(data[1]) if data[:1] == b"!" else NO

    @define_protocol("thrown", max_bytes=1)
    def thrown_(data):
        return thrown() if data[:1] == b"#" else NO

    @define_protocol("unreadable", max_bytes=2, metadata_keys=frozenset({"host", "text"}))
    def unreadable(data):
        if data[:1] != b"?":
            return NO
        if data[1] == 100:
            return ProtocolMatch({"host": 5, "other": "x", "text": Text("x")})
        return DeferredMatch(lambda data: fail(data[1]), data)

    class Order(Balancer):
        name = "hostile"
        asked = itertools.count()

        def order(self, backends, client):
            number = next(self.asked) % 14
            if number < 8:
                return fail(number)
            one = backends[0]
            return (self.late(one), [], [one, one], ["x"], None, itertools.repeat(one))[number - 8]

        def late(self, one):
            yield one
            fail_in_turn()

    class Settings(Struct, frozen=True, forbid_unknown_fields=True):
        wrong: bool = False

    class Check(HealthCheck[Settings]):
        name = "hostile"
        settings = Settings
        asked = itertools.count()

        async def check(self, endpoint, settings, timeout):
            number = next(self.asked) % 12
            if number < 8:
                fail(number)
            return {8: True, 9: False, 10: 3, 11: b"x"}[number]

        def problems(self, settings):
            if settings.wrong:
                fail_in_turn()
            return ()

    class Hook(PacketHook[NoSettings]):
        name = "hostile"
        settings_type = NoSettings
        on_open = on_packet = on_close = stop = fail_in_turn

    @hookimpl
    def refractium_protocols():
        return [raising, raising_udp, thrown_, unreadable]

    @hookimpl
    def refractium_balancers():
        return [Order]

    @hookimpl
    def refractium_health_checks():
        return [Check()]

    @hookimpl
    def refractium_hooks():
        return [Hook]
"""


def configuration(backend: str, other: str, datagrams: str, workers: int, more: str = "") -> str:
    return dedent(
        f"""
        [server]
        bind = "127.0.0.1"
        port = 0
        workers = {workers}
        hot_reload = false
        fallback_tcp = "{backend}"
        fallback_udp = "{datagrams}"

        [[protocols]]
        name = "raising"
        transport = "tcp"
        forward_to = "{backend}"

        [[protocols]]
        name = "raising"
        transport = "udp"
        forward_to = "{datagrams}"

        [[protocols]]
        name = "thrown"
        forward_to = "{backend}"

        [[protocols]]
        name = "unreadable"
        forward_to = "{backend}"
        proxy_protocol = "v2"
        hooks = ["hostile"]

        [[protocols]]
        name = "balanced"
        patterns = [{{ hex = "2a", offset = 0 }}]
        forward_to = ["{backend}", "{other}"]
        balance = "hostile"

        [[protocols]]
        name = "checked"
        patterns = [{{ hex = "40", offset = 0 }}]
        forward_to = "{backend}"
        health = {{ kind = "hostile", interval_ms = 100, timeout_ms = 500{more} }}
        """
    )


def attack(program: Running, number: int) -> None:
    """Cause each kind of fault once, each with a client that must be served nevertheless."""
    address = program.address
    second = bytes((number % ERRORS,))
    assert ask(address, b"!" + second).data == b"!" + second
    assert ask(address, b"#" + second).data == b"#" + second
    assert ask(address, b"?" + second).data.endswith(b"?" + second)
    assert ask(address, b"?d").data.endswith(b"?d")
    assert ask(address, b"*" + second).data == b"*" + second
    assert ask(address, b"@" + second).data == b"@" + second
    assert ask_datagram(address, b"!" + second) == b"!" + second


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_no_exception_of_a_plugin_leaves_its_session(tmp_path: Path, workers: int) -> None:
    install(tmp_path / "site", "hostile", HOSTILE)
    install(tmp_path / "site", "cracked", "raise KeyboardInterrupt")
    file = tmp_path / "refractium.toml"
    with Backend(echo) as backend, Backend(echo) as other, UdpBackend(echo_datagram) as datagrams:
        addresses = backend.address, other.address, datagrams.address
        file.write_text(configuration(*addresses, workers))
        env = with_plugins(tmp_path / "site")
        with serving("-c", file, "--log-format", "plain", cwd=tmp_path, env=env) as program:
            with connect(program.address) as steady:
                for number in range(14):
                    attack(program, number)
                    steady.sendall(b"on")
                    assert receive(steady, 2) == b"on"
                eventually(
                    lambda: status_of(program).tcp.faults.get("check hostile", 0) >= 12,
                    "the check has raised each exception and returned each wrong result",
                )
                file.write_text(configuration(*addresses, workers, ", wrong = true"))
                program.signal(signal.SIGHUP)
                program.await_err("not reloaded: .*health: the plugin failed when it checked its settings")
                steady.sendall(b"on")
                assert receive(steady, 2) == b"on"
            eventually(lambda: status_of(program).tcp.active == 0, "all connections are closed")
            status = status_of(program)
            assert program.terminate() == 0
        log = program.err
    assert status.tcp.accepted == status.tcp.finished == 1 + 14 * 6
    assert status.tcp.faults["raising"] == status.tcp.faults["thrown"] == 14
    assert status.udp.faults == {"raising": 14}
    # PROXY header, hook and access log each read the metadata.
    assert status.tcp.faults["unreadable"] >= 2 * 14
    assert status.tcp.faults["balancer hostile"] == 14
    assert not any(worker.restarts for worker in status.workers)
    (hostile,) = [one for one in status.plugins if one.id == "hostile"]
    of_hook = sum(one.failures for one in status.hooks)
    assert hostile.faults == sum(status.tcp.faults.values()) + sum(status.udp.faults.values()) + of_hook
    assert not any(one.faults for one in status.plugins if one.id != "hostile")
    for what in (
        "protocol raising",
        "protocol thrown",
        "protocol unreadable",
        "balancer hostile",
        "check hostile",
    ):
        named = f"{what} (plugin 'hostile' of refractium-proto-hostile 1.0) failed: "
        assert 1 <= log.count(named) <= 2 * workers, what  # each transport of each process counts by itself
    assert "plugin 'cracked' of refractium-proto-cracked 1.0 is not used: KeyboardInterrupt" in log
    assert "\x1b" not in log
    assert "Traceback" not in log


ODD = r"""
    from refractium.contract import *

    @define_protocol("odd", max_bytes=1, strength=Strength.EXACT, metadata_keys=frozenset({"host"}))
    def odd(data):
        if data == b"e":
            raise SystemExit("red \x1b[31m")
        answers = {b"a": "yes", b"m": ProtocolMatch({"host": 5}), b"u": ProtocolMatch({"other": "x"})}
        return answers.get(data, NO)

    @hookimpl
    def refractium_protocols():
        return [odd]
"""


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ("e", r"SystemExit: red \x1b[31m"),
        ("a", 'TypeError: "yes" is not an answer'),
        ("m", "TypeError: metadata host is int, not str"),
        ("u", "odd does not declare the metadata keys other"),
    ],
)
def test_identify_shows_an_invalid_answer_as_a_fault(tmp_path: Path, data: str, fault: str) -> None:
    install(tmp_path / "site", "odd", ODD)
    env = with_plugins(tmp_path / "site")
    done = run("identify", "--hex", data.encode().hex(), "--json", cwd=tmp_path, env=env)
    (answer,) = [one for one in json.loads(done.out)["answers"] if one["protocol"] == "odd"]
    assert answer["answer"] == "fault"
    assert fault in answer["error"]
    shown = run("identify", "--explain", "--hex", data.encode().hex(), cwd=tmp_path, env=env)
    assert "fault" in shown.out
    assert "\x1b" not in shown.out + shown.err


TEXTS = r"""
    from dataclasses import dataclass

    from refractium.contract import *

    def leave(*_):
        raise SystemExit(7)

    class Text(str):
        __str__ = __format__ = __repr__ = leave

    @dataclass
    class Texts(Protocol):  # a dataclass with `__eq__` has no hash
        name = "texts"
        max_bytes = 1
        metadata_keys = frozenset({"host", "alpn"})

        def identify(self, data):
            if data == b"t":
                return ProtocolMatch({Text("host"): Text("x"), "alpn": (Text("y"),)})
            return ProtocolMatch({"host": "x\udcff", "alpn": ("y",)}) if data == b"u" else NO

    @hookimpl
    def refractium_protocols():
        return [Texts()]
"""


@pytest.mark.parametrize(
    ("data", "host", "shown"), [("t", "x", "host=x"), ("u", r"x\udcff", r"host=x\udcff")]
)
def test_identify_shows_texts_that_raise_or_that_no_encoding_has(
    tmp_path: Path, data: str, host: str, shown: str
) -> None:
    install(tmp_path / "site", "texts", TEXTS)
    env = with_plugins(tmp_path / "site")
    done = run("identify", "--hex", data.encode().hex(), "--json", cwd=tmp_path, env=env)
    told = json.loads(done.out)
    assert (told["protocol"], told["metadata"]) == ("texts", {"host": host, "alpn": ["y"]})
    assert f"{shown} alpn=y" in run("identify", "--hex", data.encode().hex(), cwd=tmp_path, env=env).out


def test_commands_go_on_beside_a_plugin_that_raises_at_import(tmp_path: Path) -> None:
    for number, error in enumerate(("SystemExit(0)", "KeyboardInterrupt", "GeneratorExit", "BaseException")):
        install(tmp_path / "site", f"cracked{number}", f"raise {error}")
    for command in (("plugins", "list"), ("identify", "--hex", "00"), ("check",)):
        done = run(*command, cwd=tmp_path, env=with_plugins(tmp_path / "site"))
        assert "Traceback" not in done.err
        assert done.code == (2 if command == ("check",) else 0)  # no file to check
        if command == ("plugins", "list"):
            assert done.out.count("failed") == 4


FINALIZERS = r"""
    from refractium.contract import *

    class Match(ProtocolMatch):
        def __del__(self):
            raise SystemExit("red \x1b[31m\nnext line")

    class Order(Balancer):
        name = "unfinished"

        def order(self, backends, client):
            try:
                while True:
                    yield backends[0]
            finally:
                raise SystemExit(3)

    @define_protocol("deleted", max_bytes=2)
    def deleted(data):
        return Match() if data[:1] == b"!" else NO

    @hookimpl
    def refractium_protocols():
        return [deleted]

    @hookimpl
    def refractium_balancers():
        return [Order]
"""


def test_a_fault_where_python_can_raise_nothing_is_one_line_of_the_log(tmp_path: Path) -> None:
    install(tmp_path / "site", "final", FINALIZERS)
    with Backend(echo) as backend:
        (tmp_path / "refractium.toml").write_text(
            '[server]\nbind = "127.0.0.1"\nport = 0\n'
            f'[[protocols]]\nname = "deleted"\nforward_to = "{backend.address}"\nbalance = "unfinished"\n'
        )
        with serving("--log-format", "plain", cwd=tmp_path, env=with_plugins(tmp_path / "site")) as program:
            for _ in range(3):
                assert ask(program.address, b"!").data == b"!"
            program.await_err("plugin 'final' of refractium-proto-final 1.0 failed where Python cannot raise")
            assert program.terminate() == 0
    assert program.err.count("failed where Python cannot raise") == 1
    assert "\x1b" not in program.err
    assert "Traceback" not in program.err


CHECKS = r"""
    import asyncio
    import sys

    from refractium.contract import *

    async def leave():
        sys.exit(3)

    async def deaf():
        while True:
            try:
                await asyncio.sleep(1000)
            except BaseException:
                pass

    async def nested(timeout):
        await asyncio.wait_for(leave(), timeout)

    async def task(timeout):
        asyncio.create_task(leave())
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def callback(timeout):
        asyncio.get_running_loop().call_soon(sys.exit, 4)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def stopped(timeout):
        asyncio.get_running_loop().stop()

    async def shielded(timeout):
        await asyncio.shield(deaf())

    async def endless(timeout):
        await deaf()

    class Check(HealthCheck[NoSettings]):
        settings = NoSettings

        def __init__(self, run):
            self.name = run.__name__
            self.run = run

        async def check(self, endpoint, settings, timeout):
            await self.run(timeout)

    @hookimpl
    def refractium_health_checks():
        return [Check(one) for one in (nested, task, callback, stopped, shielded, endless)]
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_tasks_and_callbacks_of_a_check_end_neither_the_program_nor_its_other_checks(
    tmp_path: Path, workers: int
) -> None:
    install(tmp_path / "site", "hostile", CHECKS)
    ended = {"nested", "task", "callback", "stopped"}
    kinds = {*ended, "shielded", "endless"}
    with Backend(echo) as backend:
        (tmp_path / "refractium.toml").write_text(
            f'[server]\nbind = "127.0.0.1"\nport = 0\nworkers = {workers}\n'
            f'fallback_tcp = "{backend.address}"\n'
            + "".join(
                f'[[protocols]]\nname = "{kind}"\npatterns = ["{kind}"]\ntransport = "tcp"\n'
                f'forward_to = "{backend.address}"\n'
                f'health = {{ kind = "{kind}", interval_ms = 50, timeout_ms = 50, fall = 1 }}\n'
                for kind in sorted(kinds)
            )
        )
        with serving("--log-format", "plain", cwd=tmp_path, env=with_plugins(tmp_path / "site")) as program:
            program.await_err(r"plugin 'hostile' of refractium-proto-hostile 1\.0 has ended the event loop")
            wanted = {kind: "up" if kind in ended - {"nested"} else "down" for kind in kinds}
            eventually(lambda: states(program) == wanted, "each check has a result")
            eventually(
                lambda: status_of(program).tcp.faults.keys() == {"check nested", "check endless"},
                "the faults of the checks are counted",
            )
            for kind in kinds:
                assert ask(program.address, kind.encode()).data == kind.encode()
            assert program.terminate() == 0
    assert "info stopped after" in program.err


def states(program: Running) -> dict[str, str]:
    """Return the state of the first backend of each route that has a health check."""
    return {one.name: one.backends[0].state for one in status_of(program).routes if one.name != "fallback"}
