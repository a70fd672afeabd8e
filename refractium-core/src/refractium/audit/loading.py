"""The import of the plugin, and the objects that the plugin provides, each judged by its own rules.

`refractium.plugins.loading` loads a plugin as a whole or not at all. Here, a fault is a finding, and the
check goes on with the sound objects.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import pluggy
from importlib_metadata import EntryPoint, entry_points

from refractium.contract import API_VERSION, ENTRY_POINT_GROUP, hookspecs
from refractium.contract.words import shown
from refractium.guard.faults import text_of
from refractium.plugins.installed import Given
from refractium.plugins.loading import HOOKSPECS, built_in, load_plugins
from refractium.scaffold import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refractium.audit.effects import Effects
    from refractium.audit.report import Job, Report
    from refractium.plugins.installed import InstalledPlugin

_CORE: Final = (
    "refractium.cli.serve",
    "refractium.daemon.run",
    "refractium.plugins.loading",
    "refractium.backends.checks",
)
"""The modules that a run of Refractium imports, and with them the rest of the core."""


def import_core() -> None:
    """Import what a run of Refractium imports, so that a plugin is not blamed for the import."""
    for module in _CORE:
        import_module(module)


def load(job: Job, report: Report, effects: Effects) -> Given:
    """Import the plugin, call its hookspecs, and return the objects that keep the contract."""
    subject = f"plugin '{job.id}'"
    sys.path[:0] = job.path
    sys.pycache_prefix, sys.dont_write_bytecode = job.cache, False
    report.stage(subject, f"import of {job.value}")
    with effects.watched() as found, warnings.catch_warnings(action="ignore"):
        implementation = _imported(job, report, subject)
        given = Given() if implementation is None else _given(job, implementation, report, subject)
    for effect, text in found.items():
        report.broken(f"import-{effect}", subject, text)
    return given


def _imported(job: Job, report: Report, subject: str) -> object:
    """Return the object to which the entry point leads, or None."""
    entry_point = EntryPoint(name=job.id, value=job.value, group=ENTRY_POINT_GROUP)
    try:
        module, attribute = entry_point.module, entry_point.attr
    except Exception:  # noqa: BLE001 - a malformed value, for which each version raises another exception
        report.broken("entry-point", subject, f'the entry point has the value "{job.value}"')
        return None
    try:
        implementation: object = entry_point.load()
    except BaseException as error:  # noqa: BLE001 - the code of a plugin may raise any exception
        absent = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
        if absent or (isinstance(error, AttributeError) and _lacks(module, attribute)):
            report.broken("entry-point", subject, f'"{job.value}": {text_of(error)}')
        else:
            report.raised("import-fails", subject, error, "at the import")
        return None
    version = getattr(implementation, "refractium_api_version", API_VERSION)
    if version != API_VERSION:
        found = f"refractium_api_version is {shown(version)}, and the contract has version {API_VERSION}"
        report.broken("api-version", subject, found)
    return implementation


def _lacks(module: str, attribute: str | None) -> bool:
    """Return whether a module is imported and lacks an attribute; None asks for no attribute."""
    value: object = sys.modules.get(module)
    if value is None or attribute is None:
        return False
    for name in attribute.split("."):
        value = getattr(value, name, None)
    return value is None


def _given(job: Job, implementation: object, report: Report, subject: str) -> Given:
    manager = pluggy.PluginManager("refractium")
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(implementation, job.id)
        manager.check_pending()
    except BaseException as error:  # noqa: BLE001 - registration reads the attributes of the plugin
        report.broken("hookspec", subject, text_of(error))
        return Given()
    given: list[tuple[Any, ...]] = []
    answers = 0
    for hookspec, (_, problems_in) in HOOKSPECS.items():
        report.stage(subject, f"call of {hookspec}()")
        sound: list[Any] = []
        try:
            results = getattr(manager.hook, hookspec)()
            answers += len(results)
            objects = [one for result in results for one in result]
        except BaseException as error:  # noqa: BLE001 - the code of a plugin may raise any exception
            report.raised("hookspec", subject, error, f"in {hookspec}()")
            answers += 1
            objects = []
        for number, one in enumerate(objects):
            try:
                problems = list(problems_in(one))
            except BaseException as error:  # noqa: BLE001 - an attribute may be a property
                problems = [f"an attribute raises {text_of(error)}"]
            for problem in problems:
                report.broken("attributes", f"object {number + 1} of {hookspec}()", problem)
            if not problems:
                sound.append(one)
        given.append(tuple(sound))
    if not answers:
        report.broken("no-objects", subject, "no function with @hookimpl, or each returns None")
    return Given(*given)


def check_names(job: Job, given: Given, report: Report) -> None:
    """Check the names of the plugin and of its objects, and compare them with the other installed plugins."""
    for (what, name, transport), times in Counter(given.claims).items():
        subject = subject_of(what, name, transport)
        if times > 1:
            report.broken("name-twice", subject, f"the plugin provides {times} of them")
        if name in built_in(what):
            report.broken("name-built-in", subject, f"the {what} '{name}' is built in")
    own_names = {
        name for what, name, _ in given.claims if what != "scene"
    }  # a scene has the name of a protocol
    if own_names and job.id not in own_names:
        names = ", ".join(sorted(f"'{name}'" for name in own_names))
        report.broken("id-name", f"plugin '{job.id}'", f"the objects have the names {names}")
    for subject, summary in _summaries(given):
        if not summary.strip():
            report.broken("summary", subject, "the summary is empty")
    prefixes = {
        kind.prefix
        for kind in KINDS.values()
        if kind.name.replace("-", " ") in {what for what, *_ in given.claims}
    }
    wanted = sorted(_canonical(f"{prefix}{job.id}") for prefix in prefixes)
    distribution = _canonical(job.distribution)
    if wanted and distribution not in wanted:
        found = f"the distribution is '{distribution}', not '{wanted[0]}'"
        report.broken("distribution-name", f"distribution {job.distribution}", found)
    _check_claims(job, given, report)


def _check_claims(job: Job, given: Given, report: Report) -> None:
    """Report ids and names that other installed distributions use."""
    for one in entry_points(group=ENTRY_POINT_GROUP, name=job.id):
        owner = one.dist.name if one.dist else "unknown"
        if _canonical(owner) != _canonical(job.distribution):
            report.broken("name-taken", f"plugin '{job.id}'", f"the distribution {owner} also has this id")
    for entry, theirs in others(job):
        for what, name, transport in sorted(set(given.claims) & set(theirs.claims)):
            report.broken("name-taken", subject_of(what, name, transport), f"{entry} also provides it")


@cache
def others(job: Job) -> tuple[tuple[InstalledPlugin, Given], ...]:
    """Load the other installed plugins, except broken plugins."""
    plugins = load_plugins({job.id})
    return tuple((one, plugins.given[one.id]) for one in plugins.entries if one.id in plugins.given)


def _canonical(name: str) -> str:
    from packaging.utils import canonicalize_name  # noqa: PLC0415 - the measured import has no use for it

    return canonicalize_name(name)


def subject_of(what: str, name: str, transport: str = "") -> str:
    """Return the subject of a finding about an object."""
    return f"{what} {name}/{transport}" if transport else f"{what} {name}"


def _summaries(given: Given) -> Iterator[tuple[str, str]]:
    """Yield the subject and the summary of each object that has a summary."""
    for protocol in given.protocols:
        yield subject_of("protocol", protocol.name, protocol.transport), protocol.summary
    for check in given.health_checks:
        yield subject_of("health check", check.name), check.summary
    for balancer in given.balancers:
        yield subject_of("balancer", balancer.name), balancer.summary
    for hook in given.hooks:
        yield subject_of("hook", hook.name), hook.summary
    for command in given.commands:
        yield subject_of("command", str(command.name)), command.get_short_help_str()
