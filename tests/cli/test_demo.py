"""The demonstration: every installed protocol behind one port."""

from __future__ import annotations

import asyncio
import ftplib
import gc
import json
import os
import signal
import socket
from contextlib import ExitStack
from textwrap import dedent
from typing import TYPE_CHECKING

import pytest

from refractium.demo import backends
from support.clients import PATIENCE, ask, connect
from support.process import environment, run, serving

if TYPE_CHECKING:
    from pathlib import Path

PROTOCOLS = ["http", "https", "ssh", "dns", "ftp"]


def test_every_protocol_is_identified_and_answered() -> None:
    done = run("demo", "--json")
    assert (done.code, done.err) == (0, "")
    outcomes = json.loads(done.out)
    assert [one["protocol"] for one in outcomes] == PROTOCOLS
    assert all(one["ok"] and one["identified_as"] == one["protocol"] for one in outcomes)
    assert all(one["evidence"] and one["answer"] for one in outcomes)
    reached = {one["backend"] for one in outcomes}
    assert len(reached) == len(PROTOCOLS), "each protocol must reach a backend of its own"


def test_the_demo_prints_a_table_on_a_terminal() -> None:
    done = run("demo")
    assert (done.code, done.err) == (0, "")
    rows = [line.split() for line in done.out.splitlines()]
    assert [row[0] for row in rows if row[-1] == "ok"] == PROTOCOLS


def test_a_protocol_that_is_not_installed_is_not_shown() -> None:
    done = run("--disable-plugin", "ssh", "demo", "--json")
    assert (done.code, done.err) == (0, "")
    assert [one["protocol"] for one in json.loads(done.out)] == [one for one in PROTOCOLS if one != "ssh"]


def test_the_demo_can_go_on_serving_and_prints_commands_to_try_it() -> None:
    with serving("demo", "--serve") as demo:
        demo.await_out(r"^Ctrl-C ends the demo\.$")
        assert f"curl http://127.0.0.1:{demo.port}/" in demo.out
        answer = ask(demo.address, b"GET / HTTP/1.1\r\nHost: me\r\n\r\n").data
        assert b"hello from the HTTP backend" in answer
        assert demo.terminate() == 0
        assert "Traceback" not in demo.err


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("demo", "-p", port)
    assert (done.code, done.out) == (1, "")
    assert (
        done.err
        == f"error: cannot listen on tcp://127.0.0.1:{port}: the address is in use by another program\n"
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_end_of_the_demo_prints_no_traceback_whatever_the_clients_do(number: signal.Signals) -> None:
    with ExitStack() as stack:
        demo = stack.enter_context(serving("demo", "--serve"))
        demo.await_out(r"^Ctrl-C ends the demo\.$")
        for beginning in (
            b"",
            b"GET /",
            b"GET / HTTP/1.1\r\n",
            b"SSH-2.0-",
            b"\0\x30",
        ):  # after each beginning, the backend waits for more bytes
            client = stack.enter_context(connect(demo.address))
            client.sendall(beginning)
        with ftplib.FTP(timeout=PATIENCE) as ftp:  # noqa: S321 - the demo shows FTP
            ftp.connect(*demo.address)
            ftp.login()
            with pytest.raises(ftplib.error_temp, match="425"):
                ftp.sendcmd("RETR README.txt")
            text: list[str] = []
            ftp.retrlines("RETR README.txt", text.append)
            assert text == ["hello from the FTP backend"]
            with pytest.raises(ftplib.error_perm, match="550"):
                ftp.retrlines("RETR nowhere.txt")
            passive = stack.enter_context(ftplib.FTP(timeout=PATIENCE))  # noqa: S321
            passive.connect(*demo.address)
            passive.login()
            stack.enter_context(connect(passive.makepasv()))  # and requests no file
            demo.signal(number)
            assert demo.wait() == 0
        levels = {line.split()[1] for line in demo.err.splitlines()}
        assert levels <= {"info", "warning"}, demo.err


@pytest.mark.parametrize("command", ["", "RETR nowhere.txt", "RETR README.txt"])
@pytest.mark.parametrize("connects", [False, True])
def test_a_backend_whose_client_has_left_causes_no_message(command: str, *, connects: bool) -> None:
    """If nothing kept a task that waits for ever, the garbage collector would report the task."""
    reported = []

    async def leave() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: reported.append(context["message"]))
        server = await asyncio.start_server(backends.until_closed(backends.ftp), "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"EPSV\r\n")
        await reader.readline()
        port = int((await reader.readline()).split(b"|")[3])
        if connects:
            _, data = await asyncio.open_connection("127.0.0.1", port)
            data.close()
        writer.write(f"{command}\r\n".encode())
        await reader.readline()
        writer.close()
        await writer.wait_closed()
        server.close()
        del reader, writer, server
        for _ in range(50):  # turns of the event loop, in which the backend sees the end of the client
            await asyncio.sleep(0)
            gc.collect()

    asyncio.run(leave())
    gc.collect()
    assert reported == []


def with_plugin(folder: Path, scene: str) -> dict[str, str]:
    """Return an environment in which a plugin gives the protocol ``fable`` and a scene."""
    info = folder / "fable-2.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fable\nVersion: 2.0\nSummary: Tales\n")
    (info / "entry_points.txt").write_text("[refractium]\nfable = fable\n")
    source = """
        from refractium.contract import NO, ProtocolMatch, Scene, define_protocol, hookimpl

        @define_protocol("fable", max_bytes=10, prefixes=(b"once",))
        def fable(data):
            return ProtocolMatch() if data.startswith(b"once") else NO

        async def backend(reader, writer):
            writer.write(b"upon " + await reader.readline())

        def exchange(sock):
            sock.sendall(b"once a time\\n")
            return sock.makefile("rb").readline().decode().strip()

        @hookimpl
        def refractium_protocols():
            return [fable]
    """
    (folder / "fable.py").write_text(dedent(source) + dedent(scene))
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    return environment(PYTHONPATH=path)


