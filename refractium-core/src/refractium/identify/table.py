"""The dispatch table, which asks the protocols of one transport in order of their strength.

The table is immutable and keeps no state of a connection: after more bytes have arrived, the caller asks
again with all bytes. By the laws of `Protocol.identify`, the last answer is the same as the answer to one
question with all bytes.
"""

from __future__ import annotations

from bisect import bisect_left
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, NamedTuple, TypeAlias, TypeVar, cast

from refractium.contract import (
    NEED_MORE,
    NO,
    Identification,
    NeedMore,
    Protocol,
    ProtocolMatch,
    Strength,
    Verdict,
)
from refractium.contract.protocol import plain, problems_of_answer, problems_of_metadata
from refractium.guard.faults import PROTOCOL, Faults, is_interrupt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

T = TypeVar("T")

_SOME = NeedMore()


@dataclass(frozen=True, slots=True)
class Candidate(Generic[T]):
    """A protocol, and a function that chooses the result of the table when the protocol matches.

    Attributes:
        protocol: protocol to ask.
        select: function that returns the result for a match, `NO` if the match meets no condition, or
            `NEED_MORE` if the result depends on a pending key. If `asks_for` is empty, the table calls
            `select` only once, when the table is made.
        asks_for: metadata keys that `select` reads.
    """

    protocol: Protocol
    select: Callable[[ProtocolMatch], Selection[T]]
    asks_for: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Waiting:
    """The result of `DispatchTable.decide` while the bytes allow no decision.

    Attributes:
        at: number of bytes from the start of the stream. Fewer bytes allow no decision either.
        is_matched: whether a protocol matches, although protocols that are asked earlier need more bytes. No
            earlier protocol has recognised its own traffic, so `DispatchTable.decide` with `final` returns
            the match.
    """

    at: int
    is_matched: bool


@dataclass(frozen=True, slots=True)
class Undecided:
    """The decision to refuse a client whose protocol is known, because no route is certain.

    Attributes:
        protocol: protocol that recognises the bytes.
        match: match of the protocol; None if the protocol has recognised only its own beginning.
        is_too_large: whether the choice of a route would need more bytes than the protocol reads. Otherwise,
            the bytes ended early, or `is_fault` is true.
        is_fault: whether the metadata of the match cannot be read, or has a wrong type.
    """

    protocol: Protocol
    match: ProtocolMatch | None
    is_too_large: bool
    is_fault: bool = False

    @property
    def reason(self) -> str:
        """The reason for the refusal, in the words of a log line."""
        name = self.protocol.name
        if self.is_fault:
            return f"undecided: the metadata of protocol {name} cannot be read"
        if self.is_too_large:
            return f"too large: the {self.protocol.max_bytes} bytes that protocol {name} reads name no route"
        return f"undecided: the bytes of protocol {name} end before they name a route"


Selection: TypeAlias = T | Literal[Verdict.NO, Verdict.NEED_MORE]
"""The result of `Candidate.select`."""
Decision: TypeAlias = tuple[T, ProtocolMatch] | Literal[Verdict.NO] | Undecided
"""A final result: an outcome with its match, `NO` if no protocol matches, or `Undecided`."""


class Answer(NamedTuple, Generic[T]):
    """The answer of one protocol to some bytes, for people who ask why a client got its route.

    Attributes:
        protocol: the protocol.
        said: the answer of the protocol itself, with a `NeedMore` for `NEED_MORE`. If the protocol raises an
            exception, returns an invalid answer, or cannot read its metadata, the exception is the answer.
        now: the result of `DispatchTable.decide` if the table had only this protocol.
        final: the same with the argument `final`. The first protocol whose `final` is not `NO` decides.
        is_asked: whether the table asks the protocol. If not, all prefixes of the protocol start with another
            byte.
    """

    protocol: Protocol
    said: Identification | BaseException
    now: Decision[T] | Waiting
    final: Decision[T]
    is_asked: bool = True


