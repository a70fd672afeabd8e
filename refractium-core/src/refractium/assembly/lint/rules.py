"""The rules about valid settings that are probably mistakes, each with its code, meaning and remedy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule for configurations. A configuration that breaks the rule can be served, and causes a warning.

    Attributes:
        code: the name of the rule in warnings and in the keys ``ignore``. It never changes.
        finds: what the rule finds, as a noun with a clause.
        remedy: what to do.
    """

    code: str
    finds: str
    remedy: str


class Warned(NamedTuple):
    """A place at which a configuration breaks a rule.

    Attributes:
        rule: the rule.
        where: the key path, or the flag.
        message: the mistake and its remedy, in one line.
    """

    rule: Rule
    where: str
    message: str


UNREACHABLE_ROUTE: Final = Rule(
    "unreachable-route",
    "a route that no client reaches, because all of its clients go to other routes, or because each listener "
    "of the route refuses them",
    "move the route above the other route, or change its conditions",
)
UNREACHABLE_CONDITION: Final = Rule(
    "unreachable-condition",
    "an entry in a list of conditions by which no client reaches the route, because other routes get these "
    "clients",
    "remove the entry, or move the route above the other route",
)
OVERLAPPING_ROUTES: Final = Rule(
    "overlapping-routes",
    "two routes of a protocol with conditions on different keys, of which a client can match both; the order "
    "of the keys decides, not the order of the file",
    "if these clients belong to the other route, add a route with the conditions of both",
)
REFUSING_ROUTE: Final = Rule(
    "refusing-route",
    "a route whose `allow` and `deny` refuse every client that matches the route",
    'change `allow` and `deny`, or write `action = "reject"`',
)
UNSERVED_ROUTE: Final = Rule(
    "unserved-route",
    "a route or fallback that no listener serves, over any of its transports",
    "add the route to `routes` of a listener, or remove the route",
)
WEAK_BEFORE_STRONG: Final = Rule(
    "weak-before-strong",
    "a route whose protocol is asked before the protocol of an earlier route, because its evidence is "
    "stronger",
    "move the route above the earlier route, so that the file has the order in which protocols are asked",
)
SILENT_CLIENTS: Final = Rule(
    "silent-clients",
    "a route that takes silent clients by its protocol or `on_timeout`, on a listener whose silent clients "
    "go to another route",
    "write `on_timeout = false` in one of the two routes, or serve them on different listeners",
)
SHADOWED_PATTERN: Final = Rule(
    "shadowed-pattern",
    "a pattern whose bytes at the start of a client's data match a pattern of another route, which is asked "
    "first and gets these clients",
    "change one of the two patterns",
)
PATTERN_TAKES_PROTOCOL: Final = Rule(
    "pattern-takes-protocol",
    "a pattern that matches a first message of another protocol of the listener and is asked before this "
    "protocol; the samples in the plugins are the first messages",
    "write bytes with which no client of the other protocol begins",
)
SHORT_PATTERN: Final = Rule(
    "short-pattern",
    "a text or `hex` of less than three bytes beside other routes of the listener: other clients can contain "
    "it by chance, and stronger protocols are asked first",
    "write at least three bytes, at a fixed place",
)
DELAYED_MESSAGE: Final = Rule(
    "delayed-message",
    "a short first message that waits for `peek_grace_ms`, because a protocol that is asked first, such as "
    "DNS over TCP, needs more bytes",
    "serve the two routes on different listeners, or lower `peek_grace_ms`",
)
TOO_FEW_DESCRIPTORS: Final = Rule(
    "too-few-descriptors",
    "a changed `max_connections` or `max_udp_sessions` that the descriptor limit of the processes "
    "(`RLIMIT_NOFILE`) does not allow: a connection needs two descriptors, and UDP "
    "sessions get a third of the descriptors",
    "raise the limit (`LimitNOFILE` of systemd), start more `workers`, or lower the value",
)
NO_BACKEND: Final = Rule(
    "no-backend",
    "a file in which no route has a backend and no fallback is set",
    "add a route with `forward_to`, or set `fallback_tcp`",
)
OWN_ADDRESS: Final = Rule(
    "own-address",
    "a backend or fallback that is a listener of Refractium itself for the same transport; Refractium never "
    "connects to its own listener",
    "write the address of the backend",
)
REPEATED_BACKEND: Final = Rule(
    "repeated-backend",
    "a backend that one route contains twice",
    "give the backend a `weight`",
)
LONG_PEEK_TIMEOUT: Final = Rule(
    "long-peek-timeout",
    "a `peek_timeout_ms` above 5000, with which silent clients can hold many connections open",
    "lower the value",
)
WIDE_LIMIT: Final = Rule(
    "wide-limit",
    "a `max_connections_per_ip` above 200, or a limit for each client address that is not below the limit "
    "for all clients",
    "lower the limit for each client address",
)
BROKEN_PLUGIN: Final = Rule(
    "broken-plugin",
    "an installed plugin that did not load",
    "update, uninstall or `disable` the plugin",
)
OUTDATED_PLUGIN: Final = Rule(
    "outdated-plugin",
    "a plugin that still runs, although another version has been installed since",
    "restart Refractium",
)
UNKNOWN_PLUGIN: Final = Rule(
    "unknown-plugin",
    "an id in `REFRACTIUM_DISABLE_PLUGINS` that no installed plugin has",
    "correct or remove the id",
)
UNREADABLE_FILE: Final = Rule(
    "unreadable-file",
    "a configuration file or local plugin that the configured `user` cannot read, so that every reload fails",
    "let that user or its group read the file",
)

EXPOSED_PLUGIN: Final = Rule(
    "exposed-plugin",
    "a local plugin that other users can change: they own the file or a folder above it, or may write to it",
    "let only root or the user of Refractium own the file and its folders, and run `chmod go-w`",
)

_ALL: Final[Sequence[Rule]] = (
    UNREACHABLE_ROUTE,
    UNREACHABLE_CONDITION,
    OVERLAPPING_ROUTES,
    REFUSING_ROUTE,
    UNSERVED_ROUTE,
    WEAK_BEFORE_STRONG,
    SILENT_CLIENTS,
    SHADOWED_PATTERN,
    PATTERN_TAKES_PROTOCOL,
    SHORT_PATTERN,
    DELAYED_MESSAGE,
    TOO_FEW_DESCRIPTORS,
    NO_BACKEND,
    OWN_ADDRESS,
    REPEATED_BACKEND,
    LONG_PEEK_TIMEOUT,
    WIDE_LIMIT,
    BROKEN_PLUGIN,
    OUTDATED_PLUGIN,
    UNKNOWN_PLUGIN,
    UNREADABLE_FILE,
    EXPOSED_PLUGIN,
)
RULES: Final = {rule.code: rule for rule in _ALL}
"""Each rule, by its code, in the order of the reference."""
