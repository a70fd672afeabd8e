"""A packet hook that logs a line of JSON when a session begins, and a line when it ends."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from refractium.contract import HookContext, PacketHook, SessionStats, hookimpl
from refractium_hooks_trafficlog.line_file import STDOUT, LineFile

if TYPE_CHECKING:
    from collections.abc import Iterable

    from click import Command

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class TrafficLogSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """The settings in ``[plugins.trafficlog]``.

    Attributes:
        path: the path of the file to append lines to, or ``-`` for stdout.
    """

    path: str


class TrafficLog(PacketHook[TrafficLogSettings]):
    """A hook that writes two lines for each session."""

    name = "trafficlog"
    settings_type = TrafficLogSettings
    summary = "logs sessions as lines of JSON"

    @classmethod
    def problems(cls, settings: TrafficLogSettings) -> Iterable[tuple[str, str]]:
        path = Path(settings.path)
        if settings.path == STDOUT:
            return
        if not path.parent.is_dir():
            yield "path", f"there is no folder {path.parent}"
        elif path.is_dir() or path.is_symlink():
            yield "path", f"{path} is a folder or a symbolic link, not a file"

    @classmethod
    def takes_stdout(cls, settings: TrafficLogSettings) -> bool:
        return settings.path == STDOUT

    def start(self) -> None:
        self._file = LineFile(self.settings.path)

    def on_open(self, context: HookContext) -> None:
        self._write("open", context, context.started)

    def on_close(self, context: HookContext, stats: SessionStats) -> None:
        self._write(
            "close",
            context,
            context.started + int(stats.seconds * 1e9),
            seconds=round(stats.seconds, 6),
            inbound=stats.inbound,
            outbound=stats.outbound,
            ended=stats.ended,
        )

    def stop(self) -> None:
        self._file.close()

    def _write(self, event: str, context: HookContext, when: int, **more: Any) -> None:
        line: dict[str, Any] = {
            "event": event,
            "time": EPOCH + timedelta(microseconds=when // 1000),
            "session": f"{context.session:016x}",
            "transport": context.transport,
            "protocol": context.protocol,
            "route": context.route,
            "client": join(context.client),
            "backend": join(context.backend),
            **{key: context.metadata[key] for key in ("sni", "host", "alpn") if key in context.metadata},
            **more,
        }
        # The JSON encoder escapes text from the client, so that no client can begin a new line.
        self._file.write(msgspec.json.encode(line) + b"\n")


def join(address: tuple[str, int] | str) -> str:
    """Return an address as in the configuration: ``192.0.2.1:80``, ``[2001:db8::1]:80`` or ``unix:/path``."""
    if isinstance(address, str):
        return f"unix:{address}"
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@hookimpl
def refractium_hooks() -> list[type[PacketHook[Any]]]:
    """Return the hook ``trafficlog``."""
    return [TrafficLog]


@hookimpl
def refractium_commands() -> list[Command]:
    """Return the command ``traffic``."""
    # A proxy that runs the hook needs no command line, so only this function imports the command.
    from refractium_hooks_trafficlog.command import command  # noqa: PLC0415 - see above

    return [command]
