"""Conditions on metadata: the patterns of each kind of key, and the choice of a route by its conditions."""

from __future__ import annotations

from collections import defaultdict
from itertools import chain
from operator import or_
from typing import TYPE_CHECKING, Final, Generic, TypeAlias, TypeVar

from refractium.contract import NEED_MORE, NO, MetadataKind
from refractium.routing.names import NameIndex, NameRegex, compile_name, request_host, server_name
from refractium.routing.texts import TextIndex, TextPattern, is_exact

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

    from refractium.contract import MetadataValue, ProtocolMatch
    from refractium.identify import Selection

T = TypeVar("T")

ConditionPattern: TypeAlias = TextPattern
"""A pattern of a condition: a text, a flag or a `NameRegex`. The `MetadataKind` of the key tells which
wildcards a text may contain."""
Conditions: TypeAlias = "Mapping[str, tuple[ConditionPattern, ...]]"
"""The patterns by metadata key. A client must match one pattern of each key."""
_Index: TypeAlias = NameIndex | TextIndex


def condition_pattern(kind: MetadataKind, pattern: ConditionPattern) -> ConditionPattern:
    """Return a pattern in the form in which conditions compare it; host names are in lower case.

    Raises:
        ValueError: the pattern does not fit the kind of the key, or RE2 does not accept the regex.
    """
    if isinstance(pattern, bool):
        if kind not in {MetadataKind.FLAG, MetadataKind.ANY}:
            raise ValueError(f"the key is a {kind.value}: write a text in quotes")
        return pattern
    if not isinstance(pattern, str | NameRegex):
        raise ValueError(f"expected a text, a flag or a regex, got {type(pattern).__name__}")  # noqa: TRY004
    if kind is MetadataKind.FLAG:
        raise ValueError("the key is a flag: write true or false, without quotes")
    if kind is MetadataKind.HOST_NAME:
        return server_name(pattern)
    if kind is MetadataKind.HOST:
        return request_host(pattern)
    if isinstance(pattern, NameRegex):
        compile_name(pattern, ignore_case=False)
    elif not pattern:
        raise ValueError("is empty")
    return pattern


def written(pattern: ConditionPattern) -> str:
    """Return a pattern as in the configuration file, but a text without quotes."""
    return str(pattern).lower() if isinstance(pattern, bool) else str(pattern)


def _index(kind: MetadataKind, combine: Callable[[int, int], int]) -> _Index:
    return NameIndex(combine) if kind in _OF_HOSTS else TextIndex(kind, combine)


_OF_HOSTS: Final = frozenset({MetadataKind.HOST_NAME, MetadataKind.HOST})


class ConditionTable(Generic[T]):
    """The routes of a protocol by their conditions on metadata.

    A match selects a route whose conditions all hold. Among several such routes, the keys decide one after
    the other: for each key, the routes with the most specific pattern remain. The last choice is the first
    of the remaining routes.

    Args:
        kinds: the metadata keys of the protocol with their kinds, in the order of their comparison.
        routes: the conditions of each route, and the route. This order is the order of the regexes.
        preferred: the same routes, and the most preferred route first.

    Attributes:
        asks_for: the keys that the conditions read.
        select: function that returns the most specific route whose conditions a match meets. The result is
            `NO` if the match meets the conditions of no route, and `NEED_MORE` if a pending key could decide
            between two of these results. The function raises the exceptions of a protocol that cannot read
            its metadata, and `TypeError` for a value of another kind.
    """

    select: Callable[[ProtocolMatch], Selection[T]]

    def __init__(
        self,
        kinds: Mapping[str, MetadataKind],
        routes: Sequence[tuple[Conditions, T]],
        preferred: Sequence[T],
    ) -> None:
        self.asks_for = frozenset[str]().union(*(conditions for conditions, _ in routes))
        self._routes = preferred
        # For a single key, the best number is enough. For several keys, the bits of a number are a set of
        # routes, so that the intersection of two sets of 1,000 routes takes 50 ns.
        is_single = len(self.asks_for) == 1
        combine = min if is_single else or_
        self._indexes = [(key, _index(kind, combine)) for key, kind in kinds.items() if key in self.asks_for]
        rank = {route: at for at, route in enumerate(preferred)}
        for conditions, route in routes:
            number = rank[route] if is_single else 1 << rank[route]
            for key, index in self._indexes:
                for pattern in conditions.get(key, (None,)):
                    index.add(pattern, number)  # type: ignore[arg-type]  # the kind of the key decides
        if is_single:
            ((self._key, index),) = self._indexes
            self._index = index
            self._lookup = index.lookup
            self.select = self._select_by_one_key
        else:
            self.select = self._select_by_several_keys

    def _select_by_one_key(self, match: ProtocolMatch) -> Selection[T]:
        if self._key in match.pending:
            first = self._index.certain(match.metadata.get(self._key))
            # Another route can only win if a later text matches its pattern, and if it is more preferred.
            return self._routes[first] if first is not None and first == self._index.asking else NEED_MORE
        for number in self._lookup(match.metadata.get(self._key)):
            return self._routes[number]
        return NO

    def _select_by_several_keys(self, match: ProtocolMatch) -> Selection[T]:
        metadata = match.metadata
        if pending := self.asks_for & match.pending:
            return self._select_among_all(metadata, pending)
        found = -1  # every route
        for key, index in self._indexes:
            found = index.narrow(metadata.get(key), found)
            if not found:
                # A route with a less specific pattern for an earlier key may still meet all conditions.
                return self._select_among_all(metadata, pending)
        return self._first(found)

    def _select_among_all(
        self, metadata: Mapping[str, MetadataValue], pending: frozenset[str]
    ) -> Selection[T]:
        """Return the result of `select`, by first finding all routes whose conditions hold.

        A condition on a pending key may still hold. So the result needs more bytes if the best route that is
        possible has such a condition, and the condition is not certain to hold.
        """
        found = -1
        by_key: list[tuple[int, ...] | None] = []
        for key, index in self._indexes:
            if key in pending:
                by_key.append(None)
                continue
            numbers = tuple(index.lookup(metadata.get(key)))
            by_key.append(numbers)
            found &= _union(numbers)
        if not found:
            return NO
        certain = -1
        for (key, index), known in zip(self._indexes, by_key, strict=True):
            if known is not None:
                found &= next(number for number in known if found & number)
            elif asking := found & (index.asking or 0):
                certain &= index.certain(metadata.get(key)) or 0
                if not asking & certain:
                    return NEED_MORE
                found = asking
        return self._first(found) if found & -found & certain else NEED_MORE

    def _first(self, found: int) -> T:
        return self._routes[(found & -found).bit_length() - 1]


