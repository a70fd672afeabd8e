"""The laws of `Protocol.identify`, checked over every prefix of given bytes and over damaged copies."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

from refractium.contract import (
    NEED_MORE,
    NO,
    Identification,
    MetadataValue,
    NeedMore,
    Protocol,
    ProtocolMatch,
    Transport,
    Verdict,
    problems_of,
)
from refractium.contract.protocol import problems_of_answer, problems_of_metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_DAMAGED_COPIES: Final = 200
_SHOWN: Final = 60


class LawError(AssertionError):
    """A law that a protocol breaks.

    Attributes:
        law: ``total``, ``stateless``, ``answer``, ``bounded``, ``monotone``, ``patient``, ``prefix``,
            ``metadata key`` or ``metadata type``; ``attributes`` if an attribute is not valid.
    """

    def __init__(self, law: str, message: str) -> None:
        super().__init__(message)
        self.law = law


def assert_identifies(
    protocol: Protocol, data: bytes, *, metadata: Mapping[str, MetadataValue] | None = None
) -> ProtocolMatch:
    """Assert that `protocol` recognises `data` in pieces of any size, and keeps the laws for damaged copies.

    Args:
        protocol: protocol under test.
        data: a real first message, which a client sends before it receives any byte.
        metadata: values that the match must have. Other keys may have any value.

    Returns:
        The match for the whole of `data`.

    Raises:
        AssertionError: `protocol` does not recognise `data`, finds other metadata, or breaks a law. The
            message names the shortest cut of `data` that shows the mistake.
    """
    assert_lawful(protocol, data)
    for copy in damaged(data):
        assert_lawful(protocol, copy)
    answer = protocol.identify(data)
    if not isinstance(answer, ProtocolMatch):
        since = _since(protocol, data, lambda one: _is_alike(one, answer))
        raise AssertionError(f"{protocol} answers {answer} to {show(data)}, not a match{since}")  # noqa: TRY004
    for key, value in (metadata or {}).items():
        found = answer.metadata.get(key)
        if found != value:
            since = _since(protocol, data, lambda one: _value(one, key) == found)  # noqa: B023 - called at once
            wrong = f'{key} is "{found}"' if found is not None else f"there is no {key}"
            raise AssertionError(f'{protocol}: {wrong}, not "{value}", for {show(data)}{since}')
    return answer


def assert_rejects(protocol: Protocol, data: bytes) -> None:
    """Assert that `protocol` answers `NO` to `data`, in pieces of any size, and keeps the laws.

    Raises:
        AssertionError: the answer is not `NO`, or `protocol` breaks a law.
    """
    assert_lawful(protocol, data)
    answer = protocol.identify(data)
    if answer is not NO:
        since = _since(protocol, data, lambda one: _is_alike(one, answer))
        raise AssertionError(f"{protocol} answers {answer} to {show(data)}, not NO{since}")


def assert_lawful(protocol: Protocol, data: bytes, *, lengths: Iterable[int] | None = None) -> None:
    """Assert that `protocol` keeps all laws, and that its answers fit its attributes.

    The laws are: total, stateless, bounded, monotone and patient.

    This function asks the protocol about every prefix of `data`, so the time is quadratic in the length of
    `data`. For a UDP protocol, this function asks only about the whole `data`. Use this function with
    hypothesis, for example: ``@given(st.binary())``.

    Args:
        protocol: protocol under test.
        data: any bytes.
        lengths: lengths of the prefixes to ask about, ascending; None for all lengths.

    Raises:
        AssertionError: `protocol` breaks a law; the message names the law and the bytes.
    """
    if problems := list(problems_of(protocol)):
        raise LawError("attributes", "; ".join(problems))
    if protocol.transport is Transport.UDP:
        _assert_one_answer(protocol, data)
        return
    before: Identification = NEED_MORE
    asked = at = 0
    for end in range(1, len(data) + 1) if lengths is None else lengths:
        prefix = data[:end]
        try:
            answer = _assert_one_answer(protocol, prefix)
            _assert_monotone(protocol, prefix, before, answer, had_all=asked >= protocol.max_bytes)
            if end < at and not _needs_more(answer):
                late = f"needs {at} bytes, but answers {answer} at {show(prefix)}"
                raise LawError("patient", f"not patient: {protocol} {late}")  # noqa: TRY301 - it needs the cut
        except LawError as error:
            if end < len(data):
                error.args = (f"{error}, cut after byte {end} of {len(data)}",)
            raise
        if isinstance(answer, NeedMore):
            at = max(at, answer.at)
        before = answer
        asked = end


def _since(protocol: Protocol, data: bytes, has_come: Callable[[Identification], bool]) -> str:
    """Return the end of a message: the shortest cut at which a protocol, which keeps the laws, answers so."""
    if protocol.transport is Transport.UDP:
        return ""
    lengths = range(1, len(data))
    early = next((end for end in lengths if has_come(protocol.identify(data[:end]))), None)
    return f", already when cut after byte {early} of {len(data)}" if early else ""


def _is_alike(answer: Identification, other: Identification) -> bool:
    """Return whether two answers are the same verdict, or the same kind of answer with other metadata."""
    return answer is other or (type(answer) is type(other) and not isinstance(answer, Verdict))


def _value(answer: Identification, key: str) -> object:
    """Return the metadata of an answer; for an answer without metadata, an object that equals nothing."""
    return answer.metadata.get(key) if isinstance(answer, ProtocolMatch) else object()


def _assert_one_answer(protocol: Protocol, data: bytes) -> Identification:
    """Ask the protocol twice for the same bytes, and check the laws that concern these bytes alone."""
    try:
        answer, again = _read(protocol.identify(data)), _read(protocol.identify(data))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raised = f"{protocol} raises {type(error).__name__}: {error} for {show(data)}"
        raise LawError("total", f"not total: {raised}") from error
    if isinstance(answer, ProtocolMatch) and isinstance(again, ProtocolMatch):
        if problems := list(problems_of_metadata(protocol, answer)):
            if "does not declare" in problems[0]:
                raise LawError("metadata key", f"not declared: {'; '.join(problems)}")
            raise LawError("metadata type", f"not metadata: {'; '.join(problems)}")
        if (dict(answer.metadata), answer.pending, answer.pending_at) != (
            dict(again.metadata),
            again.pending,
            again.pending_at,
        ):
            raise _stateful(protocol, data, answer, again)
    elif problems := [*problems_of_answer(answer), *problems_of_answer(again)]:
        raise LawError("answer", f"not an answer: {protocol} to {show(data)}: {problems[0]}")
    elif answer is not again and not (isinstance(answer, NeedMore) and answer == again):
        raise _stateful(protocol, data, answer, again)
    elif _needs_more(answer) and not _is_recognised(answer) and len(data) >= protocol.max_bytes:
        limit = f"{protocol} needs more than its {protocol.max_bytes} max_bytes"
        raise LawError("bounded", f"not bounded: {limit}")
    _assert_declared_prefix(protocol, data, answer)
    return answer


def _stateful(protocol: Protocol, data: bytes, answer: Identification, again: Identification) -> LawError:
    return LawError("stateless", f"not stateless: {protocol} answers {answer}, then {again} to {show(data)}")


def _assert_declared_prefix(protocol: Protocol, data: bytes, answer: Identification) -> None:
    starts = any(data.startswith(p) or p.startswith(data) for p in protocol.prefixes)
    if protocol.prefixes and not starts and answer is not NO:
        unlike = f"{protocol} answers {answer} to {show(data)}, unlike prefixes"
        raise LawError("prefix", f"not declared: {unlike}")


def _read(answer: Identification) -> Identification:
    """Make a deferred match read its metadata now. Like `Protocol.identify`, the read must not raise."""
    if isinstance(answer, ProtocolMatch):
        return ProtocolMatch(answer.metadata, answer.pending, answer.pending_at)
    return answer


def _needs_more(answer: Identification) -> bool:
    return answer is NEED_MORE or isinstance(answer, NeedMore)


def _is_recognised(answer: Identification) -> bool:
    return isinstance(answer, NeedMore) and answer.recognised


def _assert_monotone(
    protocol: Protocol, data: bytes, before: Identification, answer: Identification, *, had_all: bool
) -> None:
    """Compare an answer with the answer to fewer bytes, which were `max_bytes` or more if `had_all`."""
    if _needs_more(before):
        forgets = _is_recognised(before) and _needs_more(answer) and not _is_recognised(answer)
        if forgets or (had_all and not _needs_more(answer)):
            raise _wavering(protocol, data, before, answer)
        return
    if isinstance(before, ProtocolMatch) and isinstance(answer, ProtocolMatch):
        changed = [k for k, v in before.metadata.items() if answer.metadata.get(k) != v]
        surprising = (set(answer.metadata) - set(before.metadata)) - before.pending
        is_early = len(data) < before.pending_at and answer.pending != before.pending
        if changed or surprising or is_early or answer.pending - before.pending:
            raise _wavering(protocol, data, before, answer)
    elif answer is not before:
        raise _wavering(protocol, data, before, answer)


def _wavering(protocol: Protocol, data: bytes, before: Identification, answer: Identification) -> LawError:
    message = f"not monotone: {protocol} answers {before}, then {answer} at {show(data)}"
    if isinstance(before, ProtocolMatch) and isinstance(answer, ProtocolMatch):
        message += " (name a key whose value may still arrive in `pending`)"
    return LawError("monotone", message)


def damaged(data: bytes) -> list[bytes]:
    """Return copies with bytes changed, removed or inserted. Equal `data` gives equal copies."""
    rng = random.Random(data)  # noqa: S311 - chooses test data
    copies = []
    for _ in range(_DAMAGED_COPIES if len(data) <= _DAMAGED_COPIES else _DAMAGED_COPIES // 10):
        copy = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(copy) + 1)
            copy[at : at + rng.randint(0, 2)] = rng.randbytes(rng.randint(0, 2))
        copies.append(bytes(copy))
    return copies


def show(data: bytes) -> str:
    """Return bytes as Python writes them; of many bytes, only the beginning and the count."""
    return f"{data[:_SHOWN]!r}{f'... ({len(data)} bytes)' if len(data) > _SHOWN else ''}"
