"""The command ``refractium`` itself: its options, its subcommands and the output of errors."""

from __future__ import annotations

import signal
import sys
import traceback
from contextlib import suppress
from importlib import import_module
from typing import Any, Final

import rich_click as click
from click.exceptions import Exit

from refractium._version import VERSION_LINE, __version__
from refractium.cli import interruptible
from refractium.cli.options import Flags, serving_options
from refractium.errors import ConfigError, ExitStatus, RefractiumError
from refractium.wire.text import printable

_COMMANDS: Final = {
    "tcp": "serve",
    "udp": "serve",
    "init": "init",
    "check": "check",
    "plugins": "plugins",
    "identify": "identify",
    "schema": "schema",
    "demo": "demo",
    "status": "status",
}
"""The module of each command. Python imports the module when the command runs or prints its help."""


class _App(click.RichGroup):
    """A group that imports commands only when needed. It turns an error into a message and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_COMMANDS, *sorted(_commands_of_plugins(ctx))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return _commands_of_plugins(ctx).get(cmd_name)
        module = import_module(f"refractium.cli.{_COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, f"{cmd_name}_command", None) or module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        found = super().resolve_command(ctx, args)
        if found[0] not in _COMMANDS:
            interruptible()
        return found

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RefractiumError as error:
            for message in error.problems if isinstance(error, ConfigError) else (error,):
                _complain(str(message))
            _trace(error)
            ctx.exit(error.exit_status)
        except (click.ClickException, Exit, click.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:  # of a command of a plugin; click would print "Aborted"
            _end_interrupted()
        except Exception as error:  # noqa: BLE001 - the user sees one message for a bug, not a traceback
            _complain(f"internal error: {type(error).__name__}: {error}; --debug shows the traceback")
            _trace(error)
            ctx.exit(ExitStatus.FAILURE)


def _commands_of_plugins(context: click.Context) -> dict[str, click.Command]:
    """Return the commands of plugins, by name.

    The program loads the plugins once, and only for the help or for a name that is not a built-in command.
    """
    key = f"{__name__}.commands"
    if key not in context.meta:
        from refractium.cli.plugins import installed  # noqa: PLC0415 - only for help and commands of plugins

        context.meta[key] = installed(Flags.of(context)).commands
    found: dict[str, click.Command] = context.meta[key]
    return found


def _complain(message: str) -> None:
    shown = "\n".join(map(printable, message.split("\n")))  # names from files may contain control characters
    click.echo(f"{click.style('error:', fg='red', bold=True)} {shown}", err=True)


def _end_interrupted() -> None:
    """End the process by SIGINT, as Ctrl-C ends a built-in command."""
    with suppress(OSError):
        sys.stdout.flush()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.raise_signal(signal.SIGINT)


def _trace(error: BaseException) -> None:
    if "--debug" in sys.argv[1:]:
        traceback.print_exception(error)


@click.group(cls=_App, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@serving_options
@click.version_option(__version__, "--version", message=VERSION_LINE)
@click.pass_context
def app(context: click.Context, /, **_given: Any) -> None:
    """One port, many protocols.

    Refractium inspects the first bytes of each connection, identifies the protocol and joins the client to
    the right backend. Without a command, it serves TCP and UDP.
    """
    context.obj = Flags.of(context)
    if context.invoked_subcommand is None:
        from refractium.cli.serve import serve  # noqa: PLC0415 - other commands do not need it

        serve(context.obj)
