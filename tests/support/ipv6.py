"""Addresses for tests with IPv6, which some machines do not have: most containers have no ::1."""

from __future__ import annotations

import os
import socket
from typing import Final

ADDRESSES: Final = ("::1", "::")


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind((ADDRESSES[0], 0))
    except OSError:
        return False
    return True


HAS_IPV6: Final = os.environ.get("CI") == "true" or _has_ipv6()
"""Whether tests use IPv6. In CI they always do, and fail if the machine has no IPv6."""

LOOPBACKS: Final = ("127.0.0.1", "::1") if HAS_IPV6 else ("127.0.0.1",)
"""The loopback addresses of this machine: IPv4, and IPv6 if the machine has it."""
ANY_ADDRESS: Final = "::" if HAS_IPV6 else "0.0.0.0"
"""The address on which a proxy accepts clients of IPv4, and of IPv6 if the machine has it."""