class DispatchTable(Generic[T]):
    """The protocols of one transport, strongest first, indexed by the first byte.

    Args:
        candidates: candidates in the order of the configuration, which decides between equal strengths.
        peek_buffer_size: largest count of bytes for which a weak protocol may ask. A stronger protocol may
            ask for up to `Protocol.max_bytes` bytes, because it has recognised the beginning of its bytes.
        faults: counts of exceptions and invalid answers by name of the protocol; a new counter by default.

    Attributes:
        bound: largest count of bytes on which an answer can depend.
        faults: the counter from the argument, or the new counter.
    """

    def __init__(
        self, candidates: Iterable[Candidate[T]], peek_buffer_size: int, faults: Faults | None = None
    ) -> None:
        entries = [
            _Entry(
                one.protocol.identify,
                # Without conditions the outcome is the same for every match.
                one.select if one.asks_for else None,
                NO if one.asks_for else one.select(ProtocolMatch()),
                _bound(one.protocol, peek_buffer_size),
                one.protocol,
            )
            for one in sorted(candidates, key=lambda candidate: candidate.protocol.strength)
        ]
        self._by_first_byte = [
            # The function precedes its entry: for the usual answer, `NO`, the loop needs only the function.
            tuple((entry.identify, entry) for entry in entries if _may_start_with(entry.protocol, first))
            for first in range(256)
        ]
        self._for_nothing = tuple((entry.identify, entry) for entry in entries if not entry.protocol.prefixes)
        self._entries = entries
        self.bound = max((entry.bound for entry in entries), default=0)
        self.faults = Faults() if faults is None else faults

    def decide(  # noqa: C901, PLR0912 - a call for a part of this loop would cost time for every connection
        self, data: bytes, *, final: bool = False
    ) -> Decision[T] | Waiting:
        """Return the decision, or `Waiting` while the bytes allow no decision.

        A protocol that is asked later wins only if each protocol that is asked earlier answers `NO`. At its
        bound, or if `final` is set, a protocol that needs more bytes counts as `NO`, unless the protocol has
        recognised the bytes: then the decision is `Undecided`.

        Args:
            data: all bytes so far; empty only for an empty datagram.
            final: whether no more bytes will follow: the data is a datagram, the deadline has passed, or the
                stream has ended. Then the result is never `Waiting`.
        """
        at = 0  # if positive, a protocol so far in the loop needs at least this number of bytes
        for identify, entry in self._by_first_byte[data[0]] if data else self._for_nothing:
            try:
                answer = identify(data)
                if answer is NO:
                    continue
                if isinstance(answer, ProtocolMatch):
                    if entry.select is None:
                        outcome = entry.outcome
                    else:
                        try:
                            outcome = entry.select(answer)
                        except BaseException as error:  # noqa: BLE001 - unreadable metadata decides nothing
                            self._note_unreadable(entry.protocol, error)
                            if at:
                                return Waiting(at, is_matched=False)
                            return Undecided(entry.protocol, None, is_too_large=False, is_fault=True)
                    if outcome is NO:
                        continue
                    if outcome is not NEED_MORE:
                        return Waiting(at, is_matched=True) if at else (outcome, answer)
                    needed, match = NeedMore(answer.pending_at, recognised=True), answer
                else:
                    needed, match = _needed(answer, entry.protocol), None
                next_at = max(needed.at, len(data) + 1)
            except BaseException as error:  # noqa: BLE001 - any exception of a plugin counts as `NO` here
                self._note_fault(entry.protocol, error)
                continue
            is_too_large = next_at > entry.bound
            if not (final or is_too_large):
                at = min(at or next_at, next_at)
            if needed.recognised:
                # This protocol or an earlier protocol decides, whatever the later protocols would answer.
                return Waiting(at, is_matched=False) if at else Undecided(entry.protocol, match, is_too_large)
        return Waiting(at, is_matched=False) if at else NO

    def explain(self, data: bytes) -> Iterator[Answer[T]]:
        """Yield the answer of each protocol to `data`, in the order in which the table asks the protocols."""
        asked = self._by_first_byte[data[0]] if data else self._for_nothing
        for entry in self._entries:
            if all(one is not entry for _, one in asked):
                yield Answer(entry.protocol, NO, NO, NO, is_asked=False)
                continue
            said = self._said(entry, data)
            alone = self._with_only(entry)
            final = alone.decide(data, final=True)
            assert not isinstance(final, Waiting)  # noqa: S101 - the question was final
            yield Answer(entry.protocol, said, alone.decide(data), final)

    def _said(self, entry: _Entry[T], data: bytes) -> Identification | BaseException:
        try:
            answer = entry.identify(data)
            if isinstance(answer, ProtocolMatch):
                if problems := list(problems_of_metadata(entry.protocol, answer)):
                    raise TypeError("; ".join(problems))  # noqa: TRY301 - counted as a fault
                metadata = {str.__str__(key): plain(value) for key, value in answer.metadata.items()}
                return ProtocolMatch(metadata, answer.pending, answer.pending_at)
            return NO if answer is NO else _needed(answer, entry.protocol)
        except BaseException as error:  # noqa: BLE001 - any exception of a plugin counts as `NO`
            self._note_fault(entry.protocol, error)
            return error

    def _with_only(self, entry: _Entry[T]) -> DispatchTable[T]:
        """Return this table with only one of its protocols. The new table counts faults separately."""
        table = copy(self)
        table.faults = Faults()
        only = ((entry.identify, entry),)
        table._by_first_byte = [only] * 256  # noqa: SLF001 - a copy of this table
        table._for_nothing = only  # noqa: SLF001
        return table

    def decided_at(self, data: bytes) -> int | None:
        """Return the number of first bytes that decide as all of `data` decides; None if `data` is too short.

        By the laws of `Protocol.identify`, all further bytes give the same decision.
        """
        sizes = range(1, len(data) + 1)
        at = bisect_left(sizes, True, key=lambda n: not isinstance(self.decide(data[:n]), Waiting))  # noqa: FBT003
        return sizes[at] if at < len(sizes) else None

    def unmet(self, data: bytes) -> tuple[str, ProtocolMatch] | None:
        """Return, for the log, the protocol that recognises bytes for which `decide` has returned `NO`.

        Returns:
            The name and the match of the first protocol that matches, although the match meets no condition;
            None if no protocol matches.
        """
        for identify, entry in self._by_first_byte[data[0]] if data else self._for_nothing:
            try:
                answer = identify(data)
                if isinstance(answer, ProtocolMatch):
                    if problems := list(problems_of_metadata(entry.protocol, answer)):
                        effect = "the log of this client does not get this metadata"
                        self.faults.note(
                            PROTOCOL + entry.protocol.name,
                            entry.protocol,
                            TypeError("; ".join(problems)),
                            effect,
                        )
                        answer = ProtocolMatch()
                    return entry.protocol.name, answer
            except BaseException as error:  # `decide` has counted the fault
                if is_interrupt(error):
                    raise
        return None

    def _note_unreadable(self, protocol: Protocol, error: BaseException) -> None:
        self.faults.note(PROTOCOL + protocol.name, protocol, error, "the client is refused")

    def _note_fault(self, protocol: Protocol, error: BaseException) -> None:
        self.faults.note(PROTOCOL + protocol.name, protocol, error, "the answer counts as no match")


class _Entry(NamedTuple, Generic[T]):
    """A candidate in the form for the loop that runs for every connection."""

    identify: Callable[[bytes], Identification]
    select: Callable[[ProtocolMatch], Selection[T]] | None
    outcome: Selection[T]
    bound: int
    protocol: Protocol


def _bound(protocol: Protocol, peek_buffer_size: int) -> int:
    if protocol.strength is Strength.WEAK:
        return min(protocol.max_bytes, peek_buffer_size)
    return protocol.max_bytes


def _needed(answer: object, protocol: Protocol) -> NeedMore:
    """Return, as a `NeedMore`, an answer that is neither `NO` nor a match.

    For a weak protocol, `recognised` is false.

    Raises:
        TypeError: the answer is not valid.
    """
    if answer is NEED_MORE:
        return _SOME
    if problems := list(problems_of_answer(answer)):
        raise TypeError("; ".join(problems))
    at, recognised = cast("NeedMore", answer)
    return NeedMore(at, recognised and protocol.strength is not Strength.WEAK)


def _may_start_with(protocol: Protocol, first: int) -> bool:
    return not protocol.prefixes or any(prefix[0] == first for prefix in protocol.prefixes)
