"""A plugin of a third party works like ours."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., str]
    Environment = Callable[..., Path]
    PluginsIn = Callable[[Path], list[dict[str, Any]]]

RUN_TESTS = """
import runpy, sys
tests = {name: test for name, test in runpy.run_path(sys.argv[1]).items() if name.startswith("test_")}
for test in tests.values():
    test()
print(*tests)
"""


def test_the_plugin_is_listed_beside_ours(environment: Environment, plugins_in: PluginsIn) -> None:
    bin_ = environment("refractium-core", "refractium-protocols[ssh]", "refractium-proto-knock")
    listed = plugins_in(bin_)
    assert [plugin["id"] for plugin in listed] == ["knock", "ssh"]
    assert listed[0] == {
        "id": "knock",
        "kind": "protocol",
        "transports": ["tcp"],
        "distribution": "refractium-proto-knock",
        "version": "1.2.3",
        "status": "loaded",
        "error": None,
        "summary": "Refractium plugin: recognises KNOCK, and routes it by the name of the house",
    }


def test_the_tests_of_the_plugin_pass_against_the_installed_core(
    run: Run, environment: Environment, knock: Path
) -> None:
    bin_ = environment("refractium-core", "refractium-protocols[ssh]", "refractium-proto-knock")
    ran = run(bin_ / "python", "-c", RUN_TESTS, knock / "tests/test_knock.py").split()
    assert len(ran) == (knock / "tests/test_knock.py").read_text().count("def test_")


def test_a_route_can_ask_for_the_metadata_of_the_plugin(
    run: Run, environment: Environment, tmp_path: Path
) -> None:
    bin_ = environment("refractium-core", "refractium-protocols[ssh]", "refractium-proto-knock")
    route = '[[protocols]]\nname = "knock"\nhost = "green.example"\nforward_to = "127.0.0.1:9001"\n'
    (tmp_path / "refractium.toml").write_text(route)
    assert "green.example" in run(bin_ / "refractium", "check", cwd=tmp_path)


def test_the_plugin_can_be_disabled_on_the_command_line(run: Run, environment: Environment) -> None:
    bin_ = environment("refractium-core", "refractium-protocols[ssh]", "refractium-proto-knock")
    list_ = ("plugins", "list", "--json")
    listed = json.loads(run(bin_ / "refractium", "--disable-plugin", "knock", *list_))
    assert [(plugin["id"], plugin["status"]) for plugin in listed] == [
        ("knock", "blocked"),
        ("ssh", "loaded"),
    ]
