"""The list of known plugins is complete for this repository, and each of its entries is valid."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

import pytest

from docs.reference import KNOWN_PLUGINS
from refractium.plugins.loading import load_plugins
from refractium.scaffold import KINDS

if TYPE_CHECKING:
    from collections.abc import Mapping

PLUGINS: list[Mapping[str, Any]] = tomllib.loads(KNOWN_PLUGINS.read_text("utf-8"))["plugins"]


def test_every_plugin_of_this_repository_is_known() -> None:
    ours = {(one.id, one.kind, one.distribution) for one in load_plugins().entries}
    assert ours == {(one["id"], one["kind"], one["distribution"]) for one in PLUGINS if "url" not in one}


def test_the_entries_are_in_the_order_of_their_unique_ids() -> None:
    ids = [one["id"] for one in PLUGINS]
    assert ids == sorted(set(ids))


@pytest.mark.parametrize("entry", PLUGINS, ids=lambda entry: entry["id"])
def test_an_entry_has_the_keys_of_the_list_and_fits_into_a_row(entry: Mapping[str, Any]) -> None:
    assert entry.keys() - {"url"} == {"id", "kind", "distribution", "summary"}
    assert entry["kind"] in KINDS
    assert entry.get("url", "https://").startswith("https://")
    assert not {"\n", "|"} & set(entry["summary"])
