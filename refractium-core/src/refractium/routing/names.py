"""Patterns for host names that clients ask for, such as TLS server names and hosts of requests."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

from msgspec import Meta, Struct

from refractium.addresses.address import is_host_name
from refractium.identify.re2_engine import RefusedRegexError, compile_regex

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from refractium.contract import MetadataValue

_LONGEST: Final = 253
"""Number of characters of the longest host name (RFC 1035 section 2.3.4). A longer name from a client matches
neither ``**.`` nor a regex, which bounds the time of a lookup."""
_FORMS: Final = (
    "a wildcard is the whole first label: *.example.org for one label, **.example.org for any depth; "
    "for other names, write { regex = '...' }"
)


class NameRegex(Struct, frozen=True, forbid_unknown_fields=True):
    """A regular expression for names and texts, in the syntax of RE2.

    The whole name or text must match. Case does not matter in host names, and matters in other texts. The
    package google-re2 is required.
    """

    regex: Annotated[
        str,
        Meta(min_length=1, description="A regular expression that must match the whole text, in RE2 syntax."),
    ]

    def __str__(self) -> str:
        return f"{{ regex = '{self.regex}' }}"


NamePattern: TypeAlias = "str | NameRegex"
"""A name; ``*.`` and a name, for one label before the name; ``**.`` and a name, for one or more labels; or a
`NameRegex`."""


def server_name(pattern: NamePattern) -> NamePattern:
    """Return a pattern for TLS server names in lower case, without a final dot (RFC 6066 section 3).

    Raises:
        ValueError: the pattern is neither a host name nor a wildcard with a host name, or RE2 does not accept
            the regex.
    """
    if isinstance(pattern, NameRegex):
        compile_name(pattern)
        return pattern
    if not pattern.isascii():
        raise ValueError("a server name must be ASCII: write its xn-- form")
    name = pattern.lower().removesuffix(".")
    bare = name.removeprefix("**.") if name.startswith("**.") else name.removeprefix("*.")
    if "*" in bare:
        raise ValueError(_FORMS)
    if not is_host_name(bare):
        raise ValueError("not a host name: server names are like example.org or *.example.org")
    return name


def request_host(pattern: NamePattern) -> NamePattern:
    """Return a pattern for hosts in the form that requests contain, in lower case.

    A host is a pattern that `server_name` accepts, or an IP address. An IPv6 address stands in brackets
    (RFC 3986 section 3.2.2). Clients send an IPv6 address in its short form (RFC 5952 section 4).

    Raises:
        ValueError: the text is neither a pattern that `server_name` accepts nor an IP address.
    """
    if isinstance(pattern, NameRegex):
        return server_name(pattern)
    bare = pattern[1:-1] if pattern.startswith("[") and pattern.endswith("]") else pattern
    try:
        ip = ip_address(bare)
    except ValueError:
        if ":" in pattern:
            raise ValueError("write a host without a port, and an IPv6 address in brackets: [::1]") from None
        return server_name(pattern)
    if (ip.version == 6) != (bare is not pattern):  # noqa: PLR2004 - the version number of IPv6
        raise ValueError("brackets belong to an IPv6 address: [::1]")
    return pattern if ip.version == 4 else f"[{ip}]"  # noqa: PLR2004 - the version number of IPv4


def compile_name(pattern: NameRegex, *, ignore_case: bool = True) -> Any:
    """Compile a regex for names or texts. The method `fullmatch` of the result expects a text as UTF-8.

    Raises:
        ValueError: RE2 is not installed, or does not accept the regex.
    """
    try:
        expression = pattern.regex.encode()
        return compile_regex(expression, latin1=False, ignore_case=ignore_case)
    except UnicodeEncodeError:
        raise ValueError("a regex for names must be Unicode text") from None
    except RefusedRegexError as error:
        raise ValueError(f"it is not a valid regex for RE2: {error}") from error


class NameIndex:
    """Numbers by the pattern of a host name.

    A lookup takes the same time for any number of patterns without a regex, and tries each regex.

    Args:
        combine: function that combines two numbers of the same pattern.
    """

    def __init__(self, combine: Callable[[int, int], int]) -> None:
        self._combine = combine
        self._exact: dict[str, int] = {}
        self._one_label: dict[str, int] = {}
        self._any_depth: dict[str, int] = {}
        self._regexes: dict[NameRegex, tuple[Any, int]] = {}
        self._has_patterns = False
        self.rest: int | None = None
        """The number for all clients, with or without a name; None if there is no such number."""
        self.asking: int | None = None
        """The combination of the numbers of all patterns; None without a pattern."""

    def add(self, pattern: NamePattern | None, number: int) -> None:
        """Add a number for a pattern; None stands for all clients, with or without a name.

        A lookup tries regexes in the order of these calls.
        """
        if pattern is None:
            self.rest = number if self.rest is None else self._combine(self.rest, number)
            return
        self.asking = number if self.asking is None else self._combine(self.asking, number)
        if isinstance(pattern, NameRegex):
            self._has_patterns = True
            if (known := self._regexes.get(pattern)) is None:
                self._regexes[pattern] = compile_name(pattern).fullmatch, number
            else:
                self._regexes[pattern] = known[0], self._combine(known[1], number)
        elif pattern.startswith("**."):
            self._has_patterns = True
            self._put(self._any_depth, pattern[3:], number)
        elif pattern.startswith("*."):
            self._put(self._one_label, pattern[2:], number)
        else:
            self._put(self._exact, pattern, number)

    def _put(self, table: dict[str, int], name: str, number: int) -> None:
        table[name] = self._combine(table[name], number) if name in table else number

    def lookup(self, name: MetadataValue | None) -> Iterator[int]:
        """Yield the numbers that apply to `name`, the number of the most specific pattern first.

        The order is: the exact name, ``*.``, ``**.`` with the longest suffix first, regexes, no name.

        Raises:
            TypeError: `name` is neither a string nor None.
        """
        if isinstance(name, str):
            if name in self._exact:
                yield self._exact[name]
            label, _, parent = name.partition(".")
            if parent in self._one_label and label:
                yield self._one_label[parent]
            if self._has_patterns and len(name) <= _LONGEST:
                yield from self._lookup_patterns(name)
        elif name is not None:
            raise TypeError(f"a host name in the metadata is {type(name).__name__}, not str")
        if self.rest is not None:
            yield self.rest

    def narrow(self, name: MetadataValue | None, found: int) -> int:
        """Return the intersection of `found` with the first number that `lookup` yields and that intersects.

        The numbers are sets of bits. The result is 0 if there is no such number.
        """
        if isinstance(name, str):
            if (exact := self._exact.get(name)) is not None and (left := found & exact):
                return left
            if not (self._one_label or self._has_patterns):
                return found & (self.rest or 0)
        return next((left for number in self.lookup(name) if (left := found & number)), 0)

    def certain(self, _: MetadataValue | None) -> int | None:
        """Return None: while a name can still arrive, no condition on the name is certain to hold."""
        return None

    def _lookup_patterns(self, name: str) -> Iterator[int]:
        at = name.find(".") if self._any_depth else -1
        while at > 0:
            if (suffix := name[at + 1 :]) in self._any_depth:
                yield self._any_depth[suffix]
            at = name.find(".", at + 1)
        if self._regexes:
            text = name.encode(errors="replace")
            for fullmatch, number in self._regexes.values():
                if fullmatch(text):
                    yield number
