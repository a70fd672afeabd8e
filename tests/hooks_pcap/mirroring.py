"""A proxy that mirrors all traffic to a capture, and the state that tests need to know of it."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from support.ipv6 import ANY_ADDRESS
from support.process import Running, serving
from support.proxy import eventually
from support.status import status_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refractium.observe.status import HookTally


def configuration(fallback: str, path: Path | str, *more: str, port: int = 0, **pcap: object) -> str:
    """Return a configuration with one backend, settings of the hook, and further lines for ``[server]``."""
    lines = [
        f'fallback_tcp = "{fallback}"',
        "[server]",
        f'bind = "{ANY_ADDRESS}"',
        f"port = {port}",
        'hooks = ["pcap"]',
        "max_connections_per_ip = 1000",
        *more,
        "[plugins.pcap]",
        f'path = "{path}"',
        *(f"{key} = {value}" for key, value in pcap.items()),
    ]
    return "\n".join(lines) + "\n"


@contextmanager
def mirroring(folder: Path, text: str) -> Iterator[Running]:
    """Run a proxy with this configuration while the block runs; it serves and answers ``status`` by then."""
    path = folder / "refractium.toml"
    path.write_text(text)
    with serving("tcp", "-c", path) as proxy:
        status_of(proxy)
        yield proxy


def tallies(proxy: Running) -> list[HookTally]:
    """Return the counts of packets for the hooks, of both directions."""
    return [one for hook in status_of(proxy).hooks for one in (hook.inbound, hook.outbound)]


def queued_bytes(proxy: Running) -> int:
    """Return the number of bytes on their way to the hooks, and assert that none were dropped."""
    told = tallies(proxy)
    assert not any(one.dropped for one in told), "the capture misses packets"
    return sum(one.seen_bytes - one.delivered_bytes for one in told)


def await_captured(proxy: Running) -> None:
    """Wait until the hook has received all traffic, without a gap."""
    eventually(lambda: not queued_bytes(proxy), "the hook has received everything")


def state_of(pid: int) -> str:
    """Return the state letter of a process (proc(5)): T for stopped, Z for ended, X for gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def runs(pid: int) -> bool:
    """Return whether a process still runs, which is false for a zombie too."""
    return state_of(pid) not in "ZX"


def await_end_of(pids: list[int]) -> None:
    eventually(lambda: not any(runs(pid) for pid in pids), "the hook's process ends")
