"""The dispatch table, which asks the protocols of one transport in order of their strength.

The table is immutable and keeps no state of a connection: after more bytes have arrived, the caller asks
again with all bytes. By the laws of `Protocol.identify`, the last answer is the same as the answer to one
question with all bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, NamedTuple, TypeVar

from refractium.contract import NEED_MORE, NO, Identification, Protocol, ProtocolMatch, Strength, Verdict
from refractium.contract.protocol import problems_of_metadata
from refractium.contract.words import shown
from refractium.faults import PROTOCOL, Faults, is_interrupt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Candidate(Generic[T]):
    """A protocol, and a function that chooses the result of the table when the protocol matches.

    Attributes:
        protocol: protocol to ask.
        select: function that returns the result for a match, or `NO` if the match meets no condition. If
            `asks_for` is empty, the table calls `select` only once, when the table is made.
        asks_for: metadata keys that `select` reads. While one of these keys is pending in a match, the table
            asks for more bytes.
    """

    protocol: Protocol
    select: Callable[[ProtocolMatch], T | Literal[Verdict.NO]]
    asks_for: frozenset[str] = frozenset()


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
                one.asks_for,
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

    def decide(self, data: bytes, *, final: bool = False) -> tuple[T, ProtocolMatch] | Verdict:
        """Return the decision, or `NEED_MORE` while the bytes allow no decision.

        Args:
            data: all bytes so far; empty only for an empty datagram.
            final: whether no more bytes will follow: the data is a datagram, the deadline has passed, or the
                stream has ended. Then `NEED_MORE` counts as `NO`, and conditions on pending keys are not met.

        Returns:
            The outcome and its match; `NO` if no protocol can match any more; `NEED_MORE` if a protocol needs
            more bytes, and no protocol that is asked earlier matches. If `final` is set, the result is never
            `NEED_MORE`.
        """
        for identify, entry in self._by_first_byte[data[0]] if data else self._for_nothing:
            try:
                answer = identify(data)
                if answer is NO:
                    continue
                if answer is NEED_MORE:
                    if final or len(data) >= entry.bound:
                        continue
                    return NEED_MORE
                if not isinstance(answer, ProtocolMatch):
                    raise _not_an_answer(answer)  # noqa: TRY301 - counted as a fault
                if entry.select is None:
                    outcome = entry.outcome
                elif entry.asks_for & answer.pending and not final and len(data) < entry.bound:
                    return NEED_MORE
                else:
                    outcome = entry.select(answer)
                if outcome is not NO:
                    return outcome, answer
            except BaseException as error:  # noqa: BLE001 - any exception of a plugin counts as `NO` here
                self._note_fault(entry.protocol, error)
        return NO

    def explain(self, data: bytes) -> Iterator[tuple[Protocol, Identification | BaseException]]:
        """Yield each protocol with its own answer to `data`, in the order in which protocols are asked.

        The answer is the exception if the protocol raises an exception, returns an object that is no answer,
        or cannot read its metadata.
        """
        for entry in self._entries:
            answer: Identification | BaseException
            try:
                answer = entry.identify(data)
                if isinstance(answer, ProtocolMatch):
                    if problems := list(problems_of_metadata(entry.protocol, answer)):
                        raise TypeError("; ".join(problems))  # noqa: TRY301 - counted as a fault
                elif answer is not NO and answer is not NEED_MORE:
                    raise _not_an_answer(answer)  # noqa: TRY301 - counted as a fault
            except BaseException as error:  # noqa: BLE001 - any exception of a plugin counts as `NO`
                self._note_fault(entry.protocol, error)
                answer = error
            yield entry.protocol, answer

    def unmet(self, data: bytes) -> tuple[str, ProtocolMatch] | None:
        """Return the protocol of bytes for which `decide` has returned `NO`, for the log.

        Returns:
            The name and the match of the first protocol that matches, although the match meets no condition;
            None if no protocol matches.
        """
        for identify, entry in self._by_first_byte[data[0]] if data else self._for_nothing:
            try:
                answer = identify(data)
            except BaseException as error:  # `decide` has counted the fault
                if is_interrupt(error):
                    raise
                continue
            if isinstance(answer, ProtocolMatch):
                return entry.protocol.name, answer
        return None

    def _note_fault(self, protocol: Protocol, error: BaseException) -> None:
        self.faults.note(PROTOCOL + protocol.name, protocol, error, "the answer counts as no match")


class _Entry(NamedTuple, Generic[T]):
    """A candidate in the form for the loop that runs for every connection."""

    identify: Callable[[bytes], Identification]
    select: Callable[[ProtocolMatch], T | Literal[Verdict.NO]] | None
    asks_for: frozenset[str]
    outcome: T | Literal[Verdict.NO]
    bound: int
    protocol: Protocol


def _not_an_answer(answer: object) -> TypeError:
    return TypeError(f"{shown(answer)} is not an answer")


def _bound(protocol: Protocol, peek_buffer_size: int) -> int:
    if protocol.strength is Strength.WEAK:
        return min(protocol.max_bytes, peek_buffer_size)
    return protocol.max_bytes


def _may_start_with(protocol: Protocol, first: int) -> bool:
    return not protocol.prefixes or any(prefix[0] == first for prefix in protocol.prefixes)
