"""A plugin that is upgraded while the program runs."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from support.backends import Backend, echo
from support.clients import ask
from support.plugins import install, with_plugins
from support.process import run, serving
from support.status import status_of

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = """
    from refractium.contract import *

    @define_protocol("grown", max_bytes=1)
    def grown(data):
        return ProtocolMatch() if data[:1] == b"%s" else NO

    @hookimpl
    def refractium_protocols():
        return [grown]
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_reload_after_an_upgrade_says_that_the_former_code_still_runs(tmp_path: Path, workers: int) -> None:
    site = tmp_path / "site"
    install(site, "grown", SOURCE % "a")
    with Backend(echo) as backend:
        (tmp_path / "refractium.toml").write_text(
            f'[server]\nbind = "127.0.0.1"\nport = 0\nworkers = {workers}\nhot_reload = false\n'
            f'[[protocols]]\nname = "grown"\nforward_to = "{backend.address}"\n'
        )
        with serving("--log-format", "plain", cwd=tmp_path, env=with_plugins(site)) as program:
            (plugin,) = [one for one in status_of(program).plugins if one.id == "grown"]
            assert plugin.distribution == "refractium-proto-grown"
            assert (plugin.version, plugin.installed) == ("1.0", "1.0")
            assert plugin.provides == ("protocol grown",)
            program.signal(signal.SIGHUP)
            program.await_err("configuration 2 is in force")
            assert "still runs" not in program.err
            install(site, "grown", SOURCE % "b", version="1.1")
            program.signal(signal.SIGHUP)
            program.await_err(
                "warning plugin grown: plugin 'grown' of refractium-proto-grown 1.0 still runs, "
                "although 1.1 is installed: restart Refractium"
            )
            program.await_err("configuration 3 is in force")
            (plugin,) = [one for one in status_of(program).plugins if one.id == "grown"]
            assert (plugin.version, plugin.installed) == ("1.0", "1.1")
            assert ask(program.address, b"a").data == b"a"
            shown = run("status", "-p", program.port, cwd=tmp_path).out
            assert "needed for 1.1" in shown
            assert program.terminate() == 0
        with serving("--log-format", "plain", cwd=tmp_path, env=with_plugins(site)) as program:
            assert ask(program.address, b"b").data == b"b"
            assert "still runs" not in program.err
            assert program.terminate() == 0


@pytest.mark.parametrize(
    ("arguments", "file", "said"),
    [
        (("--disable-plugin", "sssh"), "", "no plugin has the id 'sssh': did you mean 'ssh'?"),
        ((), '[plugins]\ndisable = ["htttp"]\n', "no plugin has the id 'htttp': did you mean 'http'?"),
        ((), '[plugins]\ndisable = ["zzz"]\n', "no plugin has the id 'zzz'; installed: "),
    ],
)
def test_an_unknown_id_of_a_plugin_to_disable_is_an_error(
    tmp_path: Path, arguments: tuple[str, ...], file: str, said: str
) -> None:
    route = '[[protocols]]\nname = "ftp"\nforward_to = "127.0.0.1:9"\n'
    (tmp_path / "refractium.toml").write_text(route + file)
    done = run("check", *arguments, cwd=tmp_path)
    assert done.code == 2
    assert said in done.err
