"""Requests at a fixed rate. wrk has no fixed rate: it sends the next request after the last answer."""

from __future__ import annotations

import gc
import select
import time
from contextlib import ExitStack
from typing import Final, NamedTuple

from benchmarks.clients import REQUEST, open_keep_alive

CONNECTIONS: Final = 32
_PATIENCE: Final = 5.0
"""Seconds within which the last answers must come."""


class Paced(NamedTuple):
    """The result of paced requests.

    Attributes:
        latencies: seconds from the due time of each request to its answer, in ascending order.
        rate: answers per second.
    """

    latencies: list[float]
    rate: float

    def percentile(self, percent: int) -> float:
        """Return the latency (s) that `percent` percent of the requests do not exceed."""
        return self.latencies[(len(self.latencies) - 1) * percent // 100]


def pace(port: int, rate: float, seconds: float) -> Paced:
    """Send requests to the web server at a steady rate, over connections that stay open.

    A request waits if no connection is free. Its latency counts from its due time, so that a slow proxy does
    not look better because it gets fewer requests.

    Args:
        port: the port of the proxy.
        rate: requests per second.
        seconds: the duration (s).

    Raises:
        TimeoutError: no answer has come for 5 s.
        ConnectionError: the proxy has closed a connection.
    """
    with ExitStack() as stack, select.epoll() as ready:
        socks = [stack.enter_context(open_keep_alive(port)) for _ in range(CONNECTIONS)]
        for sock in socks:
            ready.register(sock.fileno(), select.EPOLLIN)
        by_descriptor = {sock.fileno(): sock for sock in socks}
        idle, due, latencies = socks[:], dict.fromkeys(by_descriptor, 0.0), list[float]()
        total = max(1, round(rate * seconds))
        clock, asked = time.perf_counter, 0
        gc.disable()  # pauses of the collector would count as latency of the proxy
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
                # The timeout of select is in microseconds, the timeout of epoll_wait in milliseconds.
                if not select.select([ready.fileno()], (), (), max(0.0, until_next))[0]:
                    if until_next == _PATIENCE:
                        raise TimeoutError(f"no answer within {_PATIENCE:g} s")
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
