"""The rules for protocols: samples, the laws of `identify`, the cost of a call, settings and conflicts."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from importlib_metadata import entry_points

from refractium.audit.cost import TIME_LAW, cost_of
from refractium.audit.loading import others, subject_of
from refractium.audit.samples import generated, samples_of, whole_buffers
from refractium.contract import ENTRY_POINT_GROUP, NO, ProtocolMatch, Transport, problems_of
from refractium.testing.laws import LawError, assert_lawful, damaged, show

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from refractium.audit.effects import Effects
    from refractium.audit.report import Job, Report
    from refractium.contract import Protocol
    from refractium.plugins.installed import Given

_CODES: Final = {
    "total": "not-total",
    "stateless": "not-stateless",
    "answer": "answer-type",
    "bounded": "not-bounded",
    "monotone": "not-monotone",
    "patient": "not-patient",
    "prefix": "prefix-undeclared",
    "metadata key": "metadata-key",
    "metadata type": "metadata-type",
    "attributes": "attributes",
}
"""The code of the rule for each law."""
_BUDGET: Final = 4.0
"""Processor time (s) in which to check the laws of one protocol."""
_EVERY_LENGTH: Final = 512
"""Bytes up to which the laws are checked for each length; beyond, the time would be quadratic."""


def check_protocols(job: Job, given: Given, report: Report, effects: Effects) -> None:
    """Check the protocols of a plugin, and that they get on with the other installed protocols."""
    samples = samples_of(job.value)
    report.fact("samples", len(samples))
    subject = f"plugin '{job.id}'"
    if not samples:
        report.broken("no-samples", subject, "there is no sample")
    with effects.watched() as found:
        for protocol in given.protocols:
            _check(protocol, list(samples.values()), report)
    if happened := [found[key] for key in ("effects", "threads") if key in found]:
        report.broken("identify-effects", subject, "; ".join(happened))
    for name, sample in samples.items():
        report.stage(subject, f"identify for the sample {name}")
        if not any(_matches(protocol, sample) for protocol in given.protocols):
            report.broken("sample-unknown", f"sample {name}", f"no protocol matches {show(sample)}")
    report.stage(subject, "comparison with the installed protocols")
    _check_conflicts(job, given, samples, report)


def _check(protocol: Protocol, samples: Sequence[bytes], report: Report) -> None:
    subject = _subject(protocol)
    _check_cost(protocol, samples, report, subject)
    for prefix in protocol.prefixes if protocol.transport is Transport.TCP else ():
        report.stage(subject, f"identify for {show(prefix)}")
        if _answer(protocol, prefix) is NO:
            report.broken("prefix-rejected", subject, f"identify answers NO to {show(prefix)}")
    began = time.thread_time()
    for data in _cases(protocol, samples):
        report.stage(subject, f"identify for the beginnings of {show(data)}")
        _check_laws(protocol, data, report, subject)
        if time.thread_time() - began > _BUDGET:
            break
    report.stage(subject, "with_settings")
    _check_settings(protocol, report, subject)


def _cases(protocol: Protocol, samples: Sequence[bytes]) -> Iterator[bytes]:
    """Yield bytes for the laws, the most telling first."""
    yield from samples
    yield from whole_buffers(protocol, samples)
    yield from generated(protocol, samples)
    for copies in zip(*map(damaged, samples), strict=False):
        yield from copies


def _check_laws(protocol: Protocol, data: bytes, report: Report, subject: str) -> None:
    whole = {protocol.max_bytes - 1, protocol.max_bytes, protocol.max_bytes + 1}
    powers = {1 << bits for bits in range(len(data).bit_length())}
    lengths = sorted({*range(1, _EVERY_LENGTH), *powers, *whole, len(data)})
    data = data if protocol.transport is Transport.UDP else data + b"\n"  # more than a whole buffer
    try:
        assert_lawful(protocol, data, lengths=[one for one in lengths if 0 < one <= len(data)])
    except LawError as error:
        report.broken(_CODES[error.law], subject, str(error))
    except BaseException as error:  # noqa: BLE001 - metadata may be an object that raises
        report.raised("not-total", subject, error, f"for {show(data)}")


def _check_cost(protocol: Protocol, samples: Sequence[bytes], report: Report, subject: str) -> None:
    slowest, worst = 0.0, b""
    for data in (*samples, *whole_buffers(protocol, samples)):
        report.stage(subject, f"identify for {show(data)}")
        cost = cost_of(lambda data=data: _answer(protocol, data))  # type: ignore[misc]
        if cost > slowest:
            slowest, worst = cost, data
    report.fact("identify_ms", {f"{protocol.name}/{protocol.transport}": round(slowest * 1000, 3)})
    if slowest > TIME_LAW:
        found = f"identify takes {slowest * 1000:.1f} ms of processor time for {show(worst)}"
        report.broken("identify-slow", subject, found)


def _answer(protocol: Protocol, data: bytes) -> object:
    """Return the answer with its metadata read, or the exception that the protocol raises."""
    try:
        answer = protocol.identify(data)
        if isinstance(answer, ProtocolMatch):
            _ = answer.metadata
    except BaseException as error:  # noqa: BLE001 - the check of the laws reports it
        return error
    return answer


def _matches(protocol: Protocol, data: bytes) -> bool:
    return isinstance(_answer(protocol, data), ProtocolMatch)


def _check_settings(protocol: Protocol, report: Report, subject: str) -> None:
    try:
        other: Any = protocol.with_settings(protocol.settings_type())
        problems = list(problems_of(other))
        changed = not problems and (other.name, other.transport) != (protocol.name, protocol.transport)
    except BaseException as error:  # noqa: BLE001 - the code of a plugin may raise any exception
        report.raised("settings", subject, error, "in with_settings, for the default settings")
        return
    if problems:
        report.broken(
            "settings", subject, f"with_settings returns a protocol with this problem: {problems[0]}"
        )
    elif changed:
        report.broken("settings", subject, f"with_settings returns {_subject(other)}")


def _check_conflicts(job: Job, given: Given, samples: Mapping[str, bytes], report: Report) -> None:
    """Compare with the other installed plugins. Another plugin that is not sound is left out."""
    installed = entry_points(group=ENTRY_POINT_GROUP)
    values = {one.name: one.value for one in installed}
    for entry, theirs in others(job):
        their_samples = samples_of(values[entry.id])
        for mine in given.protocols:
            for other in theirs.protocols:
                if mine.transport is other.transport and mine.name != other.name:
                    for found in (*_stolen(mine, samples, other), *_stolen(other, their_samples, mine)):
                        report.broken("conflict", _subject(mine), f"{found}; the other is of {entry}")


def _stolen(owner: Protocol, samples: Mapping[str, bytes], thief: Protocol) -> Iterator[str]:
    """Yield a sentence for each sample of `owner` that `thief` matches before or beside `owner`."""
    for name, sample in samples.items():
        if thief.strength <= owner.strength and _matches(owner, sample) and _matches(thief, sample):
            yield (
                f"{_subject(thief)}, {thief.strength.name.lower()}, matches the sample {name} of"
                f" {_subject(owner)}, {owner.strength.name.lower()}"
            )


def _subject(protocol: Protocol) -> str:
    return subject_of("protocol", protocol.name, protocol.transport)
