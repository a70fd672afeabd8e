"""The helpers that plugins may use beside the contract."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import click
import msgspec
import pytest
from click.testing import CliRunner

from refractium import kit
from refractium.kit import ConfigError, OwnTable, config_option

if TYPE_CHECKING:
    from pathlib import Path


class Greeting(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of the plugin under test."""

    text: str = "Hello"
    times: Annotated[int, msgspec.Meta(ge=1)] = 1


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to an empty folder, without a configuration file."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def problems_of(text: str, folder: Path) -> list[str]:
    (folder / "refractium.toml").write_text(text)
    with pytest.raises(ConfigError) as raised:
        OwnTable.read("greeter", Greeting)
    return [str(problem) for problem in raised.value.problems]


def test_every_public_name_exists_and_is_in_the_overview() -> None:
    overview = str(kit.__doc__).partition("\n- ")[2]
    assert set(kit.__all__) <= set(re.findall(r"`(\w+)`", overview))
    for name in kit.__all__:
        assert getattr(kit, name) is vars(kit)[name]
    assert not hasattr(kit, "Refractium")


def test_the_table_of_a_plugin_becomes_its_settings(folder: Path) -> None:
    (folder / "refractium.toml").write_text('[plugins.greeter]\ntext = "Good day"\n')
    (folder / "other.toml").write_text("plugins.greeter.times = 2\n")
    assert OwnTable.read("greeter", Greeting).settings == Greeting("Good day")
    assert OwnTable.read("greeter", Greeting, folder / "other.toml").settings == Greeting(times=2)


def test_without_a_file_or_a_table_settings_have_their_defaults(folder: Path) -> None:
    assert OwnTable.read("greeter", Greeting).settings == Greeting()
    (folder / "refractium.toml").write_text("[plugins.other]\ntext = 5\n")
    assert OwnTable.read("greeter", Greeting).settings == Greeting()


def test_mistakes_in_other_tables_do_not_matter(folder: Path) -> None:
    elsewhere = '[server]\nprot = 80\n[plugins]\ndisable = 5\n[[protocols]]\nname = ""\n'
    (folder / "refractium.toml").write_text(f"{elsewhere}[plugins.greeter]\ntimes = 3\n")
    assert OwnTable.read("greeter", Greeting).settings.times == 3


def test_all_problems_of_the_table_are_reported_with_their_places(folder: Path) -> None:
    assert problems_of("[plugins.greeter]\n\ntimes = 0\ntxet = 1\n", folder) == [
        "refractium.toml:4: plugins.greeter.txet: unknown key for plugin 'greeter': did you mean 'text'?",
        "refractium.toml:3: plugins.greeter.times: expected int >= 1",
    ]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        pytest.param("[plugins.greeter\n", "refractium.toml:1: ", id="no TOML"),
        pytest.param("plugins = 3\n", "refractium.toml:1: plugins: ", id="no table of plugins"),
        pytest.param("\n[plugins]\ngreeter = 3\n", "refractium.toml:3: plugins.greeter: ", id="no table"),
    ],
)
def test_a_table_that_cannot_be_found_does_not_count_as_empty(text: str, place: str, folder: Path) -> None:
    [problem] = problems_of(text, folder)
    assert problem.startswith(place)


@pytest.mark.usefixtures("folder")
def test_a_file_given_by_name_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: no such file"):
        OwnTable.read("greeter", Greeting, tmp_path / "absent.toml")


def test_a_plugin_can_add_problems_with_their_places(folder: Path) -> None:
    (folder / "refractium.toml").write_text("# Ours\n[plugins.greeter]\n\ntimes = 3\n")
    own = OwnTable.read("greeter", Greeting)
    assert str(own.problem("is odd", "times")) == "refractium.toml:4: plugins.greeter.times: is odd"
    assert str(own.problem("is short", "text")) == "refractium.toml:2: plugins.greeter.text: is short"
    assert str(own.problem("is useless")) == "refractium.toml:2: plugins.greeter: is useless"


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        ("inner", "None"),
        ("-c a inner", "a"),
        ("inner -c b", "b"),
        ("--config a inner -c b", "b"),
        ("-c a group inner", "a"),
        ("-c a group inner --config b", "b"),
    ],
)
def test_the_option_for_the_file_works_before_and_after_the_command(arguments: str, given: str) -> None:
    @click.group()
    @config_option()
    def outer(config: object) -> None:
        del config

    @click.command("inner")
    @config_option("The file that says how.")
    def inner(config: object) -> None:
        click.echo(str(config))

    outer.add_command(inner)
    outer.add_command(click.Group("group", {"inner": inner}))
    assert CliRunner().invoke(outer, arguments.split()).output == f"{given}\n"
    assert "The file that says how." in CliRunner().invoke(outer, ["inner", "--help"]).output
