"""The dispatch table, which asks the protocols of one transport in order of their strength.

The table is immutable and keeps no state of a connection: the caller asks again with all bytes when more have
come. By the laws of `Protocol.identify`, the answer is the same as for asking once with all bytes.
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
    """A protocol, and the outcome of its match.

    Attributes:
        protocol: protocol to ask.
        select: function that returns the outcome of a match, or `NO` if the match meets no condition. If
            `asks_for` is empty, it is called once, when the table is made.
        asks_for: metadata keys that `select` reads. While a match has one of them pending, the table asks for
            more bytes.
    """

    protocol: Protocol
    select: Callable[[ProtocolMatch], T | Literal[Verdict.NO]]
    asks_for: frozenset[str] = frozenset()


class Table(Generic[T]):
    """The protocols of one transport, strongest first, indexed by the first byte.

    Args:
        candidates: candidates in the order of the configuration, which decides between equal strengths.
        peek_buffer_size: count of bytes for which a weak protocol may ask. A stronger protocol may read on to
            its `Protocol.max_bytes`: if it has not said no by then, it has recognised its own beginning.
        faults: counts, by name of the protocol, of exceptions and invalid answers; a new counter by default.

    Attributes:
        bound: largest count of bytes on which any answer can depend.
        faults: the counter of the argument, or the new one.
    """

    def __init__(
        self, candidates: Iterable[Candidate[T]], peek_buffer_size: int, faults: Counter[str] | None = None
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
            # The function stands beside its entry, because the usual answer, a no, needs only the function.
            tuple((entry.identify, entry) for entry in entries if _may_start_with(entry.protocol, first))
            for first in range(256)
        ]
        self._for_nothing = tuple((entry.identify, entry) for entry in entries if not entry.protocol.prefixes)
        self._entries = entries
        self.bound = max((entry.bound for entry in entries), default=0)
        self.faults: Counter[str] = Counter() if faults is None else faults

    def decide(self, data: bytes, *, final: bool = False) -> tuple[T, ProtocolMatch] | Verdict:
        """Return the decision as soon as the bytes allow one.

        Args:
            data: all bytes so far; empty only for an empty datagram.
            final: whether nothing will follow: the data is a datagram, or the deadline or the end of the
                stream has come. Then `NEED_MORE` counts as `NO`, and conditions on pending keys are not met.

        Returns:
            The outcome with the match that led to it; `NO` if nothing can match any more; `NEED_MORE` if a
            protocol that is asked earlier than every match so far has not said no. `NEED_MORE` is never
            returned if `final` is set.
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
                    raise TypeError(f'"{answer}" is not an answer')  # noqa: TRY301 - counted as a fault
                if entry.select is None:
                    outcome = entry.outcome
                elif entry.asks_for & answer.pending and not final and len(data) < entry.bound:
                    return NEED_MORE
                else:
                    outcome = entry.select(answer)
                if outcome is not NO:
                    return outcome, answer
            except Exception as error:  # noqa: BLE001 - any exception of a plugin is a no for this connection
                self._note_fault(entry.protocol, data, error)
        return NO

    def explain(self, data: bytes) -> Iterator[tuple[Protocol, Identification]]:
        """Yield each protocol with its own answer to `data`, in the order in which protocols are asked."""
        for entry in self._entries:
            try:
                yield entry.protocol, entry.identify(data)
            except Exception as error:  # noqa: BLE001 - any exception of a plugin is a no
                self._note_fault(entry.protocol, data, error)
                yield entry.protocol, NO

    def _note_fault(self, protocol: Protocol, data: bytes, error: Exception) -> None:
        """Count a fault. Log only the first fault of each protocol, because a client can cause thousands."""
        self.faults[protocol.name] += 1
        if self.faults[protocol.name] == 1:
            log.error(
                "protocol %s failed on %d bytes, which counts as no match; its next failures are not logged",
                protocol.name,
                len(data),
                exc_info=error,
            )


class _Entry(NamedTuple, Generic[T]):
    """A candidate, laid out for the loop that runs for every connection."""

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
