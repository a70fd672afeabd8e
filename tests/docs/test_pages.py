"""The pages tell the truth: their examples run, their commands exist, and their links lead somewhere."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import itertools
import re
import shlex
import socket
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from docs.entries import anchor, prose_of
from refractium import Refractium, Supervisor
from refractium.assembly.assembly import assemble
from refractium.assembly.sources import Overrides
from refractium.config import Source, decode
from refractium.contract import Transport
from refractium.plugins.loading import load_plugins
from support.clients import PATIENCE
from support.pages import pages
from support.process import PROGRAM

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from support.cli import Cli

_Start: TypeAlias = "Callable[..., Awaitable[tuple[str, ...]]]"
ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *pages()]
GUIDES = [DOCS / "tutorials" / name for name in ("writing-a-protocol.md", "writing-a-hook.md")]
"""Guides whose examples are files of distributions; tests/packaging tests those files."""

NOWHERE = ("192.0.2.1",)
"""Addresses of examples that no machine has."""

DECISION = ["Context", "Decision", "Consequence"]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(language: str, *, without: Sequence[Path] = ()) -> list[object]:
    fence = re.compile(rf"^```{language}\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    return [
        pytest.param(text, id=f"{name_of(page)}-{number}")
        for page in PAGES
        if page not in without
        for number, text in enumerate(fence.findall(page.read_text(encoding="utf-8")))
    ]


@pytest.mark.parametrize("block", blocks("toml", without=GUIDES))
def test_every_configuration_of_the_pages_can_be_served(block: str) -> None:
    decoded = decode(Source(block, "example.toml"))
    # Some examples show one table, which is not enough to serve.
    beside = Overrides(forwards=("ssh=127.0.0.1:2222",))
    found = assemble(decoded, beside, load_plugins())
    assert len(found.tcp) >= 1 + ('name = "http' in block)
    assert [str(one) for one in found.warnings if not one.where.startswith("-f")] == []


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make examples listen on free ports of the loopback interface, and stop once they serve."""
    for proxy, transport in itertools.product((Refractium, Supervisor), Transport):
        start = getattr(proxy, f"start_{transport}")

        async def start_here(
            self: Refractium, host: str, port: int, listener: str = "", start: _Start = start
        ) -> tuple[str, ...]:
            if host not in NOWHERE:
                host, port = "127.0.0.1", 0
            return await start(self, host, port, listener)

        async def run_here(self: Refractium, *where: Any, start: _Start = start) -> None:
            await start(self, "127.0.0.1", 0, *where[2:])
            await self.stop(0)

        monkeypatch.setattr(proxy, f"start_{transport}", start_here)
        monkeypatch.setattr(proxy, f"run_{transport}", run_here)


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("block", blocks("python", without=GUIDES))
def test_the_python_of_the_pages_runs(
    block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Run a block as a module, and then its function ``main`` and its tests, with their fixtures."""
    path = tmp_path / "example.py"
    path.write_text(block, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("example", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "example", module)  # workers import it, too
    monkeypatch.syspath_prepend(tmp_path)
    spec.loader.exec_module(module)
    steps = [value for name, value in vars(module).items() if name == "main" or name.startswith("test_")]
    assert steps or any(isinstance(value, Refractium) for value in vars(module).values())
    for step in steps:
        if inspect.iscoroutinefunction(step):
            asyncio.run(step())
        else:
            step(**{name: request.getfixturevalue(name) for name in inspect.signature(step).parameters})


def test_the_example_of_the_readme_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE
    )
    module = types.ModuleType("example")
    exec(compile(block, "example.py", "exec"), module.__dict__)  # noqa: S102
    engines: list[Refractium] = []
    listening = threading.Event()
    start = Refractium.start_tcp

    async def start_anywhere(self: Refractium, _host: str, _port: int, _listener: str) -> tuple[str, ...]:
        addresses = await start(self, "127.0.0.1", 0)
        engines.append(self)
        monkeypatch.setattr(module, "address", addresses[0], raising=False)
        listening.set()
        return addresses

    monkeypatch.setattr(Refractium, "start_tcp", start_anywhere)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=lambda: loop.run_until_complete(module.main()))
    thread.start()
    try:
        assert listening.wait(PATIENCE)
        host, _, port = module.address.rpartition(":")
        with socket.create_connection((host, int(port)), PATIENCE) as client:
            client.sendall(b"no knock\n")
            assert client.recv(1) == b""  # closed, because no route matches
    finally:
        asyncio.run_coroutine_threadsafe(engines[0].stop(0), loop).result(PATIENCE)
        thread.join(PATIENCE)
        loop.close()


def commands() -> list[object]:
    """Return every ``$ refractium ...`` of every page."""
    found = {}
    for page in PAGES:
        for line in re.findall(r"^\$ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE):
            command = line.rpartition("&& ")[2].rpartition("| ")[2].removeprefix("uv run ")
            if command.startswith("refractium"):
                found[f"{name_of(page)}: {command}"] = shlex.split(command)[1:]
    return [pytest.param(words, id=name) for name, words in found.items()]


@pytest.mark.parametrize("words", commands())
def test_every_command_of_the_pages_is_understood(cli: Cli, words: list[str]) -> None:
    done = cli(*words, "--help")
    assert (done.code, done.err) == (0, "")
    assert "Usage" in done.out


def headings_of(page: Path) -> set[str]:
    """Return the anchors of the headings of a page, as GitHub names them."""
    return {anchor(heading) for heading in re.findall(r"^#+ (.*)$", prose_of(page), re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_pages_and_headings(page: Path) -> None:
    for target, heading in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", prose_of(page)):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        assert not heading or heading in headings_of(linked), f"{target}#{heading}"


def test_the_index_links_every_page_and_the_architecture_every_decision() -> None:
    def linked(page: Path) -> set[Path]:
        return {(page.parent / target).resolve() for target in re.findall(r"\]\(([^)#:]+)", prose_of(page))}

    index, architecture = DOCS / "README.md", DOCS / "explanation/architecture.md"
    assert linked(index) | linked(architecture) | {index} >= set(pages())


@pytest.mark.parametrize("page", sorted((DOCS / "explanation/decisions").glob("*.md")), ids=name_of)
def test_a_decision_has_its_headings(page: Path) -> None:
    headings = re.findall(r"^## (.*)$", prose_of(page), re.MULTILINE)
    assert headings in (DECISION, [*DECISION, "Measured"])


def test_the_demo_of_the_readme_works() -> None:
    assert "\n$ pip install uv && uv run refractium demo\n" in (ROOT / "README.md").read_text(
        encoding="utf-8"
    )
    done = subprocess.run([PROGRAM, "demo"], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0
    assert done.stdout.count(b" ok") == 5


def test_every_key_of_the_glossary_is_importable() -> None:
    code = "import refractium; [getattr(refractium, name) for name in refractium.__all__]"
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)