def scenes(text: str) -> str:
    return f"\n@hookimpl\ndef refractium_scenes():\n    return [{text}]\n"


def test_a_protocol_of_a_third_party_is_shown_by_its_scene(tmp_path: Path) -> None:
    env = with_plugin(tmp_path, scenes('Scene("fable", backend, exchange, "tell {port} {x}")'))
    done = run("demo", "--json", env=env)
    assert (done.code, done.err) == (0, "")
    results = {one["protocol"]: one for one in json.loads(done.out)}
    assert [*results] == [*PROTOCOLS, "fable"]
    assert results["fable"]["identified_as"] == "fable"
    assert results["fable"]["answer"] == "upon once a time"
    assert "tell {port} {x}" in run("plugins", "info", "fable", env=env).out
    with serving("demo", "--serve", env=env) as demo:
        demo.await_out(r"^Ctrl-C ends the demo\.$")
        assert f"tell {demo.port} {{x}}" in demo.out
        assert demo.terminate() == 0


@pytest.mark.parametrize(
    "fault",
    [
        "def exchange(sock): raise LookupError('no tale')",
        "async def backend(reader, writer): raise LookupError('no tale')",
        "def exchange(sock): return sock.makefile('rb').nothing",
    ],
)
def test_a_fault_of_a_scene_fails_this_scene_only(tmp_path: Path, fault: str) -> None:
    env = with_plugin(tmp_path, f"\n{fault}\n" + scenes('Scene("fable", backend, exchange, "")'))
    done = run("demo", "--json", env=env)
    assert "Traceback" not in done.err
    results = {one["protocol"]: one for one in json.loads(done.out)}
    assert all(results[name]["ok"] for name in PROTOCOLS)
    assert (done.code, results["fable"]["ok"]) in {(1, False), (0, True)}


@pytest.mark.parametrize(
    "scene",
    [
        "7",
        'Scene("Fable!", backend, exchange, "")',
        'Scene("fable", exchange, exchange, "")',
        'Scene("fable", backend, backend, "")',
        'Scene("fable", backend, exchange, 7)',
    ],
)
def test_a_scene_that_breaks_the_contract_fails_its_plugin(tmp_path: Path, scene: str) -> None:
    env = with_plugin(tmp_path, scenes(scene))
    done = run("plugins", "list", "--json", env=env)
    (plugin,) = [one for one in json.loads(done.out) if one["id"] == "fable"]
    assert plugin["status"] == "failed"
    assert "scene" in plugin["error"]
    assert run("demo", env=env).code == 0


def test_the_demo_never_advises_to_install_what_is_installed(tmp_path: Path) -> None:
    without = [argument for name in PROTOCOLS for argument in ("--disable-plugin", name)]
    done = run(*without, "demo")
    assert (done.code, done.out) == (2, "")
    assert "pip install" not in done.err
    assert "disabled" in done.err
    done = run(*without, "demo", env=with_plugin(tmp_path, ""))
    assert "pip install" not in done.err
