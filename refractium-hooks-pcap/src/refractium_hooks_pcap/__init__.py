"""A packet hook that mirrors traffic to pcapng, so that Wireshark can show the traffic.

`hook.PcapHook` receives the events. `packets` turns the events of a session into the IP packets that a
capture of this session would contain. `formats` turns packets into records, and `outputs` writes records to
files, to stdout and to viewers. `reader` turns records back into packets; the command `capture` shows the
sessions in a capture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from refractium.contract import hookimpl
from refractium_hooks_pcap.hook import PcapHook

if TYPE_CHECKING:
    from click import Command

    from refractium.contract import PacketHook


@hookimpl
def refractium_hooks() -> list[type[PacketHook[Any]]]:
    """Return the hook ``pcap``."""
    return [PcapHook]


@hookimpl
def refractium_commands() -> list[Command]:
    """Return the command ``capture``."""
    # A process that only runs the hook does not need the modules of the command line.
    from refractium_hooks_pcap.capture.command import command  # noqa: PLC0415 - see above

    return [command]
