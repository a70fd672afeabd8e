"""Hooks in the file: the hooks of each route, their settings, and mistakes in both."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from msgspec import Struct

from refractium import PacketHook, Route
from refractium.assembly.hooks import plugin_table_problems
from refractium.errors import ConfigError
from refractium.hooks import HookSet, UsedHook, takes_stdout
from refractium.plugins.installed import Given, Plugins
from refractium.plugins.loading import load_plugins
from refractium_hooks_pcap.hook import PcapHook
from support.configurations import assembled, problems_of
from support.process import run

if TYPE_CHECKING:
    from pathlib import Path

SSH = '[[protocols]]\nname = "ssh"\nforward_to = "127.0.0.1:22"\n'


def problems(text: str) -> list[str]:
    return [str(problem) for problem in problems_of(text)]


def settings(use: Any) -> dict[str, Any]:
    hook, found = use
    assert hook is PcapHook
    return {key: value for key in ("path", "snaplen") if (value := getattr(found, key)) is not None}


def test_a_route_has_the_settings_of_the_plugin_or_its_own(tmp_path: Path) -> None:
    path = str(tmp_path / "a.pcapng")
    found = assembled(
        f'[server]\nhooks = ["pcap"]\n{SSH}hooks = [{{ name = "pcap", snaplen = 96 }}]\n'
        f'[plugins.pcap]\npath = "{path}"\n'
    )
    assert [settings(one) for one in found.hooks] == [{"path": path, "snaplen": 262_144}]
    (route,) = found.tcp
    assert [settings(one) for one in route.hooks] == [{"path": path, "snaplen": 96}]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SSH + 'hooks = ["pcp"]\n', "my.toml:4: protocols[0].hooks[0]: hook 'pcp' is not installed: "),
        (SSH + 'hooks = ["pcp"]\n', "hook 'pcp' is not installed: did you mean 'pcap'?"),
        (
            SSH + 'hooks = ["mirror"]\n',
            "'mirror' is not installed: install the plugin that provides this hook",
        ),
        (SSH + 'hooks = ["pcap"]\n', "protocols[0].hooks[0].path: packets have nowhere to go"),
        (SSH + "[plugins.pcap]\nsnaplen = 1\n", "my.toml:5: plugins.pcap.snaplen: expected int >= 64"),
        (SSH + "[plugins.pcap]\nsnaplen = true\n", "my.toml:5: plugins.pcap.snaplen: expected int, got bool"),
        (
            SSH + "[plugins.pcap]\nsnaplan = 96\n",
            "my.toml:5: plugins.pcap.snaplan: unknown key for plugin",
        ),
        (SSH + "[plugins.pcap]\nsnaplan = 96\n", "did you mean 'snaplen'?"),
        (
            SSH + 'hooks = [{ name = "pcap", listen = 1, snaplen = 1 }]\n',
            "my.toml:4: protocols[0].hooks[0].snaplen: expected int >= 64",
        ),
        (SSH + "hooks = [{ snaplen = 96 }]\n", "protocols[0].hooks[0]: no name: say which hook it is"),
        (SSH + 'hooks = "pcap"\n', "protocols[0].hooks: expected array"),
        (
            SSH + "[plugins.pcp]\nsnaplen = 96\n",
            "my.toml:4: plugins.pcp: no plugin has the id 'pcp': did you mean 'pcap'?",
        ),
        (SSH + "[plugins.ssh]\nkey = 1\n", "plugins.ssh: this plugin takes no settings"),
        (
            '[server]\nhooks = ["pcap"]\n' + SSH + '[plugins.pcap]\npath = "/nowhere/at/all.pcapng"\n',
            "my.toml:7: plugins.pcap.path: there is no folder /nowhere/at",
        ),
    ],
)
def test_each_mistake_of_a_hook_is_named_with_its_key_and_line(text: str, expected: str) -> None:
    found = problems(text)
    assert expected in "\n".join(found)
    assert len(found) == len(set(found))


def test_a_mistake_in_a_plugin_table_is_reported_once_for_all_its_routes() -> None:
    text = f'[server]\nhooks = ["pcap"]\n{SSH}hooks = ["pcap"]\n[plugins.pcap]\npath = "/nowhere/a.pcapng"\n'
    assert len(problems(text)) == 1


class Strict(Struct, frozen=True, forbid_unknown_fields=True):
    mode: str = ""

    def __post_init__(self) -> None:
        if self.mode == "made":
            raise SystemExit(3)


class HostileHook(PacketHook[Strict]):
    name = "hostile"
    settings_type = Strict

    @classmethod
    def needs_one_process(cls, settings: Strict) -> str:
        raise SystemExit(settings.mode)

    @classmethod
    def takes_stdout(cls, settings: Strict) -> bool:
        raise SystemExit(settings.mode)

    @classmethod
    def problems(cls, settings: Strict) -> list[tuple[str, str]]:
        if settings.mode == "raised":
            raise GeneratorExit
        return [("mode", "red \x1b[31m")] if settings.mode else []


@pytest.mark.parametrize(
    ("mode", "where", "message"),
    [
        ("made", "protocols[0].hooks[0]", "the plugin failed when it checked its settings: SystemExit: 3"),
        ("raised", "protocols[0].hooks[0]", "the plugin failed when it checked its settings: GeneratorExit"),
        ("returned", "protocols[0].hooks[0].mode", "red \\x1b[31m"),
    ],
)
def test_a_hook_that_fails_on_its_settings_is_a_problem_of_the_route(
    mode: str, where: str, message: str
) -> None:
    loaded = load_plugins()
    plugins = Plugins((), loaded.protocols, {}, {**loaded.given, "hostile": Given(hooks=(HostileHook,))})
    (problem,) = problems_of(f'{SSH}hooks = [{{ name = "hostile", mode = "{mode}" }}]\n', plugins)
    assert (problem.where, problem.message) == (where, message)


def test_a_hook_that_fails_on_the_question_of_workers_is_a_problem_of_the_workers() -> None:
    loaded = load_plugins()
    plugins = Plugins((), loaded.protocols, {}, {**loaded.given, "hostile": Given(hooks=(HostileHook,))})
    text = "[server]\nworkers = 2\n" + SSH + 'hooks = ["hostile"]\n'
    (problem,) = problems_of(text, plugins)
    assert problem.where == "server.workers"
    assert "its method needs_one_process raised SystemExit" in problem.message


def test_a_program_that_uses_a_hook_with_failing_settings_gets_an_error() -> None:
    ssh = load_plugins().protocols_named("ssh")[0]
    with pytest.raises(ConfigError, match="hook hostile: the plugin failed when it checked its settings"):
        Route(ssh, "127.0.0.1:22", hooks=[(HostileHook, Strict(mode="raised"))])


def test_the_table_of_a_plugin_that_did_not_load_is_left_alone() -> None:
    plugins = load_plugins(["pcap"])
    assert list(plugin_table_problems({"pcap": {"whatever": 1}}, plugins)) == []
    text = SSH + 'hooks = ["pcap"]\n'
    with pytest.raises(ConfigError, match="hook 'pcap' is not available"):
        assembled(text, plugins)


def test_check_shows_hooks(tmp_path: Path) -> None:
    path = tmp_path / "refractium.toml"
    path.write_text(f'{SSH}hooks = ["pcap"]\n[plugins.pcap]\npath = "{tmp_path}/a.pcapng"\n')
    done = run("check", "-c", path)
    assert (done.code, done.err) == (0, "")
    header, row, *_ = done.out.splitlines()
    assert (header.split()[-1], row.split()[-1]) == ("hooks", "pcap")
    (route,) = json.loads(run("check", "--json", "-c", path).out)["routes"]
    assert route["hooks"] == [{"name": "pcap", "path": f"{tmp_path}/a.pcapng", "snaplen": 262_144}]


def test_a_hook_that_fails_on_the_question_of_stdout_leaves_stdout_to_the_program(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert not takes_stdout(UsedHook(HostileHook, Strict()))
    assert "its method takes_stdout raised SystemExit" in caplog.text


class Incomparable(Struct, frozen=True, forbid_unknown_fields=True):
    def __eq__(self, other: object) -> bool:
        raise SystemExit(3)

    __hash__ = None  # type: ignore[assignment]


class IncomparableHook(PacketHook[Incomparable]):
    name = "incomparable"
    settings_type = Incomparable


def test_hooks_whose_settings_raise_when_they_are_compared_share_no_runner() -> None:
    hooks = HookSet()
    for _ in range(2):
        hooks.of_route([UsedHook(IncomparableHook, Incomparable())])
    assert len(hooks.in_use) == 2
    later = HookSet(hooks)
    later.of_route([UsedHook(IncomparableHook, Incomparable())])
    assert len(later.in_use) == 1
