"""Warnings about a resolved configuration: valid settings that are probably mistakes.

`refractium.assembly.lint.rules` contains the rules. The other modules find the places that break the rules.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from refractium.assembly.lint import order, patterns, plugins, settings, targets
from refractium.assembly.lint.rules import RULES
from refractium.problems import Problem, unknown_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refractium.assembly.resolve import Resolved
    from refractium.assembly.sources import Overlaid
    from refractium.problems import Finding


def warnings(resolved: Resolved) -> Iterator[Problem]:
    """Yield a warning about each place that breaks a rule, unless the file ignores the rule there."""
    overlaid = resolved.overlaid
    everywhere = frozenset(overlaid.decoded.config.check.ignore)
    by_route = {path: everywhere.union(route.ignore) for path, route in overlaid.routes}
    in_the_file = chain(
        settings.long_peeks(overlaid),
        settings.wide_limits(overlaid.server),
        targets.doubtful_targets(resolved),
        order.doubtful_orders(resolved.routes, overlaid.listeners),
        patterns.doubtful_patterns(resolved),
        settings.beyond_descriptors(resolved),
        settings.without_backends(resolved),
        plugins.exposed(resolved.plugins),
    )
    for rule, where, message in in_the_file:
        if rule.code not in by_route.get(where.partition(".")[0], everywhere):
            yield overlaid.problem(where, message, rule.code)
    outside = chain(
        plugins.unknown_in_environment(resolved.plugins),
        plugins.broken(resolved.plugins),
        plugins.outdated(resolved.plugins),
    )
    for rule, where, message in outside:
        if rule.code not in everywhere:
            yield Problem(message, where, code=rule.code)


def unknown_codes(overlaid: Overlaid) -> Iterator[Finding]:
    """Yield each code in a key ``ignore`` that no rule has."""
    lists = [("check", overlaid.decoded.config.check.ignore)]
    lists += [(path, route.ignore) for path, route in overlaid.routes]
    for path, codes in lists:
        for at, code in enumerate(codes):
            if code not in RULES:
                yield f"{path}.ignore[{at}]", unknown_name(code, RULES)
