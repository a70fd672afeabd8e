"""The messages from the process that runs the code of a plugin to the process that checks the plugin."""

from __future__ import annotations

import os
import resource
import time
from typing import Any, Final, TypeAlias

from msgspec import Struct, json

from refractium.guard.faults import text_of
from refractium.wire.text import brief

_ROOM: Final = 400
"""Characters of a text of the plugin in a finding."""


class Job(Struct, frozen=True):
    """The task of a process: one plugin.

    Attributes:
        id: id of the plugin.
        value: value of the entry point.
        distribution: name of the distribution.
        path: folders to search for modules before `sys.path`.
        cache: folder for compiled code, so that the folders of the plugin stay as they are.
        only_import: whether to measure the import, and to check nothing.
        cpu_seconds: processor time that each stage may take (s).
    """

    id: str
    value: str
    distribution: str
    path: tuple[str, ...]
    cache: str
    only_import: bool
    cpu_seconds: int


class Stage(Struct, frozen=True, tag=True):
    """The process begins a stage.

    Attributes:
        pid: process that reports. A plugin may fork, and the new process must not report.
        subject: part of the plugin that the stage checks.
        action: the calls of the stage.
    """

    pid: int
    subject: str
    action: str


class Broken(Struct, frozen=True, tag=True):
    """The plugin breaks a rule.

    Attributes:
        pid: as in `Stage`.
        code: code of the rule.
        subject: part of the plugin that breaks the rule.
        found: what the part is or does.
    """

    pid: int
    code: str
    subject: str
    found: str


class Fact(Struct, frozen=True, tag=True):
    """Something to show about the plugin.

    Attributes:
        pid: as in `Stage`.
        key: name of the fact.
        value: the fact, ready for JSON.
    """

    pid: int
    key: str
    value: Any


class Done(Struct, frozen=True, tag=True):
    """The process has checked everything.

    Attributes:
        pid: as in `Stage`.
    """

    pid: int


Message: TypeAlias = Stage | Broken | Fact | Done
decode_message: Final = json.Decoder(Message).decode


class Report:
    """The writing end.

    Args:
        descriptor: file descriptor of the pipe.
        cpu_seconds: processor time that each stage may take (s).
    """

    def __init__(self, descriptor: int, cpu_seconds: int) -> None:
        os.set_inheritable(descriptor, False)  # noqa: FBT003 - has no keyword; a program that the plugin starts must not hold the pipe
        self._descriptor = descriptor
        self._pid = os.getpid()
        self._cpu_seconds = cpu_seconds
        self._seen: set[tuple[str, str]] = set()

    def stage(self, subject: str, action: str) -> None:
        """Begin a stage, which has its own limit of processor time."""
        limit = int(time.process_time()) + 1 + self._cpu_seconds
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        self._send(Stage(self._pid, brief(subject), brief(action, _ROOM)))

    def broken(self, code: str, subject: str, found: str) -> None:
        """Report the first case in which a part of the plugin breaks a rule; later cases are ignored."""
        if (code, subject) not in self._seen:
            self._seen.add((code, subject))
            self._send(Broken(self._pid, code, brief(subject), brief(found, _ROOM)))

    def raised(self, code: str, subject: str, error: BaseException, when: str) -> None:
        """Report an exception of the plugin.

        Args:
            code: code of the rule.
            subject: part of the plugin that raised the exception.
            error: the exception.
            when: the call, as the end of a sentence.
        """
        self.broken(code, subject, f"raises {text_of(error)} {when}")

    def fact(self, key: str, value: object) -> None:
        """Report something to show about the plugin."""
        self._send(Fact(self._pid, key, value))

    def done(self) -> None:
        """Report that everything has been checked."""
        self._send(Done(self._pid))

    def _send(self, message: Message) -> None:
        line = json.encode(message) + b"\n"
        while line:
            line = line[os.write(self._descriptor, line) :]
