"""A configuration from a text, with the installed plugins, as a run would make it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refractium.assembly.assembly import assemble
from refractium.assembly.sources import Overrides
from refractium.config import Source, decode
from refractium.errors import ConfigError
from refractium.plugins.loading import load_plugins

if TYPE_CHECKING:
    from refractium.assembly.assembly import Assembly
    from refractium.plugins.installed import Plugins
    from refractium.problems import Problem

FILE = "my.toml"


def assembled(text: str, plugins: Plugins | None = None, overrides: Overrides | None = None) -> Assembly:
    """Return the configuration in a text; raise `ConfigError` if there are problems."""
    return assemble(decode(Source(text, FILE)), overrides or Overrides(), plugins or load_plugins())


def problems_of(text: str, plugins: Plugins | None = None) -> tuple[Problem, ...]:
    """Return the problems in a text; none if it can be served."""
    try:
        assembled(text, plugins)
    except ConfigError as error:
        return error.problems
    return ()
