"""The process of `refractium.audit.probe` with its limits of time, as the check of a plugin sees it."""

from __future__ import annotations

import os
import re
import select
import signal
import site
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from refractium.audit.report import Broken, Done, Fact, Job, Stage, decode_message

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_GRACE: Final = 5.0
"""Time (s) in which a process ends by SIGXCPU, after it has written where it is."""
_CHUNK: Final = 65_536
_MAX_LINE: Final = 1 << 20
_FRAME: Final = re.compile(r'^  File "(.+)", line (\d+) in (\S+)', re.MULTILINE)
"""A line of `faulthandler`, the innermost call first."""
_IMPORTED: Final = re.compile(r"^import time: +(\d+) \| +\d+ \| +(\S+)", re.MULTILINE)
"""A line of ``-X importtime``: the own time of a module (us), and its name."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of each stage of a check.

    Attributes:
        cpu_seconds: processor time (s).
        seconds: time (s), also while the processor serves other programs.
    """

    cpu_seconds: int = 10
    seconds: float = 60.0


@dataclass(slots=True)
class Outcome:
    """The result of a process.

    Attributes:
        broken: code, subject and found, for each broken rule.
        facts: facts by their names.
        output: text that the process wrote to stdout and stderr.
    """

    broken: list[tuple[str, str, str]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    output: str = ""


def run(job: Job, scratch: Path, limits: Limits) -> Outcome:
    """Run a process with a job to its end.

    Args:
        job: the job.
        scratch: folder that the caller removes later: working directory and home of the process.
        limits: limits of each stage.
    """
    reading, writing = os.pipe()
    output = scratch / "output"
    options = ("-X", "importtime") if job.only_import else ()
    try:
        with output.open("w+b") as file:
            process = subprocess.Popen(  # noqa: S603 - runs this program itself
                [
                    *(sys.executable, *options, "-P", "-m", "refractium.audit.probe"),
                    *(str(writing), msgspec.json.encode(job).decode()),
                ],
                cwd=scratch,
                env=_environment(scratch),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                pass_fds=(writing,),
                start_new_session=True,
            )
        os.close(writing)
        writing = -1
        try:
            outcome = _follow(process, reading, limits, output)
        finally:
            # Everything that the plugin started ends with it, unless it has left the session.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)
    outcome.output = output.read_text("utf-8", "replace")
    return outcome


def imported(output: str, own: str) -> list[tuple[str, int]]:
    """Return the top-level packages that a plugin imported beyond the core, with their own times (us).

    Args:
        output: output of a process that only imported.
        own: top-level package of the plugin, which is left out.
    """
    _, _, after = output.partition("\n\n")
    times: dict[str, int] = {}
    for found in _IMPORTED.finditer(after):
        package = found[2].partition(".")[0]
        times[package] = times.get(package, 0) + int(found[1])
    times.pop(own, None)
    return sorted(times.items(), key=lambda one: -one[1])


def _environment(scratch: Path) -> Mapping[str, str]:
    """Return the environment: the same modules as here, but a home that is removed later."""
    found = os.pathsep.join(
        str(Path(one).absolute()) for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one
    )
    homes = dict.fromkeys(
        ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"), str(scratch)
    )
    base = site.getuserbase()
    return {**os.environ, **homes, "PYTHONPATH": found, "PYTHONUSERBASE": base, "PYTHONIOENCODING": "utf-8"}


def _follow(process: subprocess.Popen[bytes], reading: int, limits: Limits, output: Path) -> Outcome:
    outcome = Outcome()
    stage = Stage(process.pid, "the plugin", "start")
    for message in _messages(process, reading, limits.seconds):
        if message.pid != process.pid:
            continue
        match message:
            case Stage():
                stage = message
            case Broken():
                outcome.broken.append((message.code, message.subject, message.found))
            case Fact(value=dict() as part):
                outcome.facts[message.key] = outcome.facts.get(message.key, {}) | part
            case Fact():
                outcome.facts[message.key] = message.value
            case Done():
                return outcome
    late = process.poll() is None
    if late:
        process.send_signal(signal.SIGXCPU)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
    status = process.poll()
    if late or status == -signal.SIGXCPU:
        limit = f"{limits.seconds:g} s" if late else f"{limits.cpu_seconds} s of processor time"
        found = f"{stage.action} has not ended after {limit}{_place(output)}"
        outcome.broken.append(("time-limit", stage.subject, found))
    else:
        how = f"signal {signal.Signals(-status).name}" if status and status < 0 else f"status {status}"
        found = f"the process ends with {how} during this call: {stage.action}"
        outcome.broken.append(("process-ends", stage.subject, found))
    return outcome


def _messages(
    process: subprocess.Popen[bytes], reading: int, seconds: float
) -> Iterator[Stage | Broken | Fact | Done]:
    """Yield the messages until the process ends, or until no message has come for some time.

    A program that the plugin started may hold the pipe open, so the end of the pipe shows nothing.
    """
    buffer = b""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        ended = process.poll() is not None
        if not select.select([reading], [], [], 0 if ended else min(left, 0.2))[0]:
            if ended:
                return
            continue
        if not (piece := os.read(reading, _CHUNK)):
            with suppress(subprocess.TimeoutExpired):
                process.wait(left)
            return
        *lines, buffer = (buffer + piece).split(b"\n")
        for line in lines:
            with suppress(msgspec.MsgspecError):  # the plugin has written to the pipe
                yield decode_message(line)
                until = time.monotonic() + seconds
        if len(buffer) > _MAX_LINE:
            buffer = b""


def _place(output: Path) -> str:
    """Return where the code was when the time was over, as the end of a sentence."""
    text = output.read_bytes()[-_CHUNK:].decode("utf-8", "replace")
    frames = _FRAME.findall(text[text.rfind("most recent call first") :])
    outside = [one for one in frames if "/refractium/audit/" not in one[0]]
    if not outside:
        return ""
    file, line, function = outside[0]
    return f", at {Path(file).name}:{line} in {function}"
