"""The names that a new plugin may have."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from refractium.plugins import Plugins
    from refractium.scaffold.kinds import Kind

_NAME: Final = re.compile(r"(?=.{1,32}$)[a-z][a-z0-9]*([-_][a-z0-9]+)*")
"""A name that is also valid inside of the name of a distribution. The contract allows 64 characters, but each
line of a new package has room for 32 characters."""
_PREFIX: Final = re.compile(r"\Arefractium[-_][a-z]+[-_]")
"""The beginning of the name of a distribution or of a package."""
_NOT_IN_NAME: Final = re.compile(r"[^a-z0-9]+")


def problem_of_new_name(kind: Kind, name: str, plugins: Plugins) -> str | None:
    """Return, in one line, the reason why a new plugin cannot have a name, and a remedy.

    The name becomes the id of the plugin, and the name of the object that the plugin provides.

    Args:
        kind: the kind of the new plugin.
        name: the name.
        plugins: the installed plugins.

    Returns:
        None if the new plugin can have the name.
    """
    if prefix := _PREFIX.match(name):
        return f"write the name without {prefix[0]}{_suggestion(name)}"
    if not _NAME.fullmatch(name):
        rule = "a name is up to 32 lower-case letters and digits, with single - or _ between them, "
        return f"{rule}starting with a letter{_suggestion(name)}"
    if taken := _owner(kind, name, plugins):
        return f"{taken}: choose another name"
    return None


def _owner(kind: Kind, name: str, plugins: Plugins) -> str | None:
    """Return the reason why a valid name is not free."""
    from refractium.demo.scenes import SCENES  # noqa: PLC0415 - slow to import
    from refractium.plugins.installed import own_distributions  # noqa: PLC0415 - only needed for a valid name
    from refractium.plugins.loading import built_in  # noqa: PLC0415

    what = kind.name.replace("-", " ")
    if name in built_in(what):
        return f"the {what} '{name}' is built in"
    for plugin in plugins.entries:
        given = plugins.given.get(plugin.id)
        if plugin.id == name or (given and any(claim[:2] == (what, name) for claim in given.claims)):
            return f"{plugin} is installed, and has this name"
    ours = {id_: distribution for (_, id_), distribution in own_distributions().items()}
    ours |= {protocol: f"refractium-proto-{protocol}" for protocol in SCENES}
    return f"the plugin '{name}' is part of Refractium itself ({ours[name]})" if name in ours else None


def _suggestion(name: str) -> str:
    """Return the end of a message about an invalid name: a similar valid name, or "" if there is none."""
    similar = _NOT_IN_NAME.sub("-", _PREFIX.sub("", name.lower())).strip("-")
    return f": did you mean '{similar}'?" if name.isascii() and _NAME.fullmatch(similar) else ""
