"""Plugins that are good, broken or in conflict with another; each test makes its own distributions."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING

import pytest
from importlib_metadata import distributions

from refractium.contract import API_VERSION, NO, Identification, define_protocol
from refractium.identify import Candidate, DispatchTable
from refractium.plugins.installed import InstalledPlugin, Plugins
from refractium.plugins.loading import DISABLE_VARIABLE, fields_of, load_plugins

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HEAD = "from refractium.contract import *\n"


def protocol(name: str, transport: str = "tcp", aliases: tuple[str, ...] = ()) -> str:
    """Return the source of one protocol."""
    arguments = f"{name!r}, max_bytes=1, transport={transport!r}, aliases={aliases!r}"
    return f"define_protocol({arguments})(lambda data: NO)"


def giving(*protocols: str) -> str:
    """Return the source of a plugin that provides these protocols."""
    return HEAD + f"@hookimpl\ndef refractium_protocols():\n    return [{', '.join(protocols)}]\n"


class Site:
    """Folders of fake distributions. While plugins are loaded, only these distributions are found."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        self._monkeypatch = monkeypatch
        self.folders: list[str] = []
        self.modules: list[str] = []

    def install(self, distribution: str, id_: str, source: str, *, metadata: str | None = None) -> None:
        """Write a module and its metadata as pip would, in a separate folder, so that the order can vary."""
        folder = self._folder / distribution
        module = f"fake_{distribution.replace('-', '_')}"
        info = folder / f"{module}-1.0.dist-info"
        info.mkdir(parents=True)
        if metadata is None:
            metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\nSummary: About {id_}\n"
        (info / "METADATA").write_text(metadata)
        (info / "entry_points.txt").write_text(f"[refractium]\n{id_} = {module}\n")
        (folder / f"{module}.py").write_text(dedent(source))
        self.folders.append(str(folder))
        self.modules.append(module)

    def load(self, *disabled: str) -> Plugins:
        with self._monkeypatch.context() as patch:
            others = [path for path in sys.path if not any(Path(path).glob("refractium_*.dist-info"))]
            patch.setattr(sys, "path", self.folders + others)
            self.forget()
            return load_plugins(disabled)

    def load_one(self, *disabled: str) -> InstalledPlugin:
        (plugin,) = self.load(*disabled).entries
        return plugin

    def forget(self) -> None:
        """Forget imported modules, so that the next import runs the module again."""
        importlib.invalidate_caches()
        for module in self.modules:
            sys.modules.pop(module, None)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.delenv(DISABLE_VARIABLE, raising=False)
    site = Site(tmp_path, monkeypatch)
    yield site
    site.forget()


@pytest.fixture(params=["one order", "the other order"])
def in_both_orders(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "the other order")


def test_a_good_plugin_is_loaded_and_described(site: Site) -> None:
    site.install("proto-a", "a", giving(protocol("a", "udp"), protocol("a", "tcp")))
    plugins = site.load()
    assert [plugin.as_dict() for plugin in plugins.entries] == [
        {
            "id": "a",
            "kind": "protocol",
            "transports": ("tcp", "udp"),
            "distribution": "proto-a",
            "version": "1.0",
            "status": "loaded",
            "error": None,
            "summary": "About a",
        }
    ]
    assert [str(one.transport) for one in plugins.protocols_named("a")] == ["tcp", "udp"]
    assert plugins.protocols_named("b") == ()


def test_a_plugin_as_dict_is_json_with_its_keys_in_the_documented_order(site: Site) -> None:
    site.install("proto-a", "a", giving(protocol("a")))
    assert json.dumps(site.load_one().as_dict()) == (
        '{"id": "a", "kind": "protocol", "transports": ["tcp"], "distribution": "proto-a", '
        '"version": "1.0", "status": "loaded", "error": null, "summary": "About a"}'
    )


def test_an_entry_point_may_name_an_object(site: Site, tmp_path: Path) -> None:
    source = (
        HEAD
        + f"""
class Plugin:
    @hookimpl
    def refractium_protocols(self):
        return [{protocol("a")}]

plugin = Plugin()
"""
    )
    site.install("proto-a", "a", source)
    (entry_points,) = tmp_path.rglob("entry_points.txt")
    entry_points.write_text(entry_points.read_text().strip() + ":plugin\n")
    assert site.load_one().status == "loaded"


