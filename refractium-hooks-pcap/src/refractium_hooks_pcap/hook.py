"""The hook ``pcap``, which turns events into packets and writes the packets to the outputs."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple

from refractium.contract import EventKind, PacketHook
from refractium.kit import Networks
from refractium_hooks_pcap.outputs import CaptureFiles, Form, Output, Rotation, Stdout, Viewers
from refractium_hooks_pcap.packets import SessionRenderer
from refractium_hooks_pcap.settings import (
    STDOUT,
    PcapSettings,
    is_fifo,
    listen_address,
    problems_of_settings,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from refractium.contract import Event, HookContext
    from refractium_hooks_pcap.packets import Packet

_OPEN: Final = EventKind.OPEN
_CLOSE: Final = EventKind.CLOSE


class PcapHook(PacketHook[PcapSettings]):
    """A hook that mirrors the selected sessions to files, to stdout and to viewers."""

    name = "pcap"
    settings_type = PcapSettings
    isolation = "process"
    queue_bytes = 64 * 1024 * 1024
    """Size (bytes) of the queue, which stores events while the process starts or while a disk is slow.

    A burst of traffic can fill this queue in a tenth of a second.
    """
    summary = "mirrors traffic to pcapng, for Wireshark"

    def __init__(self, settings: PcapSettings) -> None:
        super().__init__(settings)
        self._filter = SessionFilter(settings)
        self._files: CaptureFiles | None = None
        self._streams: list[Stdout | Viewers] = []
        self._recordings: dict[int, _Recording] = {}

    @classmethod
    def problems(cls, settings: PcapSettings) -> Iterable[tuple[str, str]]:
        return problems_of_settings(settings)

    @classmethod
    def takes_stdout(cls, settings: PcapSettings) -> bool:
        return settings.path == STDOUT

    @classmethod
    def needs_one_process(cls, settings: PcapSettings) -> str:
        if settings.listen is not None:
            return "viewers at `listen` would see the sessions of one worker only"
        if settings.path is not None and is_fifo(settings.path):
            return f"several workers would write to the FIFO {settings.path}"
        return super().needs_one_process(settings)

    def start(self) -> None:
        settings = self.settings
        form = Form(settings.is_classic, settings.snaplen)
        fifo = settings.path if settings.path is not None and is_fifo(settings.path) else None
        if settings.path == STDOUT:
            self._streams.append(Stdout(form))
        elif settings.path is not None and fifo is None:
            rotation = Rotation(settings.max_bytes, settings.max_seconds, settings.max_files)
            self._files = CaptureFiles(settings.file_names, form, rotation)
        if settings.listen is not None or fifo is not None:
            address = None if settings.listen is None else listen_address(settings.listen)
            viewers = Viewers(form, address=address, fifo=fifo)
            viewers.start()
            self._streams.append(viewers)

    def on_batch(self, events: Sequence[Event]) -> None:
        recordings = self._recordings
        gathered: defaultdict[Output, list[Packet]] = defaultdict(list)
        try:
            for event in events:
                kind, _, context, *_ = event
                if kind is _OPEN and self._filter.wants(context):
                    recordings[context.session] = self._begin(context)
                recording = recordings.get(context.session)
                if recording is None:
                    continue
                packets = recording.renderer.render(event)
                for output in recording.outputs:
                    gathered[output] += packets
                if kind is _CLOSE:
                    del recordings[context.session]
        finally:
            for output, packets in gathered.items():
                output.write(packets)

    def stop(self) -> None:
        if self._files is not None:
            self._files.close()
        for stream in self._streams:
            stream.close()

    def _begin(self, context: HookContext) -> _Recording:
        files: list[Output] = [] if self._files is None else [self._files.of(context)]
        return _Recording(SessionRenderer(context), (*files, *self._streams))


class _Recording(NamedTuple):
    """A session that the settings select, with its outputs.

    Attributes:
        renderer: the renderer of the packets of the session.
        outputs: the outputs for the packets of the session.
    """

    renderer: SessionRenderer
    outputs: tuple[Output, ...]


class SessionFilter:
    """A filter that selects the sessions that meet every condition in the settings.

    Args:
        settings: the settings; ``protocols``, ``clients`` and ``sni`` contain the conditions.

    Raises:
        ValueError: an entry of ``clients`` is neither an address nor a network.
    """

    def __init__(self, settings: PcapSettings) -> None:
        self._protocols = frozenset(settings.protocols)
        self._clients = Networks(settings.clients)
        self._names = frozenset(settings.sni_names)

    def wants(self, context: HookContext) -> bool:
        """Return whether a session meets every condition."""
        return (
            (not self._protocols or context.protocol in self._protocols)
            and (not self._clients or context.client[0] in self._clients)
            and (not self._names or self._has_name(context.metadata.get("sni")))
        )

    def _has_name(self, sni: object) -> bool:
        if not isinstance(sni, str):
            return False
        return sni in self._names or f"*.{sni.partition('.')[2]}" in self._names
