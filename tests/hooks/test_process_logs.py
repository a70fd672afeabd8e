"""The log of a hook's process goes where the log of the proxy goes, and has the same format."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from support.clients import PATIENCE
from support.process import able_to_import_tests, free_port, serving

if TYPE_CHECKING:
    from pathlib import Path

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"

_PROXY = """
import asyncio, logging, sys
from refractium.contract import Direction, NoSettings
from refractium.hooks.tap import RouteHooks, make_runner
from refractium.logs import install
from support import hooks

async def main():
    hooks.Talking.isolation = "process"
    runner = make_runner(hooks.Talking, NoSettings())
    runner.start()
    tap = RouteHooks([runner]).open(hooks.context())
    for word in sys.argv[2:]:
        tap.packet(Direction.INBOUND, word.encode())
    while runner.counters.inbound.delivered < len(sys.argv[2:]):
        await asyncio.sleep(0.01)
    tap.close("closed")
    await runner.stop(20)

if sys.argv[1] != "none":
    install(sys.argv[1])
    logging.getLogger("refractium").setLevel(logging.DEBUG)
    logging.getLogger("refractium").info("from the proxy")
asyncio.run(main())
"""


def said(style: str, *words: str) -> list[str]:
    """Return the lines that a proxy and the process of its hook write to stderr."""
    done = subprocess.run(
        [sys.executable, "-c", _PROXY, style, *words],
        env={**able_to_import_tests(), "COLUMNS": "200"},
        capture_output=True,
        check=True,
        timeout=PATIENCE,
    )
    return done.stderr.decode().splitlines()


WORDS = ("logged", "debugged", "printed", "bytes", "warned", "half", "fork")


def test_every_log_line_print_and_warning_of_a_hook_is_json() -> None:
    lines = [json.loads(line) for line in said("json", *WORDS)]
    assert all(line.keys() == {"time", "level", "logger", "message"} for line in lines)
    assert all(line["message"].isprintable() for line in lines)
    told = {line["message"]: (line["level"], line["logger"]) for line in lines}
    assert told["from the proxy"] == ("info", "refractium")
    assert told[r"logged \x9b2J"] == ("warning", "talking")
    assert told[r"debugged \x9b2J"] == ("debug", "refractium.talking")
    assert told[r"printed \x9b2J"] == told[r"bytes \x9b2J"] == ("warning", "refractium.hooks.stderr")
    assert told[r"half \x9b2J"] == ("warning", "refractium.hooks.stderr")
    assert told[r"fork \x9b2J"] == ("warning", "talking")
    assert any(message.endswith(r"UserWarning: warned \x9b2J") for message in told)


@pytest.mark.parametrize("style", ["plain", "none"])
def test_plain_lines_have_the_format_of_the_proxy(style: str) -> None:
    lines = said(style, *WORDS)
    assert all(re.match(rf"{TIME} (info|warning|debug) ", line) for line in lines), lines
    assert all(line.isprintable() for line in lines)
    assert any(line.endswith(r" warning logged \x9b2J") for line in lines)


def test_coloured_lines_have_the_format_of_the_proxy() -> None:
    lines = said("rich", *WORDS)
    (line,) = [line for line in lines if "logged" in line]
    assert re.match(r"\[.*\] WARNING +logged \\x9b2J", line)
    for word in ("printed", "bytes", "half"):
        assert any(rf"{word} \x9b2J" in line for line in lines), word
    assert not any("lost" in line for line in lines)


def test_the_traceback_of_a_thread_of_a_hook_is_json_too() -> None:
    messages = [json.loads(line)["message"] for line in said("json", "thread")]
    assert "ValueError: always" in messages


def test_a_hook_that_configures_logging_itself_causes_no_loop() -> None:
    messages = [json.loads(line)["message"] for line in said("json", "handled", "handled")]
    assert messages.count(r"WARNING:talking:handled \x9b2J") == 2


def test_a_hook_in_a_process_logs_json_if_the_program_does(tmp_path: Path) -> None:
    (tmp_path / "refractium.toml").write_text(
        f"""
        fallback_tcp = "127.0.0.1:9"
        [server]
        bind = "127.0.0.1"
        port = 0
        hooks = ["pcap"]
        [plugins.pcap]
        listen = "127.0.0.1:{free_port()}"
        """
    )
    with serving("--log-format", "json", cwd=tmp_path) as proxy:
        proxy.await_err("listening for viewers")
        assert proxy.terminate() == 0
        lines = [json.loads(line) for line in proxy.err.splitlines()]
    assert {line["logger"].partition(".")[0] for line in lines} == {"refractium", "refractium_hooks_pcap"}
