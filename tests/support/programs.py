"""Programs that the test suite runs but does not install."""

from __future__ import annotations

import os
import shutil
from typing import Final

import pytest

_PACKAGES: Final = {
    "dig": "bind9-dnsutils",
    "dnsmasq": "dnsmasq-base",
    "ssh": "openssh-client",
    "ip": "iproute2",
    "sshd": "openssh-server",
    "systemd-analyze": "systemd",
    "nginx": "nginx-light",
    "redis-cli": "redis-tools",
    "capinfos": "wireshark-common",
    "mergecap": "wireshark-common",
}
"""The names of Debian packages, for programs whose package has another name."""


def require_program(name: str) -> str:
    """Return the path of a program; if it is missing, skip the test, or fail in CI."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if path is None:
        reason = f"needs {name} (Debian package {_PACKAGES.get(name, name)})"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return path
