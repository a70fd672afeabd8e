"""The plugin to which a module belongs."""

from __future__ import annotations

from refractium.guard.origins import add_module, plugin_of


def test_the_plugin_of_a_module_is_found_by_the_module_or_its_packages() -> None:
    add_module("house.first.plugin", "plugin 'first'")
    add_module("house.second", "plugin 'second'")
    assert plugin_of("house.first.plugin") == plugin_of("house.first.plugin.part") == "plugin 'first'"
    assert plugin_of("house.second") == "plugin 'second'"
    assert plugin_of("house.first.other") == "plugin 'first'"  # the first plugin of the package
    assert plugin_of("household") == plugin_of("") == ""


def test_a_module_belongs_to_its_plugin_even_if_it_had_none_before() -> None:
    assert plugin_of("cabin.module") == ""
    add_module("cabin", "plugin 'cabin'")
    assert plugin_of("cabin.module") == "plugin 'cabin'"
