"""The packages after an installation by pip or uv: exactly the requested ones."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

import refractium

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., str]
    Environment = Callable[..., Path]
    PluginsIn = Callable[[Path], list[dict[str, Any]]]

IDS = ["dns", "ftp", "http", "https", "ssh"]
KEYS = ["id", "kind", "transports", "distribution", "version", "status", "error", "summary"]


def ids_of(listed: list[dict[str, Any]]) -> list[str]:
    assert {plugin["status"] for plugin in listed} <= {"loaded"}, listed
    return [plugin["id"] for plugin in listed]


@pytest.mark.parametrize("id_", IDS)
def test_an_extra_installs_exactly_its_protocol(
    id_: str, environment: Environment, plugins_in: PluginsIn
) -> None:
    (plugin,) = plugins_in(environment("refractium-core", f"refractium-protocols[{id_}]"))
    assert list(plugin) == KEYS
    assert plugin | {"summary": "", "transports": []} == {
        "id": id_,
        "kind": "protocol",
        "transports": [],
        "distribution": f"refractium-proto-{id_}",
        "version": refractium.__version__,
        "status": "loaded",
        "error": None,
        "summary": "",
    }
    assert plugin["transports"] == (["tcp", "udp"] if id_ == "dns" else ["tcp"])


def test_several_extras_install_all_their_protocols(environment: Environment, plugins_in: PluginsIn) -> None:
    bin_ = environment("refractium-core", "refractium-protocols[https,ssh]")
    assert ids_of(plugins_in(bin_)) == ["https", "ssh"]


def test_the_extra_all_installs_every_protocol(environment: Environment, plugins_in: PluginsIn) -> None:
    bin_ = environment("refractium-core", "refractium-protocols[all]")
    assert ids_of(plugins_in(bin_)) == IDS


def test_the_extra_pcap_of_the_core_installs_the_hook(
    environment: Environment, plugins_in: PluginsIn
) -> None:
    assert ids_of(plugins_in(environment("refractium-core[pcap]"))) == ["pcap"]


def test_without_extras_no_protocol_is_installed_and_errors_say_how_to_install_one(
    run: Run, environment: Environment, plugins_in: PluginsIn
) -> None:
    bin_ = environment("refractium-core", "refractium-protocols")
    assert plugins_in(bin_) == []
    explain = "from refractium.plugins import load_plugins; print(load_plugins().explain_missing('ssh'))"
    explained = run(bin_ / "python", "-c", explain)
    assert "pip install refractium-proto-ssh" in explained
    assert "pip install refractium-hooks-pcap" in run(
        bin_ / "python", "-c", explain.replace("explain_missing('ssh')", "explain_missing_hook('pcap')")
    )
    assert "pip install 'refractium-protocols[all]'" in explained


@pytest.mark.parametrize("extras", ["", "[ssh]", "[all]"])
def test_the_command_lists_the_protocols_that_the_library_finds(
    extras: str, run: Run, environment: Environment, plugins_in: PluginsIn
) -> None:
    bin_ = environment("refractium-core", f"refractium-protocols{extras}")
    assert json.loads(run(bin_ / "refractium", "plugins", "list", "--json")) == plugins_in(bin_)


def test_a_route_to_a_protocol_that_is_not_installed_stops_the_start(
    run: Run, environment: Environment
) -> None:
    bin_ = environment("refractium-core", "refractium-protocols")
    output = run(bin_ / "refractium", "-p", "0", "-f", "ssh=127.0.0.1:22", status=2)
    assert "refractium-proto-ssh" in output
    assert "Traceback" not in output
    assert "Listening" not in output


def test_a_regex_needs_its_extra(run: Run, environment: Environment, tmp_path: Path) -> None:
    file = tmp_path / "refractium.toml"
    file.write_text(
        '[[protocols]]\nname = "mine"\npatterns = [{ regex = "^a+b" }]\nforward_to = "127.0.0.1:1"\n'
    )
    output = run(environment("refractium-core") / "refractium", "check", "-c", file, status=2)
    assert f"{file}:3: protocols[0].patterns[0]: a regex needs the package google-re2" in output
    assert "pip install 'refractium-core[regex]'" in output
    run(environment("refractium-core[regex]") / "refractium", "check", "-c", file)


def test_an_uninstalled_protocol_is_gone(
    run: Run, uv: str, dist: Path, tmp_path: Path, plugins_in: PluginsIn
) -> None:
    python = tmp_path / "bin/python"
    wanted = ("refractium-core", "refractium-protocols[ftp,ssh]")
    run(uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, tmp_path)
    run(uv, "pip", "install", "--quiet", "--python", python, "--find-links", dist, *wanted)
    run(uv, "pip", "uninstall", "--quiet", "--python", python, "refractium-proto-ftp")
    assert ids_of(plugins_in(python.parent)) == ["ssh"]


def test_pip_installs_the_same_as_uv(run: Run, dist: Path, tmp_path: Path, plugins_in: PluginsIn) -> None:
    if not find_spec("ensurepip"):
        pytest.skip("this Python has no ensurepip, so it cannot make an environment with pip")
    run(sys.executable, "-m", "venv", tmp_path)
    wanted = ("refractium-core", "refractium-protocols[ssh]")
    run(tmp_path / "bin/python", "-m", "pip", "install", "--quiet", "--find-links", dist, *wanted)
    assert ids_of(plugins_in(tmp_path / "bin")) == ["ssh"]
