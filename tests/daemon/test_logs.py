"""The content and the form of the log."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
from datetime import datetime
from typing import TYPE_CHECKING

import pytest

from support.backends import Backend, named
from support.clients import ask, connect
from support.hellos import Builder, records
from support.jsons import texts
from support.process import TIMEOUT, Running, environment, serving
from support.proxy import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HTTP = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"
LOCAL = ("-b", "127.0.0.1", "-p", 0)
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


@pytest.fixture
def backend() -> Iterator[Backend]:
    with Backend(named("web")) as backend:
        yield backend


def test_plain_lines_have_time_level_and_message(backend: Backend) -> None:
    with serving(*LOCAL, "-f", f"http={backend.address}") as proxy:
        ask(proxy.address, HTTP)
        line = proxy.await_err(r"^.* http .*$")[0]
        assert re.fullmatch(
            rf"{TIME} info 127\.0\.0\.1:\d+ http host=a\.example -> {backend.address} "
            rf"up={len(HTTP)} down={len(HTTP) + 3} \d+\.\d{{3}}s closed",
            line,
        )


def test_each_json_line_is_one_object_and_has_the_fields_of_its_connection(backend: Backend) -> None:
    flags = ("--log-format", "json", "--max-connections", 10)
    with serving(*LOCAL, "-f", f"http={backend.address}", *flags) as proxy:
        ask(proxy.address, HTTP)
        ask(proxy.address, b"what is this?\n")
        assert proxy.terminate() == 0
        lines = [json.loads(line) for line in proxy.err.splitlines()]
    assert all(line.keys() >= {"time", "level", "logger", "message"} for line in lines)
    assert all(datetime.fromisoformat(line["time"]) for line in lines)
    assert {line["level"] for line in lines} == {"warning", "info"}
    known, unknown = [line["connection"] for line in lines if "connection" in line]
    assert known.keys() == unknown.keys()
    assert (known["route"], known["backend"], known["ended"]) == ("http", backend.address, "closed")
    assert (known["up"], known["down"]) == (len(HTTP), len(HTTP) + 3)
    assert 0 <= known["seconds"] < TIMEOUT
    assert re.fullmatch(r"127\.0\.0\.1:\d+", known["client"])
    assert known["metadata"]["host"] == "a.example"
    assert (unknown["route"], unknown["backend"], unknown["ended"]) == (None, None, "no route")


def test_logs_on_a_terminal_are_coloured_with_the_same_text(backend: Backend) -> None:
    terminal, its_end = pty.openpty()
    forward = ("-f", f"http={backend.address}")
    with os.fdopen(terminal, "rb", buffering=0) as screen:
        with Running(*LOCAL, *forward, stderr=its_end, env=environment(COLUMNS="160")) as proxy:
            os.close(its_end)
            proxy.await_out("^Listening")
            ask(proxy.address, HTTP)
            assert proxy.terminate() == 0
        seen = b""
        with contextlib.suppress(OSError):  # EIO: the other end is closed (pty(7))
            while chunk := screen.read(65536):
                seen += chunk
    text = re.sub(r"\x1b\[[0-9;]*m", "", seen.decode())
    assert text != seen.decode()
    assert "INFO" in text
    assert "http host=a.example ->" in text
    assert "stopped after 1 connections" in text


def test_no_terminal_means_plain_and_no_colours(backend: Backend) -> None:
    with serving(*LOCAL, "-f", f"http={backend.address}", "--max-connections", 10) as proxy:
        ask(proxy.address, HTTP)
        assert proxy.terminate() == 0
        assert "\x1b" not in proxy.out + proxy.err
        assert all(re.match(rf"{TIME} (info|warning) ", line) for line in proxy.err.splitlines())


HOSTILE = {
    "escape sequences": b"a\x1b[31mb",
    "a line break": b"a\nb",
    "a carriage return": b"a\rb",
    "NUL": b"a\0b",
    "format directives": b"%s%d{}{0}",
    "bytes beyond ASCII": b"caf\xc3\xa9 \xff",
    "a C1 control sequence": b"a\x9b31mb",
    "a change of direction": "a\u202eb".encode(),
}


@pytest.mark.parametrize("style", ["plain", "json"])
def test_names_that_clients_send_never_break_a_line(backend: Backend, style: str) -> None:
    builder = Builder()
    forwards = [part for name in ("http", "https", "ssh") for part in ("-f", f"{name}={backend.address}")]
    with serving(*LOCAL, *forwards, "--log-format", style, "--debug") as proxy:
        for name in HOSTILE.values():
            ask(proxy.address, b"GET / HTTP/1.1\r\nHost: " + name + b"\r\n\r\n")
            ask(proxy.address, records(builder.hello([builder.sni(name)])))
            ask(proxy.address, records(builder.hello([builder.alpn(name, name)])))
            ask(proxy.address, b"GET /" + name.translate(None, b" \n\r\0\x1b") + b" HTTP/1.1\r\n\r\n")
            ask(proxy.address, b"SSH-2.0-" + name + b"\r\n")
        assert proxy.terminate() == 0
        lines = proxy.err.splitlines()
        assert style == "json" or proxy.err.isascii()
    assert all(line.isprintable() for line in lines)
    about_connections = [line for line in lines if backend.address in line and "127.0.0.1" in line]
    assert len(about_connections) == 5 * len(HOSTILE)
    if style == "json":
        assert all(text.isprintable() for line in lines for text in texts(json.loads(line)))


@pytest.mark.parametrize("style", ["plain", "json"])
def test_a_client_that_sends_long_names_leaves_a_short_line(backend: Backend, style: str) -> None:
    builder = Builder()
    many = [b"x" * 255] * 50
    with serving(
        *LOCAL, "-f", f"http={backend.address}", "-f", f"https={backend.address}", "--log-format", style
    ) as proxy:
        ask(proxy.address, b"GET /" + b"p" * 8000 + b" HTTP/1.1\r\nHost: " + b"h" * 60 + b"\r\n\r\n")
        ask(proxy.address, records(builder.hello([builder.sni(b"s" * 250), builder.alpn(*many)])))
        assert proxy.terminate() == 0
        lines = [line for line in proxy.err.splitlines() if backend.address in line]
    assert len(lines) == 2
    assert all(len(line) < 1500 for line in lines)


def test_clients_that_send_nothing_are_logged_only_with_debug(backend: Backend) -> None:
    for debug, lines in (([], 0), (["--debug"], 20)):
        with serving(*LOCAL, "-f", f"http={backend.address}", *debug) as proxy:
            for _ in range(20):
                connect(proxy.address).close()
            ask(proxy.address, HTTP)
            assert proxy.terminate() == 0
            assert proxy.err.count("client left before it was identified") == lines
            assert len([line for line in proxy.err.splitlines() if " -> " in line]) == lines + 1


def test_a_stderr_that_nobody_reads_delays_no_client(backend: Backend) -> None:
    unread, its_end = os.pipe()
    try:
        with Running(*LOCAL, "-f", f"http={backend.address}", stderr=its_end) as proxy:
            proxy.await_out("^Listening")
            for _ in range(1500):  # more bytes than a pipe holds (pipe(7): 65,536)
                assert ask(proxy.address, HTTP).data.startswith(b"web")
            assert proxy.terminate() == 0
    finally:
        os.close(its_end)
        os.close(unread)


@pytest.mark.slow
def test_on_a_disk_that_was_full_each_line_of_all_workers_is_whole(backend: Backend, tmp_path: Path) -> None:
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted")
    log = tmp_path / "log"
    flags = ("-f", f"http={backend.address}", "--workers", 2, "--log-format", "json")
    try:
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        with Running(*LOCAL, *flags, stderr=fd) as proxy:
            os.close(fd)
            proxy.await_out("^Listening")
            for _ in range(600):
                assert ask(proxy.address, HTTP).data.startswith(b"web")
            eventually(lambda: log.stat().st_size == 64 * 1024, "the disk is full")
            subprocess.run(["mount", "-o", "remount,size=8m", str(tmp_path)], check=True)
            eventually(lambda: log.read_bytes().count(b" closed") == 600, "all lines are written")
            assert proxy.terminate() == 0
        lines = [json.loads(line) for line in log.read_text().splitlines()]
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
    assert sum("connection" in line for line in lines) == 600
