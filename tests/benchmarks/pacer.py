"""Requests at a fixed rate, which wrk does not make: it sends the next one when the last was answered."""

from __future__ import annotations

import gc
import select
import time
from contextlib import ExitStack
from typing import Final, NamedTuple

from benchmarks.clients import REQUEST, open_keep_alive

CONNECTIONS: Final = 32
_PATIENCE: Final = 5.0
"""Seconds that the last answers may take."""


class Paced(NamedTuple):
    """What came of the requests.

    Attributes:
        latencies: of all that were answered, from when each was due (s), in ascending order.
        rate: answers per second.
    """

    latencies: list[float]
    rate: float

    def percentile(self, percent: int) -> float:
        """Seconds that so many of the requests took at the most."""
        return self.latencies[(len(self.latencies) - 1) * percent // 100]


def pace(port: int, rate: float, seconds: float) -> Paced:
    """Ask the web server at a steady rate, over connections that stay open.

    A request that finds no connection free waits for one, and its time runs from when it was due: a proxy
    that falls behind cannot hide it by being asked less.

    Args:
        port: of the proxy.
        rate: requests per second.
        seconds: how long.
    """
    with ExitStack() as stack, select.epoll() as ready:
        socks = [stack.enter_context(open_keep_alive(port)) for _ in range(CONNECTIONS)]
        for sock in socks:
            ready.register(sock.fileno(), select.EPOLLIN)
        by_descriptor = {sock.fileno(): sock for sock in socks}
        idle, due, latencies = socks[:], dict.fromkeys(by_descriptor, 0.0), list[float]()
        total = max(1, round(rate * seconds))
        clock, asked = time.perf_counter, 0
        gc.disable()  # its pauses would be taken for the proxy's
        try:
            began = clock()
            while len(latencies) < total:
                now = clock()
                while asked < total and idle and began + asked / rate <= now:
                    sock = idle.pop()
                    due[sock.fileno()] = began + asked / rate
                    sock.send(REQUEST)
                    asked += 1
                until_next = began + asked / rate - clock() if asked < total and idle else _PATIENCE
                # select takes microseconds, epoll_wait milliseconds.
                if not select.select([ready.fileno()], (), (), max(0.0, until_next))[0]:
                    if until_next == _PATIENCE:
                        raise TimeoutError("answers do not come")
                    continue
                for descriptor, _ in ready.poll(0):
                    sock = by_descriptor[descriptor]
                    if not sock.recv(4096):
                        raise ConnectionError("a connection was closed")
                    latencies.append(clock() - due[descriptor])
                    idle.append(sock)
            return Paced(sorted(latencies), total / (clock() - began))
        finally:
            gc.enable()
