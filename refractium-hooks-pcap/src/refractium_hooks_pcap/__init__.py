"""A packet hook that mirrors what passes to pcapng, so that Wireshark shows it.

Events come in at `hook.PcapHook`; `packets` makes of those of each session the IP packets that a capture of
it would hold, `formats` makes records of these, and `outputs` brings them to files, to stdout and to viewers.
`reader` goes the other way; `capture` is the command that shows what was captured.
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
    """The hook ``pcap``."""
    return [PcapHook]


@hookimpl
def refractium_commands() -> list[Command]:
    """The command ``capture``."""
    # Whoever only runs the hook, in a process of its own, needs nothing of a command line.
    from refractium_hooks_pcap.capture.command import command  # noqa: PLC0415 - see above

    return [command]
