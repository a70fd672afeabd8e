"""Commands that plugins add."""

from __future__ import annotations

import json
import signal
from textwrap import dedent
from typing import TYPE_CHECKING, Final

import pytest

from refractium.cli.app import _COMMANDS
from refractium.plugins.loading import COMMANDS
from support.process import Finished, environment, run

if TYPE_CHECKING:
    from pathlib import Path

    from support.cli import Cli

HEAD: Final = """\
import sys
import click
from refractium.contract import hookimpl

@hookimpl
def refractium_commands():
    return [command]
"""
GREET: Final = """\
@click.command("greet")
@click.argument("who")
@click.option("--loud", is_flag=True)
@click.pass_context
def command(context, who, loud):
    \"\"\"Greet somebody.\"\"\"
    click.echo(f"Hello {who}{'!' if loud else ''}")
    click.echo(str(context.obj.given.get("config")))
"""


INTERRUPTED: Final = """\
import signal

@click.command("greet")
def command():
    sys.stdout.write("Hello")
    signal.raise_signal(signal.SIGINT)
"""
SETTLED: Final = """\
import msgspec
from refractium.kit import ConfigError, OwnTable, config_option, table

class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    greeting: str = "Hello"

@click.command("greet")
@config_option()
def command(config):
    \"\"\"Greet somebody.\"\"\"
    own = OwnTable.read("politeness", Settings, config)
    if not own.settings.greeting:
        raise ConfigError([own.problem("is empty", "greeting")])
    table(None, ("greeting", "file"), [(own.settings.greeting, str(config))])
"""