@pytest.mark.parametrize("value", ["", "not a module!", "a:b:c", "plugin_a:"])
def test_a_malformed_entry_point_is_a_plugin_that_failed(site: Site, tmp_path: Path, value: str) -> None:
    site.install("proto-a", "a", giving(protocol("a")))
    site.install("proto-b", "b", giving(protocol("b")))
    (entry_points,) = (one for one in tmp_path.rglob("entry_points.txt") if "a = " in one.read_text())
    entry_points.write_text(f"[refractium]\na = {value}\n")
    failed, loaded = site.load().entries
    assert (failed.id, failed.status) == ("a", "failed")
    assert failed.error
    assert (loaded.id, loaded.status) == ("b", "loaded")


def test_the_order_of_discovery_does_not_matter(site: Site, *, in_both_orders: bool) -> None:
    for name in ("b", "c", "a"):
        site.install(f"proto-{name}", name, giving(protocol(f"z{name}")))
    if in_both_orders:
        site.folders.reverse()
    plugins = site.load()
    assert [plugin.id for plugin in plugins.entries] == ["a", "b", "c"]
    assert [one.name for one in plugins.protocols] == ["za", "zb", "zc"]


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("raise ValueError('no such\\ncodec')", "ValueError: no such codec"),
        ("import sys\nsys.exit(3)", "SystemExit: 3"),
        ("raise SystemExit", "SystemExit"),
        ("import not_there_at_all", "ModuleNotFoundError: No module named 'not_there_at_all'"),
        ("def (", "SyntaxError: invalid syntax"),
        ("import asyncio\nraise asyncio.TimeoutError", "TimeoutError"),
        ("class E(Exception):\n    def __str__(self):\n        1 / 0\nraise E", "str() failed"),
    ],
)
def test_a_plugin_that_fails_to_import_is_an_entry_and_affects_no_other(
    site: Site, source: str, error: str
) -> None:
    site.install("proto-a", "a", giving(protocol("a")))
    site.install("proto-b", "b", source)
    good, bad = site.load().entries
    assert good.status == "loaded"
    assert (bad.status, bad.kind, bad.transports) == ("failed", "unknown", ())
    assert (bad.distribution, bad.version) == ("proto-b", "1.0")
    assert bad.error is not None
    assert error in bad.error
    assert "\n" not in bad.error


def test_a_syntax_error_is_reported_with_its_place(site: Site) -> None:
    site.install("proto-a", "a", "x = 1\ny = (")
    assert 'fake_proto_a.py", line 2' in str(site.load_one().error)


def test_ctrl_c_while_a_plugin_is_imported_stops_the_program(site: Site) -> None:
    site.install("proto-a", "a", "import signal\nsignal.raise_signal(signal.SIGINT)")
    with pytest.raises(KeyboardInterrupt):
        site.load()


def test_a_warning_at_import_does_not_break_a_plugin(site: Site) -> None:
    warning = "import warnings\nwarnings.warn('old', DeprecationWarning)\nescape = '\\d'\n"
    site.install("proto-a", "a", warning + giving(protocol("a")))
    assert site.load_one().status == "loaded"


def test_prints_of_a_plugin_stay_out_of_standard_output(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.install("proto-a", "a", "print('hello')\n" + giving(protocol("a")))
    assert site.load_one().status == "loaded"
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "hello\n")


@pytest.mark.parametrize("version", [API_VERSION + 1, 0, "1", None])
def test_a_plugin_for_another_api_version_is_incompatible(site: Site, version: object) -> None:
    site.install("proto-a", "a", f"refractium_api_version = {version!r}\n" + giving(protocol("a")))
    plugins = site.load()
    (plugin,) = plugins.entries
    assert plugin.status == "incompatible"
    written = f'"{version}"' if isinstance(version, str) else version
    assert plugin.error == f"written for version {written} of the plugin contract, not for {API_VERSION}"
    assert plugins.protocols == ()
    assert "proto-a 1.0 (incompatible): written for" in plugins.explain_missing("a")


