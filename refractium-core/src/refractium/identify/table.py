"""The dispatch table: asks the right protocols in the right order.

It is immutable and keeps nothing of a connection: whoever holds the bytes asks again when there are more.
The laws of `Protocol.identify` make that the same as asking once with all of them.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, NamedTuple, TypeVar

from refractium.contract import NEED_MORE, NO, Identification, Protocol, ProtocolMatch, Strength, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Candidate(Generic[T]):
    """A protocol and what its match leads to.

    Attributes:
        protocol: the protocol to ask.
        select: from a match to the outcome, or `NO` if it meets no condition. Where it asks for nothing it is
            called once, when the table is made.
        asks_for: the metadata keys that `select` looks at; while a match has one of them pending, more bytes
            are waited for.
    """

    protocol: Protocol
    select: Callable[[ProtocolMatch], T | Literal[Verdict.NO]]
    asks_for: frozenset[str] = frozenset()


class Table(Generic[T]):
    """The protocols of one transport, strongest first, indexed by the first byte.

    Args:
        candidates: in the order of the configuration, which decides among equals in strength.
        peek_buffer_size: how many bytes a weak protocol may inspect; the others have recognised their own
            beginning if they have not said no by then, and may read on to their `Protocol.max_bytes`.
        faults: how often each protocol (by name) raised instead of answering; counted on.

    Attributes:
        bound: the most bytes (count) that any answer can depend on.
        faults: the same as the argument, or counted from here on.
    """

    def __init__(
        self, candidates: Iterable[Candidate[T]], peek_buffer_size: int, faults: Counter[str] | None = None
    ) -> None:
        entries = [
            _Entry(
                one.protocol.identify,
                # What asks for nothing is the same for every match.
                one.select if one.asks_for else None,
                one.asks_for,
                NO if one.asks_for else one.select(ProtocolMatch()),
                _bound(one.protocol, peek_buffer_size),
                one.protocol,
            )
            for one in sorted(candidates, key=lambda candidate: candidate.protocol.strength)
        ]
        self._by_first_byte = [
            # The function stands beside its entry because a no, the usual answer, needs nothing else.
            tuple((entry.identify, entry) for entry in entries if _may_start_with(entry.protocol, first))
            for first in range(256)
        ]
        self._for_nothing = tuple((entry.identify, entry) for entry in entries if not entry.protocol.prefixes)
        self._entries = entries
        self.bound = max((entry.bound for entry in entries), default=0)
        self.faults: Counter[str] = Counter() if faults is None else faults

    def decide(self, data: bytes, *, final: bool = False) -> tuple[T, ProtocolMatch] | Verdict:
        """Decide as soon as it can be decided.

        Args:
            data: all bytes so far; none only for an empty datagram.
            final: nothing will follow: a datagram, or the deadline or the end has come. Every "need more" is
                a no then, and conditions on what is still pending are not met.

        Returns:
            The outcome with the match it rests on; `NO` if nothing can match any more; `NEED_MORE` (never if
            final) if something ahead of every match so far has not said no.
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
                    raise TypeError(f"{answer!r} is not an answer")  # noqa: TRY301 - a fault like any other
                if entry.select is None:
                    outcome = entry.outcome
                elif entry.asks_for & answer.pending and not final and len(data) < entry.bound:
                    return NEED_MORE
                else:
                    outcome = entry.select(answer)
                if outcome is not NO:
                    return outcome, answer
            except Exception as error:  # noqa: BLE001 - whatever a plugin does, it is a no for this connection
                self._note_fault(entry.protocol, data, error)
        return NO

    def explain(self, data: bytes) -> Iterator[tuple[Protocol, Identification]]:
        """Every protocol's own answer to `data`, in the order in which they are asked."""
        for entry in self._entries:
            try:
                yield entry.protocol, entry.identify(data)
            except Exception as error:  # noqa: BLE001 - as above
                self._note_fault(entry.protocol, data, error)
                yield entry.protocol, NO

    def _note_fault(self, protocol: Protocol, data: bytes, error: Exception) -> None:
        """Count each; log the first of each protocol, since any client can cause thousands."""
        self.faults[protocol.name] += 1
        if self.faults[protocol.name] == 1:
            log.error(
                "protocol %s failed on %d bytes; taken as a no, here and from now on silently",
                protocol.name,
                len(data),
                exc_info=error,
            )


class _Entry(NamedTuple, Generic[T]):
    """A candidate, laid out for the loop that every connection goes through."""

    identify: Callable[[bytes], Identification]
    select: Callable[[ProtocolMatch], T | Literal[Verdict.NO]] | None
    asks_for: frozenset[str]
    outcome: T | Literal[Verdict.NO]
    bound: int
    protocol: Protocol


def _bound(protocol: Protocol, peek_buffer_size: int) -> int:
    if protocol.strength is Strength.WEAK:
        return min(protocol.max_bytes, peek_buffer_size)
    return protocol.max_bytes


def _may_start_with(protocol: Protocol, first: int) -> bool:
    return not protocol.prefixes or any(prefix[0] == first for prefix in protocol.prefixes)
