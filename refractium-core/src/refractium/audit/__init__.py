"""The check of a plugin by the rules of the contract, before its author publishes it.

`package` finds the metadata and the code of a plugin, and `distribution` checks the metadata. `process`
starts another process, `probe`, which imports the plugin and calls its objects. `rules` contains the text of
each rule.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from refractium.audit.distribution import check_distribution
from refractium.audit.package import package_of
from refractium.audit.process import Limits, imported, run
from refractium.audit.report import Job
from refractium.audit.rules import RULES, SECTIONS, Finding, Rule

if TYPE_CHECKING:
    from refractium.audit.package import Package

__all__ = ["RULES", "SECTIONS", "Audit", "Finding", "Limits", "Rule", "audit"]

_IMPORT_LAW: Final = 0.25
"""Processor time of the import of a plugin, relative to the import of the core in the same process."""
_ATTEMPTS: Final = 3
_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class Audit:
    """The result of a check.

    Attributes:
        distribution: name of the distribution.
        version: version of the distribution; empty if it is unknown.
        findings: the broken rules.
        facts: facts about each plugin, by id, ready for JSON.
    """

    distribution: str
    version: str
    findings: tuple[Finding, ...]
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return everything ready for JSON."""
        return {
            "distribution": self.distribution,
            "version": self.version,
            "ok": not self.findings,
            "findings": [one.as_dict() for one in self.findings],
            "plugins": [{"id": id_, **facts} for id_, facts in self.facts.items()],
        }


def audit(what: str, limits: Limits | None = None) -> Audit:
    """Check a plugin.

    Args:
        what: the id of an installed plugin, or the path of a project folder, a wheel or an sdist.
        limits: limits of time for the code of the plugin.

    Raises:
        ConfigError: `what` is neither an id nor a path of a plugin, or the metadata cannot be read.
    """
    limits = limits or Limits()
    with package_of(what) as package:
        broken = list(check_distribution(package))
        facts: dict[str, dict[str, Any]] = {}
        if not any(code == "dependency-missing" for code, *_ in broken):
            for id_, value in package.entry_points.items():
                found, facts[id_] = _check_plugin(package, id_, value, limits)
                broken += found
        findings = [Finding(RULES[code], subject, found) for code, subject, found in dict.fromkeys(broken)]
        return Audit(package.name, package.version, tuple(findings), facts)


def _check_plugin(
    package: Package, id_: str, value: str, limits: Limits
) -> tuple[list[tuple[str, str, str]], dict[str, Any]]:
    """Return the broken rules of one plugin, and facts about the plugin."""

    def job(*, only_import: bool) -> Job:
        path = tuple(map(str, package.path))
        return Job(id_, value, package.name, path, cache, only_import, limits.cpu_seconds)

    with TemporaryDirectory(prefix="refractium-check-", ignore_cleanup_errors=True) as folder:
        scratch = Path(folder).resolve()
        cache = str(scratch / "cache")
        outcome = run(job(only_import=False), scratch, limits)
        codes = {code for code, *_ in outcome.broken}
        if not codes & {"import-fails", "entry-point", "time-limit", "process-ends"}:
            _measure(job(only_import=True), scratch, limits, outcome.broken, outcome.facts)
    return outcome.broken, outcome.facts


def _measure(
    job: Job, scratch: Path, limits: Limits, broken: list[tuple[str, str, str]], facts: dict[str, Any]
) -> None:
    """Measure the import. The first process has compiled the code, and now the import only reads it.

    The processor time is compared with the time that the core took just before, in the same process. The
    import of a plugin that is too slow is measured again, because other programs may disturb a measurement.
    """
    measured = []
    for _ in range(_ATTEMPTS):
        outcome = run(job, scratch, limits)
        if "import" not in outcome.facts:
            return
        own, core = outcome.facts["import"]
        measured.append((own / core, own, core, outcome.output))
        if own <= _IMPORT_LAW * core:
            break
    share, own, core, output = min(measured)
    packages = imported(output, job.value.partition(":")[0].partition(".")[0].strip())
    shown = {name: round(time / 1000, 1) for name, time in packages[:_SHOWN]}
    facts["import"] = {"ms": round(own * 1000, 1), "core_ms": round(core * 1000, 1), "packages": shown}
    if share > _IMPORT_LAW:
        drags = ", ".join(f"{name} ({time:g} ms)" for name, time in shown.items()) or "no other package"
        found = (
            f"the import takes {own * 1000:.0f} ms of processor time, and the core {core * 1000:.0f} ms;"
            f" it also imports {drags}"
        )
        broken.append(("import-slow", f"plugin '{job.id}'", found))
