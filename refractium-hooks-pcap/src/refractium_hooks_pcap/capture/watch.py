"""Connects the source and the display of the command ``capture``."""

from __future__ import annotations

import signal
import sys
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import click

from refractium.kit import ConfigError, OwnTable
from refractium_hooks_pcap.capture.displays import Display, FinalTable, JsonLines, LiveTable
from refractium_hooks_pcap.capture.intake import STDOUT, CaptureError, Copy, NobodyReadsError
from refractium_hooks_pcap.capture.sessions import Sessions
from refractium_hooks_pcap.capture.sources import Source, open_configured, open_source
from refractium_hooks_pcap.settings import PcapSettings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def watch(
    source: str | None, config: Path | None, *, follow: bool, target: str | None, as_json: bool
) -> None:
    """Show the sessions in a capture until the capture ends, or until SIGINT or SIGTERM ends the command.

    Args:
        source: the source in the notation of `open_source`; None for the source in the configuration.
        config: the configuration file; None for the default file.
        follow: whether to wait for further bytes and files after the last file.
        target: the target to which all bytes are copied: a new file, or ``-`` for stdout; None for no copy.
        as_json: whether to print lines of JSON.

    Raises:
        CaptureError: the capture cannot be read or copied.
        ConfigError: the configuration does not name a source, or cannot be read.
    """
    with ExitStack() as stack:
        stack.enter_context(_ended_by_sigterm())
        opened = stack.enter_context(
            open_source(source, follow=follow) if source is not None else _configured(config, follow=follow)
        )
        copy = stack.enter_context(Copy(target)) if target is not None else None
        _show(opened, copy, _display(opened, target, as_json=as_json))


def _show(source: Source, copy: Copy | None, display: Display) -> None:
    sessions = Sessions(display.ended)
    try:
        with display.shown(source.name, sessions):
            before = time.monotonic_ns()
            for packets in source.read(copy):
                for packet in packets:
                    sessions.add(packet)
                now = time.monotonic_ns()
                if not packets:
                    sessions.wait(now - before)
                before = now
                display.refresh()
    except KeyboardInterrupt:
        pass
    except NobodyReadsError:
        return
    except CaptureError:
        if sessions.count:  # show the sessions that were read before the error
            display.finish(sessions)
        raise
    display.finish(sessions)
    if sessions.skipped:
        source.warnings.append(
            f"{sessions.skipped} packets are not shown: they are neither TCP nor UDP in bare IP packets"
        )
    for warning in source.warnings:
        click.echo(f"{click.style('warning:', fg='yellow', bold=True)} {warning}", err=True)


def _display(source: Source, target: str | None, *, as_json: bool) -> Display:
    if target == STDOUT:
        return Display()
    if as_json:
        return JsonLines()
    return LiveTable() if source.is_live and sys.stdout.isatty() else FinalTable()


def _configured(file: Path | None, *, follow: bool) -> Source:
    """Open the source that ``[plugins.pcap]`` names."""
    own = OwnTable.read("pcap", PcapSettings, file)
    try:
        return open_configured(own.settings, follow=follow)
    except ValueError as error:
        raise ConfigError([own.problem(str(error))]) from None


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM act like Ctrl-C within the block, so that a live table restores the terminal."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
