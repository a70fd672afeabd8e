"""The library without the command line."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading

import pytest

from refractium import NEED_MORE, NO, Identification, ProtocolMatch, Refractium, Route, define_protocol
from support.backends import Backend, named
from support.clients import PATIENCE, ask
from support.process import TIMEOUT, free_port, is_listening
from support.proxy import eventually


def imported_by(statement: str) -> set[str]:
    """Return the modules that a statement imports in a fresh interpreter."""
    code = (
        "import json, sys\nbefore = set(sys.modules)\n"
        f"{statement}\nprint(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=TIMEOUT, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import refractium", {"refractium.contract", "refractium.engine.engine", "asyncio", "msgspec"}),
        (
            "import refractium.contract",
            {"refractium.engine.engine", "refractium.plugins.loading", "asyncio", "socket"},
        ),
        (
            "import refractium.engine.engine",
            {
                "refractium.cli",
                "refractium.plugins.loading",
                "refractium.config",
                "rich",
                "click",
                "rich_click",
            },
        ),
        (
            "from refractium.identify.patterns import *\ncompile_patterns('mine', 'tcp', [Text(b'a')], 9)",
            {"re2", "asyncio"},
        ),
        (
            "from refractium.kit import Address, Networks, OwnTable, Problem, RefractiumError, Throttled",
            {"refractium.engine", "refractium.routing", "refractium.config", "rich", "click", "asyncio"},
        ),
        (
            "from refractium.kit import *",
            {"refractium.engine", "refractium.routing", "refractium.config", "refractium.cli", "asyncio"},
        ),
        (
            "import refractium_hooks_pcap.hook",
            {"refractium.engine", "refractium.routing", "refractium.config", "rich", "click", "numpy"},
        ),
        ("import pytest_refractium", {"refractium", "asyncio"}),
        ("import refractium.testing", {"refractium.contract", "typing", "pytest", "asyncio"}),
        (
            "from refractium.testing import assert_identifies, cuts, run_hook",
            {"refractium.engine.engine", "pytest", "hypothesis", "asyncio", "socket"},
        ),
        ("import refractium_proto_http", {"refractium.engine.engine", "asyncio"}),
        ("import refractium.cli", {"rich", "click", "asyncio", "refractium.engine.engine"}),
        ("import refractium.cli.serve", {"rich.console", "watchfiles"}),
        ("from refractium.plugins.loading import load_plugins\nload_plugins()", {"email.parser"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_import_loads_only_the_modules_it_needs(statement: str, unwanted: set[str]) -> None:
    assert imported_by(statement) & unwanted == set()


@define_protocol("mine", max_bytes=4, prefixes=(b"MINE",))
def my_proto(data: bytes) -> Identification:
    """A protocol of the program that embeds the library."""
    if data.startswith(b"MINE"):
        return ProtocolMatch()
    return NEED_MORE if b"MINE".startswith(data) else NO


def test_the_example_of_the_library_runs_as_written() -> None:
    port = free_port()
    started: list[tuple[Refractium, asyncio.AbstractEventLoop]] = []

    async def main(backend: str) -> None:
        engine = Refractium(tcp=[Route(my_proto, backend)])
        started.append((engine, asyncio.get_running_loop()))
        await engine.run_tcp("127.0.0.1", port)

    with Backend(named("mine")) as backend:
        thread = threading.Thread(target=lambda: asyncio.run(main(backend.address)))
        thread.start()
        eventually(lambda: is_listening(port), "the program listens")
        ((engine, loop),) = started
        assert ask(("127.0.0.1", port), b"MINE!").data == b"mineMINE!"
        assert ask(("127.0.0.1", port), b"other").data == b""
        asyncio.run_coroutine_threadsafe(engine.stop(), loop).result(PATIENCE)
        thread.join(PATIENCE)
        assert not thread.is_alive()
        assert engine.active == 0
