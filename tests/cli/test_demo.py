"""The demonstration: every installed protocol behind one port."""

from __future__ import annotations

import json
import socket

from support.clients import ask
from support.process import run, serving

PROTOCOLS = ["http", "https", "ssh", "dns", "ftp"]


def test_every_protocol_is_identified_and_answered() -> None:
    done = run("demo", "--json")
    assert (done.code, done.err) == (0, "")
    outcomes = json.loads(done.out)
    assert [one["protocol"] for one in outcomes] == PROTOCOLS
    assert all(one["ok"] and one["identified_as"] == one["protocol"] for one in outcomes)
    assert all(one["evidence"] and one["answer"] for one in outcomes)
    backends = {one["backend"] for one in outcomes}
    assert len(backends) == len(PROTOCOLS), "each protocol must reach a backend of its own"


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
