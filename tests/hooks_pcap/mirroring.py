"""A proxy that mirrors everything to a capture, and what must be known of it meanwhile."""

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
    """A file for one backend, with what is said of the hook, and with more lines for ``[server]``."""
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
    """A proxy with such a file, which serves and tells its status."""
    path = folder / "refractium.toml"
    path.write_text(text)
    with serving("tcp", "-c", path) as proxy:
        status_of(proxy)
        yield proxy


def tallies(proxy: Running) -> list[HookTally]:
    """What the hooks have been told of, in either direction."""
    return [one for hook in status_of(proxy).hooks for one in (hook.inbound, hook.outbound)]


def queued_bytes(proxy: Running) -> int:
    """Bytes on their way to the hooks, of which none may have been dropped."""
    told = tallies(proxy)
    assert not any(one.dropped for one in told), "the capture misses something"
    return sum(one.seen_bytes - one.delivered_bytes for one in told)


def await_captured(proxy: Running) -> None:
    """Wait until the hook has been told of everything that has passed, without a gap."""
    eventually(lambda: not queued_bytes(proxy), "the hook is told of everything")


def state_of(pid: int) -> str:
    """The letter of proc(5): T of one that is stopped, Z of one that has ended and X of one that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def runs(pid: int) -> bool:
    """Whether a process has not ended, although nobody may have asked how it did."""
    return state_of(pid) not in "ZX"


def await_end_of(pids: list[int]) -> None:
    eventually(lambda: not any(runs(pid) for pid in pids), "the hook's process ends")
