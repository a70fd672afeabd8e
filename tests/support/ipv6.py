"""IPv6, which some machines do not have: most containers are without ::1."""

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
"""Whether tests use it. Where nothing may be missing (CI) they do, and fail without."""

LOOPBACKS: Final = ("127.0.0.1", "::1") if HAS_IPV6 else ("127.0.0.1",)
"""The addresses by which clients come to this machine, of each kind that it has."""
ANY_ADDRESS: Final = "::" if HAS_IPV6 else "0.0.0.0"
"""What a proxy binds to that takes clients of each kind that there is."""