class Site:
    """A folder of plugins, which are installed only for processes that `run` starts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def add(self, name: str, code: str) -> None:
        info = self.folder / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nSummary: Here\n")
        (info / "entry_points.txt").write_text(f"[refractium]\n{name} = {name}\n")
        (self.folder / f"{name}.py").write_text(dedent(code))

    def run(self, *arguments: object) -> Finished:
        done = run(*arguments, cwd=self.folder, env=environment(PYTHONPATH=str(self.folder)))
        assert "Traceback" not in done.out + done.err
        return done

    def row(self, id_: str) -> dict[str, object]:
        done = self.run("plugins", "list", "--json")
        assert done.code == 0
        rows: list[dict[str, object]] = json.loads(done.out)
        return next(row for row in rows if row["id"] == id_)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "site")


def test_the_command_of_a_plugin_is_in_the_help_and_runs(site: Site) -> None:
    site.add("politeness", HEAD + GREET)
    listed = site.run("--help")
    assert listed.code == 0
    assert "Greet somebody." in listed.out
    assert "Serve TCP only." in listed.out
    assert site.run("-c", "some.toml", "greet", "--loud", "you") == (0, "Hello you!\nsome.toml\n", "")
    assert "WHO" in site.run("greet", "--help").out
    assert site.run("greet").code == 2
    assert (site.row("politeness")["kind"], site.row("politeness")["status"]) == ("command", "loaded")


def test_ctrl_c_in_the_command_of_a_plugin_ends_the_program_without_a_word(site: Site) -> None:
    site.add("politeness", HEAD + INTERRUPTED)
    assert site.run("greet") == (-signal.SIGINT, "Hello", "")


def test_a_command_reads_the_table_of_its_plugin(site: Site) -> None:
    site.add("politeness", HEAD + SETTLED)
    (site.folder / "kind.toml").write_text('[plugins.politeness]\ngreeting = "[b]\\u001b"\n')
    (site.folder / "rude.toml").write_text('[plugins.politeness]\ngreeting = ""\n')
    for arguments, rows in (
        ("greet", "Hello None"),
        ("-c kind.toml greet", r"[b]\x1b kind.toml"),
        ("-c rude.toml greet --config kind.toml", r"[b]\x1b kind.toml"),
    ):
        done = site.run(*arguments.split())
        assert (done.code, done.out.split()[2:], done.err) == (0, rows.split(), "")
    message = "error: rude.toml:2: plugins.politeness.greeting: is empty\n"
    assert site.run("greet", "-c", "rude.toml") == (2, "", message)


def test_plugins_info_shows_the_command_of_a_plugin(site: Site) -> None:
    site.add("politeness", HEAD + GREET)
    found = json.loads(site.run("plugins", "info", "politeness", "--json").out)
    assert found["commands"] == [{"command": "greet", "about": "Greet somebody."}]
    lines = [line.split() for line in site.run("plugins", "info", "politeness").out.splitlines()]
    assert ["command", "greet"] in lines


def test_built_in_commands_that_need_no_plugin_import_none(site: Site) -> None:
    site.add("eager", HEAD + "open('imported', 'w').close()\n" + GREET)
    imported = site.folder / "imported"
    for arguments in (["init"], ["schema"], ["--version"], ["init", "--help"]):
        assert site.run(*arguments).code == 0
        assert not imported.exists(), arguments
    assert site.run("greet", "you").code == 0
    assert imported.exists()


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("raise ImportError('the glass is cracked')", id="import"),
        pytest.param("print('not now'); 1 / 0", id="print", marks=pytest.mark.slow),
        pytest.param("import sys; sys.exit(3)", id="exit"),
        pytest.param(HEAD + "command = 'greet'", id="no command", marks=pytest.mark.slow),
        pytest.param(HEAD + "command = click.Command(None)", id="no name"),
        pytest.param(HEAD.replace("[command]", "1 / 0"), id="raises", marks=pytest.mark.slow),
        pytest.param(
            HEAD + "refractium_api_version = 99\ncommand = None", id="version", marks=pytest.mark.slow
        ),
    ],
)
def test_a_broken_plugin_does_not_affect_other_commands(site: Site, code: str) -> None:
    site.add("cracked", code)
    site.add("politeness", HEAD + GREET)
    assert site.row("cracked")["status"] in {"failed", "incompatible"}
    listed = site.run("--help")
    assert listed.code == 0
    assert "Greet somebody." in listed.out
    assert site.run("greet", "you").out.startswith("Hello you\n")
    unknown = site.run("depart")
    assert unknown.code == 2
    assert "No such command 'depart'" in unknown.err
    assert site.run("check", "-f", "http=127.0.0.1:9000").code == 0


@pytest.mark.parametrize("name", ["tcp", "status"])
def test_no_plugin_can_take_the_name_of_a_built_in_command(site: Site, name: str) -> None:
    site.add("usurper", HEAD + GREET.replace('"greet"', f'"{name}"'))
    row = site.row("usurper")
    assert row["status"] == "failed"
    assert row["error"] == f"ValueError: gives command {name!r}, which is built in: give it another name"
    shown = site.run(name, "--help")
    assert shown.code == 0
    assert "WHO" not in shown.out


def test_the_reserved_names_are_those_of_the_built_in_commands() -> None:
    assert tuple(_COMMANDS) == COMMANDS


def test_a_command_that_two_plugins_add_is_not_available(site: Site) -> None:
    site.add("politeness", HEAD + GREET)
    site.add("manners", HEAD + GREET)
    assert site.run("greet", "you").code == 2
    for id_ in ("politeness", "manners"):
        assert "give command 'greet'" in str(site.row(id_)["error"])


def test_the_command_of_a_disabled_plugin_is_not_there(site: Site) -> None:
    site.add("politeness", HEAD + GREET)
    by_flag = site.run("--disable-plugin", "politeness", "greet", "you")
    (site.folder / "refractium.toml").write_text('[plugins]\ndisable = ["politeness"]\n')
    by_file = site.run("greet", "you")
    for done in (by_flag, by_file):
        assert done.code == 2
        assert "No such command 'greet'" in done.err


def test_a_file_that_cannot_be_read_does_not_hide_commands(site: Site) -> None:
    site.add("politeness", HEAD + GREET)
    (site.folder / "refractium.toml").write_text("[server\n")
    assert site.run("greet", "you").code == 0


def test_an_exception_of_a_command_is_one_message(site: Site) -> None:
    site.add("hasty", HEAD + GREET.replace("    click.echo(f", "    raise KeyError('x')\n    click.echo(f"))
    done = site.run("greet", "you")
    assert (done.code, done.out) == (1, "")
    assert done.err == "error: internal error: KeyError: 'x'; --debug shows the traceback\n"


def test_plugins_info_shows_hooks_with_the_keys_of_their_settings(cli: Cli) -> None:
    found = json.loads(cli("plugins", "info", "pcap", "--json").out)
    [hook] = found["hooks"]
    assert (hook["hook"], hook["isolation"]) == ("pcap", "process")
    assert {"path", "listen", "snaplen"} <= set(hook["settings"])
    assert [one["command"] for one in found["commands"]] == ["capture"]
    text = cli("plugins", "info", "pcap").out
    assert "path, format, snaplen" in text