def test_a_plugin_may_state_the_right_api_version(site: Site) -> None:
    site.install("proto-a", "a", f"refractium_api_version = {API_VERSION}\n" + giving(protocol("a")))
    assert site.load_one().status == "loaded"


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("@hookimpl\ndef refractium_protocol(): ...", "unknown hook 'refractium_protocol'"),
        ("@hookimpl\ndef refractium_protocols(nonsense): ...", "nonsense"),
        ("def refractium_protocols(): return []", "no @hookimpl function refractium_protocols()"),
    ],
)
def test_a_hookimpl_that_is_not_in_the_contract_fails_its_plugin(site: Site, source: str, error: str) -> None:
    site.install("proto-a", "a", HEAD + source)
    plugin = site.load_one()
    assert plugin.status == "failed"
    assert error in str(plugin.error)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("return None", "or it returns None"),
        ("return 42", "TypeError: 'int' object is not iterable"),
        ("return 'ssh'", 'TypeError: "s" is not a Protocol'),
        ("return [Protocol]", "is not a Protocol"),
        ("yield 1 / 0", "ZeroDivisionError: division by zero"),
        ("raise OSError('no table')", "OSError: no table"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("return [define_protocol('A', max_bytes=1)(len)]", 'ValueError: name "A": '),
        ("return [Bad()]", "bad: max_bytes is 0, not an int between 1 and"),
        (f"return [{protocol('a')}, {protocol('a')}]", "ValueError: gives protocol 'a' twice"),
    ],
)
def test_a_hookimpl_that_raises_or_returns_an_invalid_value_fails_its_plugin(
    site: Site, body: str, error: str
) -> None:
    bad = (
        "class Bad(Protocol):\n    name = 'bad'\n    max_bytes = 0\n"
        "    def identify(self, data):\n        return NO\n"
    )
    site.install("proto-a", "a", f"{HEAD}{bad}@hookimpl\ndef refractium_protocols():\n    {body}\n")
    plugins = site.load()
    (plugin,) = plugins.entries
    assert (plugin.status, plugin.kind, plugins.protocols) == ("failed", "protocol", ())
    assert error in str(plugin.error)


def test_of_two_distributions_with_the_same_id_neither_is_imported(
    site: Site, *, in_both_orders: bool
) -> None:
    site.install("proto-one", "a", giving(protocol("a")))
    site.install("proto-two", "a", giving(protocol("a")))
    site.install("proto-b", "b", giving(protocol("b")))
    if in_both_orders:
        site.folders.reverse()
    plugins = site.load()
    assert [(one.id, one.distribution, one.status) for one in plugins.entries] == [
        ("a", "proto-one", "failed"),
        ("a", "proto-two", "failed"),
        ("b", "proto-b", "loaded"),
    ]
    error = "proto-one 1.0 and proto-two 1.0 claim the id 'a': remove all but one"
    assert {one.error for one in plugins.entries} == {error, None}
    assert error in plugins.explain_missing("a")
    assert not {"fake_proto_one", "fake_proto_two"} & set(sys.modules)


def test_of_two_plugins_with_the_same_protocol_neither_is_loaded(site: Site, *, in_both_orders: bool) -> None:
    site.install("proto-one", "one", giving(protocol("a"), protocol("b")))
    site.install("proto-two", "two", giving(protocol("a")))
    site.install("proto-udp", "udp", giving(protocol("b", "udp")))
    if in_both_orders:
        site.folders.reverse()
    plugins = site.load()
    assert [(one.id, one.kind, one.status) for one in plugins.entries] == [
        ("one", "protocol", "failed"),
        ("two", "protocol", "failed"),
        ("udp", "protocol", "loaded"),
    ]
    error = (
        "plugin 'one' of proto-one 1.0 and plugin 'two' of proto-two 1.0 give protocol 'a': "
        "uninstall or disable all but one"
    )
    assert [one.error for one in plugins.entries] == [error, error, None]
    assert error in plugins.explain_missing("a")
    assert error in plugins.explain_missing("b")
    assert [str(one.transport) for one in plugins.protocols] == ["udp"]


def test_of_two_plugins_with_the_same_protocol_one_loads_if_the_other_is_disabled(site: Site) -> None:
    site.install("proto-one", "one", giving(protocol("a")))
    site.install("proto-two", "two", giving(protocol("a")))
    assert [(one.id, one.status) for one in site.load("two").entries] == [
        ("one", "loaded"),
        ("two", "blocked"),
    ]


def test_a_disabled_plugin_is_not_imported(site: Site) -> None:
    site.install("proto-a", "a", giving(protocol("a")))
    plugins = site.load("a")
    (plugin,) = plugins.entries
    assert (plugin.status, plugin.kind, plugin.summary) == ("blocked", "unknown", "About a")
    assert "fake_proto_a" not in sys.modules
    assert plugins.explain_missing("a") == (
        "protocol 'a' is not available: plugin 'a' of proto-a 1.0 (blocked): "
        "disabled by --disable-plugin or by disable under [plugins]"
    )
    assert site.load_one().status == "loaded"
    assert "fake_proto_a" in sys.modules


