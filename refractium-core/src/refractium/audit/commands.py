"""The rules for commands: the help of a command and of its subcommands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from click.testing import CliRunner

from refractium.audit.loading import subject_of
from refractium.guard.faults import text_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refractium.audit.report import Report
    from refractium.plugins.installed import Given


def check_commands(given: Given, report: Report) -> None:
    """Check the commands of a plugin by their help."""
    for command in given.commands:
        subject = subject_of("command", str(command.name))
        report.stage(subject, "--help")
        try:
            for words in _paths(command):
                result = CliRunner().invoke(command, [*words, "--help"])
                shown = " ".join([str(command.name), *words, "--help"])
                if result.exit_code:
                    reason = f": {text_of(result.exception)}" if result.exception else ""
                    report.broken("command-help", subject, f"'{shown}' ends with {result.exit_code}{reason}")
        except BaseException as error:  # noqa: BLE001 - the code of a plugin may raise any exception
            report.raised("command-help", subject, error, "when it lists its subcommands")


def _paths(command: click.Command) -> Iterator[list[str]]:
    """Yield the words that lead from a command to itself and to each subcommand."""
    yield []
    if isinstance(command, click.Group):
        with click.Context(command) as context:
            for name in command.list_commands(context):
                if (sub := command.get_command(context, name)) is not None:
                    yield from ([name, *words] for words in _paths(sub))
