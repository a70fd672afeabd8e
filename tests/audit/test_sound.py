"""No rule finds anything in the installed plugins of the project, in new plugins and in the examples."""

from __future__ import annotations

from pathlib import Path

import pytest
from importlib_metadata import entry_points

from refractium.audit import audit
from refractium.contract import ENTRY_POINT_GROUP
from refractium.scaffold import KINDS, write_package

ROOT = Path(__file__).parents[2]
INSTALLED = sorted({one.name for one in entry_points(group=ENTRY_POINT_GROUP)})
EXAMPLES = sorted(
    file.parent
    for where in ("docs/examples", "tests/data")
    for file in ROOT.glob(f"{where}/*/pyproject.toml")
)
OURS = {"http", "https", "ssh", "dns", "ftp", "pcap"}


def assert_sound(what: str) -> None:
    found = audit(what)
    assert [(one.rule.code, one.subject, one.found) for one in found.findings] == []
    (facts,) = found.facts.values()
    assert facts["objects"]
    assert facts["import"]["ms"] > 0


@pytest.mark.parametrize("id_", INSTALLED)
def test_an_installed_plugin_breaks_no_rule(id_: str) -> None:
    assert_sound(id_)


def test_the_plugins_of_the_project_are_installed() -> None:
    assert set(INSTALLED) >= OURS


@pytest.mark.parametrize("id_", ["mine", "my_thing-2"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_new_plugin_breaks_no_rule(kind: str, id_: str, tmp_path: Path) -> None:
    assert_sound(str(write_package(KINDS[kind], id_, tmp_path)))


@pytest.mark.parametrize("folder", EXAMPLES, ids=lambda folder: folder.name)
def test_an_example_breaks_no_rule(folder: Path) -> None:
    assert_sound(str(folder))