def test_the_environment_disables_plugins_before_they_are_imported(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        site.install(f"proto-{name}", name, giving(protocol(name)))
    monkeypatch.setenv(DISABLE_VARIABLE, "a, c,,unheard-of")
    plugins = site.load()
    assert [one.status for one in plugins.entries] == ["blocked", "loaded", "blocked"]
    assert not {"fake_proto_a", "fake_proto_c"} & set(sys.modules)
    assert plugins.explain_missing("c").endswith("(blocked): disabled by REFRACTIUM_DISABLE_PLUGINS")


@pytest.mark.parametrize("metadata", ["", "Name: only-a-name\n"])
def test_a_plugin_with_broken_metadata_still_has_its_row(site: Site, metadata: str) -> None:
    site.install("proto-a", "a", giving(protocol("a")), metadata=metadata)
    plugin = site.load_one()
    assert (plugin.status, plugin.version, plugin.summary) == ("loaded", "unknown", "")


def test_a_failed_plugin_is_named_with_distribution_version_and_cause(site: Site) -> None:
    site.install("proto-a", "a", "raise ValueError('boom')")
    assert site.load().explain_missing("a") == (
        "protocol 'a' is not available: plugin 'a' of proto-a 1.0 (failed): ValueError: boom"
    )


@pytest.mark.parametrize("name", ["KNOK", "tls", "knock-2; rm -rf", "refractium", "htttp", "core", "all"])
def test_the_error_for_a_protocol_or_hook_names_no_package_that_is_made_of_the_name(
    site: Site, name: str
) -> None:
    site.install("proto-knock", "knock", giving(protocol("knock")))
    plugins = site.load()
    for text in (plugins.explain_missing(name), plugins.explain_missing_hook(name)):
        assert f"'{name}' is not installed: " in text
        assert "pip install" not in text


def test_the_error_for_a_misspelt_protocol_suggests_the_loaded_one(site: Site) -> None:
    site.install("proto-knock", "knock", giving(protocol("knock"), protocol("sshd")))
    plugins = site.load()
    assert plugins.explain_missing("KNOK") == "protocol 'KNOK' is not installed: did you mean 'knock'?"
    assert plugins.explain_missing("ssh") == (
        "protocol 'ssh' is not installed: did you mean 'sshd'? if not: pip install refractium-proto-ssh"
    )


def test_the_error_for_an_alias_suggests_the_protocol_that_declares_it(site: Site) -> None:
    site.install("proto-knock", "knock", giving(protocol("knock", aliases=("rap", "knocker"))))
    site.install("proto-rat", "rat", giving(protocol("rat"), protocol("knocker")))
    plugins = site.load()
    for name in ("rap", "RAP"):
        assert plugins.explain_missing(name) == f"protocol '{name}' is not installed: did you mean 'knock'?"
    # A route cannot use an alias, and the error suggests nothing for a word that resembles an alias.
    assert plugins.protocols_named("rap") == ()
    assert "'knock'" not in plugins.explain_missing("rapp")
    assert [one.name for one in plugins.protocols_named("knocker")] == ["knocker"]


@pytest.mark.parametrize(
    ("distribution", "explain"),
    [
        *(
            (f"refractium-proto-{name}", Plugins.explain_missing)
            for name in ("http", "https", "ssh", "dns", "ftp")
        ),
        ("refractium-hooks-pcap", Plugins.explain_missing_hook),
    ],
)
def test_the_error_for_a_plugin_of_the_project_names_its_distribution(
    site: Site, distribution: str, explain: Callable[[Plugins, str], str]
) -> None:
    name = distribution.rpartition("-")[2]
    assert f"'{name}' is not installed: pip install {distribution}" in explain(site.load(), name)


@pytest.mark.parametrize(
    ("alias", "name"),
    [("tls", "https"), ("ssl", "https"), ("SSL", "https"), ("www", "http"), ("h2c", "http"), ("sftp", "ssh")],
)
def test_common_names_of_protocols_lead_to_suggestions(alias: str, name: str) -> None:
    assert load_plugins().explain_missing(alias) == (
        f"protocol '{alias}' is not installed: did you mean '{name}'?"
    )


def test_with_nothing_installed_the_error_says_how_to_install_protocols(site: Site) -> None:
    plugins = site.load()
    assert plugins == Plugins((), ())
    assert plugins.explain_missing("gopher") == (
        "protocol 'gopher' is not installed: install the plugin that provides this protocol "
        "(no protocol is installed; for all of them: pip install 'refractium-protocols[all]')"
    )


def test_the_cause_of_a_failed_plugin_is_logged_with_its_traceback(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.install("proto-a", "a", "raise ValueError('boom')")
    with caplog.at_level("DEBUG", logger="refractium.plugins.loading"):
        site.load()
    assert "plugin 'a' of proto-a 1.0 failed" in caplog.text
    assert "fake_proto_a.py" in caplog.text


@pytest.mark.parametrize(
    "error", ["SystemExit(3)", "KeyboardInterrupt()", "GeneratorExit()", "BaseException('x')"]
)
@pytest.mark.parametrize("where", ["import", "function"])
def test_a_plugin_that_raises_any_exception_fails_alone(site: Site, error: str, where: str) -> None:
    raising = f"raise {error}"
    if where == "function":
        raising = HEAD + f"@hookimpl\ndef refractium_protocols():\n    {raising}\n"
    site.install("proto-a", "a", raising)
    site.install("proto-b", "b", giving(protocol("b")))
    broken, good = site.load().entries
    assert (broken.status, good.status) == ("failed", "loaded")
    assert error.partition("(")[0] in str(broken.error)


def test_the_error_of_a_plugin_has_escapes_for_control_characters(site: Site) -> None:
    site.install("proto-a", "a", r"raise BaseException('red \x1b[31m')")
    assert site.load_one().error == r"BaseException: red \x1b[31m"


@pytest.mark.parametrize("id_", ["A", "a b", "1a", "a\x1b[31m", "x" * 65])
def test_an_id_that_is_not_a_valid_name_fails_its_plugin(site: Site, id_: str) -> None:
    site.install("proto-a", id_, giving(protocol("a")))
    plugin = site.load_one()
    assert plugin.status == "failed"
    assert "a name is up to 64 lower-case letters" in str(plugin.error)


CLASSES = {
    "P(Protocol)": "name, max_bytes = 'x', 1",
    "C(HealthCheck)": "name, settings = 'x', NoSettings",
    "B(Balancer)": "name = 'x'",
}


@pytest.mark.parametrize("name", ["any", "fallback"])
def test_no_plugin_may_replace_a_built_in_protocol(site: Site, name: str) -> None:
    site.install("proto-a", "a", giving(protocol(name)))
    assert f"gives protocol '{name}', which is built in" in str(site.load_one().error)
    assert [one.name for one in site.load().protocols_named("any")] == ["any", "any"]


@pytest.mark.parametrize(
    ("base", "function", "given", "error"),
    [
        (
            "P(Protocol)",
            "async def identify(self, data): ...",
            "protocols(): return [P()]",
            "identify is async",
        ),
        ("C(HealthCheck)", "def check(self, *_): ...", "health_checks(): return [C()]", "check is not async"),
        ("B(Balancer)", "async def order(self, *_): ...", "balancers(): return [B]", "order is async"),
    ],
)
def test_an_async_function_in_the_wrong_place_is_refused_at_load(
    site: Site, base: str, function: str, given: str, error: str
) -> None:
    body = f"class {base}:\n    {CLASSES[base]}\n    {function}\n"
    site.install("proto-a", "a", HEAD + body + f"@hookimpl\ndef refractium_{given}\n")
    assert f"x: {error}" in str(site.load_one().error)


def test_define_protocol_refuses_an_async_function() -> None:
    async def identify(_: bytes) -> Identification:
        return NO

    with pytest.raises(ValueError, match="identify is async"):
        define_protocol("x", max_bytes=1)(identify)  # type: ignore[arg-type]


def test_the_log_names_the_plugin_of_a_faulty_protocol(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    source = HEAD + (
        "@define_protocol('p', max_bytes=1)\ndef p(data): raise ValueError('red \\x1b[31m')\n"
        "@hookimpl\ndef refractium_protocols(): return [p]\n"
    )
    site.install("proto-a", "a", source)
    (found,) = site.load().protocols
    table = DispatchTable([Candidate(found, lambda _: "p")], 1024)
    table.decide(b"x")
    (message,) = caplog.messages
    assert message.startswith("protocol p (plugin 'a' of proto-a 1.0) failed: ValueError: red \\x1b[31m; ")


def test_the_fields_of_a_distribution_equal_its_metadata() -> None:
    found = [one for one in distributions() if one.metadata["Version"]]
    assert len(found) > 50
    for distribution in found:
        fields = fields_of(distribution)  # type: ignore[arg-type]
        for name in "Name", "Version", "Summary":
            assert fields.get(name.lower(), "") == (distribution.metadata.get(name) or "").strip()


def test_a_field_ends_at_the_end_of_its_line_only(site: Site) -> None:
    metadata = "Metadata-Version: 2.1\nName: fake-a\nVersion: 1.0\nSummary: One\u2028Two\n\nName: other\n"
    site.install("fake-a", "a", giving(protocol("a")), metadata=metadata)
    (plugin,) = site.load().entries
    assert (plugin.distribution, plugin.version, plugin.summary) == ("fake-a", "1.0", "One\u2028Two")
