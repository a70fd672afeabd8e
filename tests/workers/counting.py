"""A worker that admits clients up to its limits. It is a program, because a fork would inherit locks of
other threads.

Usage: ``python -m workers.counting FD NUMBER``, with a table of limits behind FD.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Final

from refractium import Settings
from refractium.workers.shared_limiter import LimitTable, SharedLimiter

ADDRESSES: Final = ("192.0.2.1", "192.0.2.2", "2001:db8::1")
COUNTED: Final = Settings(max_connections=500, max_connections_per_ip=120)


def main(fd: int, number: int) -> None:
    """Print that it is ready, wait for a line, count clients in, print how many were admitted, and wait to
    be killed."""
    limiter = SharedLimiter(LimitTable(fd), number, COUNTED)
    print("ready", flush=True)  # noqa: T201 - the output of this program
    sys.stdin.readline()
    let_in = Counter(ip for _ in range(400) for ip in ADDRESSES if limiter.enter(ip) is None)
    print(json.dumps(let_in), flush=True)  # noqa: T201 - the output of this program
    sys.stdin.readline()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
