"""One running proxy with one configuration file, and real servers behind its one port."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
import trustme

from integration.openssh import begin_sshd
from integration.stage import (
    BROWSERS,
    CONFIGURATION,
    FtpBackend,
    Stage,
    answering,
    over_tls,
    recording,
    resolving,
)
from support.backends import Backend, named
from support.ipv6 import ANY_ADDRESS
from support.process import serving

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="package")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("stage")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    with ExitStack() as stack:
        sshd = begin_sshd(folder)
        ftp = stack.enter_context(FtpBackend(folder / "files"))
        backends = {
            "web": Backend(answering("web")),
            "unix": Backend(answering("unix"), path=folder / "web.sock"),
            "one": Backend(over_tls(authority, "one.example")),
            "two": Backend(over_tls(authority, "two.example", "*.wild.example")),
            **{browser: Backend(recording(browser)) for browser in BROWSERS},
            "dns": Backend(resolving),
            "ssh": Backend(sshd.serve if sshd is not None else named("no OpenSSH server here")),
            "my_app": Backend(named("my_app ")),
            "fallback": Backend(recording("fallback")),
        }
        addresses = {name: stack.enter_context(one).address for name, one in backends.items()}
        path = folder / "refractium.toml"
        path.write_text(CONFIGURATION.format(any_address=ANY_ADDRESS, ftp=ftp.address, **addresses))
        proxy = stack.enter_context(serving("-c", path))
        yield Stage(proxy, folder / "authority.pem", sshd)
        assert proxy.terminate() == 0
        assert "Traceback" not in proxy.err
        assert " error " not in proxy.err
