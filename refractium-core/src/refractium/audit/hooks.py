"""The rules for packet hooks: sessions over TCP and UDP with the default settings."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from refractium.audit.loading import subject_of
from refractium.contract import Transport
from refractium.testing import run_hook

if TYPE_CHECKING:
    from msgspec import Struct

    from refractium.audit.report import Report
    from refractium.contract import MetadataValue, PacketHook
    from refractium.plugins.installed import Given

_SESSIONS: Final[tuple[tuple[Transport, tuple[bytes, ...], tuple[bytes, ...], str], ...]] = (
    (Transport.TCP, (b"GET / HTTP/1.1\r\n", b"\r\n"), (b"HTTP/1.1 204 No Content\r\n\r\n",), "closed"),
    (Transport.TCP, (), (), "client_reset"),
    (Transport.TCP, (bytes(range(256)) * 256,), (b"\xff" * 65_536,), "idle"),
    (Transport.UDP, (b"", b"\0" * 65_507), (b"", b"answer"), "answered"),
)
"""The transport, the packets of client and backend, and the end of each session."""
_METADATA: Final[dict[str, MetadataValue]] = {
    "sni": "www.example.org",
    "alpn": ("h2", "http/1.1"),
    "ech": True,
}


def check_hooks(given: Given, report: Report) -> None:
    """Check the packet hooks of a plugin."""
    for hook in given.hooks:
        subject = subject_of("hook", hook.name)
        if hook.isolation == "process" and _by_name(hook) is not hook:
            found = f"the module {hook.__module__} has no class {hook.__qualname__}, which a process imports"
            report.broken("hook-process", subject, found)
        report.stage(subject, "the check of the default settings")
        if (settings := _default_settings(hook, report, subject)) is None:
            report.fact("not_run", {subject: "the default settings are not complete"})
            continue
        for transport, inbound, outbound, ended in _SESSIONS:
            report.stage(subject, f"a session over {transport.upper()}")
            try:
                run_hook(
                    hook,
                    inbound=inbound,
                    outbound=outbound,
                    settings=settings,
                    metadata=_METADATA,
                    transport=transport,
                    ended=ended,
                )
            except BaseException as error:  # noqa: BLE001 - the code of a plugin may raise any exception
                report.raised("hook-fails", subject, error, f"in a session over {transport.upper()}")


def _by_name(hook: type[PacketHook[Any]]) -> object:
    found: object = sys.modules.get(hook.__module__)
    for name in hook.__qualname__.split("."):
        found = getattr(found, name, None)
    return found


def _default_settings(hook: type[PacketHook[Any]], report: Report, subject: str) -> Struct | None:
    """Return the default settings, or None if the hook needs settings from the user."""
    try:
        settings = hook.settings_type()
    except TypeError:  # a field without a default
        return None
    try:
        problems = [(key, message) for key, message in hook.problems(settings)]
    except BaseException as error:  # noqa: BLE001 - the code of a plugin may raise any exception
        report.raised("settings-problems", subject, error, "for the default settings")
        return None
    if not all(isinstance(text, str) for problem in problems for text in problem):
        report.broken("settings-problems", subject, "a key or a message is not a str")
    return None if problems else settings
