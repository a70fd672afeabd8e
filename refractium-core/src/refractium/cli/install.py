"""``plugins install`` and ``plugins uninstall``: change the packages of the Python that runs Refractium."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Final

import msgspec
import rich_click as click

from refractium.cli import listing
from refractium.cli.options import Flags
from refractium.errors import ConfigError, ExitStatus, RefractiumError
from refractium.plugins import installer
from refractium.plugins.installed import InstalledPlugin, own_distributions
from refractium.problems import Problem, suggestion
from refractium.wire.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_LIST: Final = "from refractium.cli import main; main()"

_as_json = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON. The output of pip or uv goes to stderr."
)


@click.command("install")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@_as_json
@click.pass_context
def install(context: click.Context, names: tuple[str, ...], *, as_json: bool) -> None:
    """Install plugins into the Python that runs Refractium, and show the new and changed plugins.

    NAME is a requirement, a path or a URL, as for pip. Exits 1 if a new or changed plugin is not usable. If
    pip or uv fails, exits with the exit code of that program.
    """
    ids = {id_: name for (_, id_), name in own_distributions().items()}
    problems = [
        Problem(f"is the id of a plugin, not the name of a package: did you mean '{ids[name]}'?", where=name)
        for name in names
        if name in ids
    ]
    if problems:
        raise ConfigError(problems)
    _change(
        context,
        installer.find_installer().install,
        names,
        note=installer.note_after_install(names),
        as_json=as_json,
    )


@click.command("uninstall")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@_as_json
@click.pass_context
def uninstall(context: click.Context, names: tuple[str, ...], *, as_json: bool) -> None:
    """Remove packages from the Python that runs Refractium, and show the plugins that are gone.

    NAME is the name of an installed package. Exits 1 if a changed plugin is not usable. If pip or uv fails,
    exits with the exit code of that program.
    """
    if problems := list(_refused(names, _installed(context))):
        raise ConfigError(problems)
    _change(
        context,
        installer.find_installer().uninstall,
        names,
        note=installer.note_after_uninstall(),
        as_json=as_json,
    )


def _refused(names: Sequence[str], plugins: Sequence[InstalledPlugin]) -> Iterator[Problem]:
    """Yield a problem for each name that `uninstall` refuses."""
    needed = installer.needed_by_core()
    distributions = dict.fromkeys(plugin.distribution for plugin in plugins)
    for name in names:
        parsed = installer.name_of(name)
        if parsed is None:
            yield Problem("is a path or a URL: write the name of an installed package", where=name)
        elif parsed == installer.CORE:
            message = (
                "is the program itself: remove it with the tool that installed it, such as pip, uv or pipx"
            )
            yield Problem(message, where=name)
        elif parsed in needed:
            yield Problem("is needed by the program itself", where=name)
        elif not installer.is_installed(parsed):
            owner = next((one.distribution for one in plugins if one.id == name), None)
            meant = suggestion(name, distributions) if owner is None else f": did you mean '{owner}'?"
            yield Problem(f"is not installed{meant}", where=name)


def _change(
    context: click.Context, command: Sequence[str], names: Sequence[str], *, note: str | None, as_json: bool
) -> None:
    """Run an installer, and show the plugins that are new, changed or gone.

    A plugin of a named distribution counts as changed, because the user wants to see its status.

    Args:
        context: the context of the command.
        command: the installer.
        names: the requirements or distributions, which follow the command.
        note: the effect of an upgrade, for stderr; None without an effect.
        as_json: whether to print JSON.
    """
    before, former = {(one.id, one.distribution): one for one in _installed(context)}, installer.contents()
    sys.stdout.flush()
    status = installer.run((*command, *names), stdout=sys.stderr if as_json else sys.stdout)
    if status:
        if hint := installer.hint_after_failure():
            click.echo(f"hint: {printable(hint)}", err=True)
        context.exit(status)
    after, present = {(one.id, one.distribution): one for one in _installed(context)}, installer.contents()
    named = {installer.name_of(name) for name in names}
    changed = [
        one
        for key, one in after.items()
        if one != before.get(key)
        or present.get(one.distribution) != former.get(one.distribution)
        or installer.normalised(one.distribution) in named
    ]
    gone = [one for key, one in before.items() if key not in after]
    if as_json:
        listing.print_json({"changed": changed, "gone": gone})
    else:
        _show(changed, gone)
    if note:
        click.echo(f"note: {printable(note)}", err=True)
    if any(one.status not in {"loaded", "blocked"} for one in changed):
        context.exit(ExitStatus.FAILURE)


def _show(changed: Sequence[InstalledPlugin], gone: Sequence[InstalledPlugin]) -> None:
    for title, plugins in (("New or changed plugins", changed), ("Plugins that are gone", gone)):
        if plugins:
            listing.show(plugins, title)
    if not (changed or gone):
        click.echo("No plugin is new, changed or gone.")


def _installed(context: click.Context) -> list[InstalledPlugin]:
    """Return the plugins that a new process finds, because this process may have imported earlier code.

    Raises:
        RefractiumError: the program can no longer run, for example because the installer changed a package
            that the program needs.
    """
    given = Flags.of(context).given
    options = [f"--disable-plugin={id_}" for id_ in given.get("disable_plugin", ())]
    options += [f"--plugin={path}" for path in given.get("plugins", ())]
    if given.get("config"):
        options.append(f"--config={given['config']}")
    done = subprocess.run(  # noqa: S603 - no shell; -P: no module comes from the current folder
        [sys.executable, "-P", "-c", _LIST, *options, "plugins", "list", "--json"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2].removeprefix("error: ")
        raise RefractiumError(f"cannot list the plugins: {reason}")
    return msgspec.json.decode(done.stdout, type=list[InstalledPlugin])
