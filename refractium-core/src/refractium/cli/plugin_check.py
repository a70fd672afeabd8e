"""``plugins check``: check a plugin by the rules of the contract."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import rich_click as click

from refractium.errors import ExitStatus
from refractium.wire.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refractium.audit import Audit, Finding


@click.command("check")
@click.argument("what", metavar="ID|PATH")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(context: click.Context, what: str, *, as_json: bool) -> None:
    """Check a plugin before you publish it. Exits 0 if the plugin breaks no rule, else 1.

    ID is an installed plugin. PATH is a project folder, a wheel or an sdist, which is not installed. The code
    of the plugin runs in another process, with limits of time and memory.
    """
    from refractium.audit import audit  # noqa: PLC0415 - other commands do not need it

    found = audit(what)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found.as_dict()), indent=2))
    else:
        for finding in found.findings:
            _show(finding)
        for line in _summary(found):
            click.echo(line)
    if found.findings:
        context.exit(ExitStatus.FAILURE)


def _show(finding: Finding) -> None:
    click.echo(f"{click.style(finding.rule.code, fg='red', bold=True)}: {printable(finding.subject)}")
    for name, text in (
        ("found", finding.found),
        ("expected", finding.rule.expected),
        ("remedy", finding.rule.remedy),
    ):
        click.echo(f"  {name + ':':<10}{printable(text)}")


def _summary(found: Audit) -> Iterator[str]:
    for id_, facts in found.facts.items():
        if measured := facts.get("import"):
            yield f"plugin '{id_}': {_import(measured)}"
        for subject, reason in facts.get("not_run", {}).items():
            yield f"{printable(subject)}: not run, because {printable(reason)}"
    count = len(found.findings)
    findings = f"{count or 'no'} finding{'' if count == 1 else 's'}"
    yield printable(f"{found.distribution} {found.version}".strip() + f": {findings}")


def _import(measured: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {time:g} ms" for name, time in measured["packages"].items())
    return f"import {measured['ms']:g} ms, of other packages: {packages or 'none'}"