def _union(numbers: Sequence[int]) -> int:
    union = 0
    for number in numbers:
        union |= number
    return union


class Overlaps(Generic[T]):
    """Routes by their conditions, to find the routes that can be equal for a client.

    Two routes can be equal if they have conditions on the same keys, and a pattern in common for each key.
    """

    def __init__(self) -> None:
        self._added: list[tuple[Mapping[str, frozenset[Hashable]], T]] = []
        self._by_pattern: dict[Hashable, list[int]] = defaultdict(list)

    def add(self, group: Hashable, conditions: Mapping[str, Sequence[Hashable]], route: T) -> None:
        """Add a route. Only routes of the same group can be equal."""
        sets = {key: frozenset(patterns) for key, patterns in conditions.items()}
        for entry in chain.from_iterable(_entries(group, sets).values()):
            self._by_pattern[entry].append(len(self._added))
        self._added.append((sets, route))

    def equal_to(self, group: Hashable, conditions: Mapping[str, Sequence[Hashable]]) -> Iterator[T]:
        """Yield the routes that can be equal to a route, in the order in which they were added.

        Args:
            group: the group of the route.
            conditions: the conditions of the route.
        """
        sets = {key: frozenset(patterns) for key, patterns in conditions.items()}
        # The key with the fewest routes leaves the fewest routes to compare.
        found = min(
            (
                [self._by_pattern.get(entry, ()) for entry in entries]
                for entries in _entries(group, sets).values()
            ),
            key=lambda lists: sum(map(len, lists)),
        )
        # One list is in order already, and the caller often needs only its first route.
        for at in found[0] if len(found) == 1 else sorted({at for numbers in found for at in numbers}):
            others, route = self._added[at]
            if all(not patterns.isdisjoint(others[key]) for key, patterns in sets.items()):
                yield route


def _entries(group: Hashable, conditions: Mapping[str, frozenset[Hashable]]) -> Mapping[str, list[Hashable]]:
    """Return the entries of a route in an `Overlaps`, by key; one entry if the route has no conditions."""
    keys = frozenset(conditions)
    entries: dict[str, list[Hashable]] = {
        key: [(group, keys, key, pattern) for pattern in patterns] for key, patterns in conditions.items()
    }
    return entries or {"": [(group, keys)]}


def ranks(kinds: Mapping[str, MetadataKind], conditions: Conditions) -> Mapping[str, Sequence[Hashable]]:
    """Return conditions with an equal value for each two patterns that rank equal.

    Of a list of texts, two texts can match two exact patterns, which rank equal.
    """
    return {
        key: [_EXACT if kinds[key] in _OF_LISTS and is_exact(one) else one for one in patterns]
        for key, patterns in conditions.items()
    }


_EXACT: Final = object()
_OF_LISTS: Final = frozenset({MetadataKind.TEXTS, MetadataKind.ANY})
