"""Judgement of a resolved configuration: the problems that make it unusable.

`refractium.routing.judge` contains the rules for routes, which also apply to the routes of a program. This
module adds the rules for the other settings of a configuration file, and for flags. The package
`refractium.assembly.lint` contains the rules for valid settings that are probably mistakes.
"""

from __future__ import annotations

from itertools import chain, islice
from typing import TYPE_CHECKING

from refractium.assembly.lint import unknown_codes
from refractium.assembly.lint.plugins import broken
from refractium.assembly.sources import DEFAULT_FILE
from refractium.config.decode import MAX_FINDINGS
from refractium.hooks import against_several, used
from refractium.problems import Problem
from refractium.routing.judge import judge as judge_routes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refractium.assembly.resolve import Resolved
    from refractium.assembly.sources import Overlaid
    from refractium.config.model import Listeners
    from refractium.contract import Transport
    from refractium.plugins.installed import Plugins
    from refractium.problems import Finding


def problems(resolved: Resolved) -> Iterator[Problem]:
    """Yield the problems of all steps. Each problem makes the configuration unusable."""
    overlaid = resolved.overlaid
    found = list(resolved.problems)
    names = {name for _, route in overlaid.routes for name in (route.label, route.name)}
    rules = [(path, listener.rules) for path, listener in overlaid.listeners]
    findings = chain(
        unknown_codes(overlaid),
        _same_address(overlaid.listeners),
        judge_routes(resolved.routes, rules, names),
        _against_workers(resolved),
    )
    found += [overlaid.problem(*finding) for finding in islice(findings, MAX_FINDINGS)]
    found += _at_files(overlaid, resolved.plugins)
    if overlaid.overrides.strict_plugins:
        found += [Problem(one.message, one.where) for one in broken(resolved.plugins)]
    if not (found or resolved.routes):
        found.append(_nothing_to_do(overlaid, resolved.plugins))
    yield from found


def _same_address(listeners: Listeners) -> Iterator[Finding]:
    first: dict[tuple[str, Transport], str] = {}
    for path, listener in listeners:
        rivals = {first.setdefault((listener.name, one), path) for one in listener.transports} - {path}
        if rivals:
            yield path, f"has the same address as {rivals.pop()}: put both listeners into one"


def _against_workers(resolved: Resolved) -> Iterator[Finding]:
    if resolved.overlaid.server.worker_count > 1:
        hooks = chain(resolved.hooks, *(route.hooks for _, route in resolved.routes))
        for reason in against_several(list(map(used, hooks))):
            yield "server.workers", reason


def _nothing_to_do(overlaid: Overlaid, plugins: Plugins) -> Problem:
    if not plugins.protocols:
        return Problem(plugins.explain_nothing())
    if overlaid.decoded.source.name:
        return overlaid.problem("protocols", "no routes: add [[protocols]] with a name and forward_to")
    return Problem(
        f"no routes: there is no {DEFAULT_FILE} here; `refractium init` writes one, or give -f NAME=HOST:PORT"
    )


def _at_files(overlaid: Overlaid, plugins: Plugins) -> Iterator[Problem]:
    """Yield a problem for each file that cannot be a local plugin, and that is not blocked."""
    blocked = {one.id for one in plugins.entries if one.status == "blocked"}
    for file in plugins.files:
        if file.problem and file.id not in blocked:
            yield overlaid.problem(file.where, file.problem)
