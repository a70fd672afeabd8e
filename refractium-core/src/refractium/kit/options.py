"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import rich_click as click

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")

_ABOUT: Final = "Configuration file.  [refractium.toml, if it exists]"


def config_option(about: str = _ABOUT) -> Callable[[F], F]:
    """Return a decorator that adds the option ``-c/--config`` to a command.

    The function of the command receives the parameter ``config``: a `pathlib.Path`, or None if the user gave
    no path. A path after the name of the command takes precedence over a path before the name. The option
    does not check whether the file exists.

    Args:
        about: the text of ``--help`` for the option.
    """
    return click.option(
        "-c",
        "--config",
        type=click.Path(path_type=Path),
        metavar="PATH",
        callback=_given_or_inherited,
        help=about,
    )


def _given_or_inherited(context: click.Context, _: click.Parameter, path: Path | None) -> Path | None:
    """Return the path; if it is None, the path given to the nearest enclosing command."""
    outer = context.parent
    while path is None and outer is not None:
        path = outer.params.get("config")
        outer = outer.parent
    return path
