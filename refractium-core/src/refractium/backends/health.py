"""Whether a backend is up: what checks and clients have found, and how many of them it takes to believe it.

Nothing here opens a socket or waits: `refractium.backends.checker` asks, and the data path tells what clients
met.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from refractium.contract import SHARED_KEYS, HealthCheck
from refractium.errors import ConfigError
from refractium.problems import Problem, conversion_problems, table_problems
from refractium.settings import HealthSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


StateKey: TypeAlias = tuple[str, ...]


def option_problems(check: HealthCheck[Any], options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is wrong with what a kind of check is given: pairs of a key and a message."""
    what = f"a check of kind {check.name!r}"
    if findings := list(table_problems(check.settings, options, what, SHARED_KEYS)):
        yield from findings
    else:
        yield from check.problems(msgspec.convert(options, check.settings))


class Health(HealthSettings, frozen=True, kw_only=True):
    """How the backends of a route are watched.

    Args:
        kind: the name of a built-in kind of check, an object of another one, or ``none``: then clients that
            cannot reach a backend are all that is known of it.
        options: what the kind takes, by key.

    Raises:
        ConfigError: a number is out of range, or an option is not one of the kind's.
    """

    kind: str | HealthCheck[Any] = "none"
    options: dict[str, Any] = {}  # noqa: RUF012 - a Struct copies it

    def __post_init__(self) -> None:
        numbers = {key: getattr(self, key) for key in HealthSettings.__struct_fields__}
        findings = [*conversion_problems(HealthSettings, numbers)]
        if self.check is not None:
            findings += option_problems(self.check, self.options)
        elif self.kind == "none":
            findings += [(key, "there is no check that takes it") for key in self.options]
        if findings:
            raise ConfigError(Problem(message, where=f"health.{key}") for key, message in findings)

    @property
    def check(self) -> HealthCheck[Any] | None:
        """The kind of check, where it is known."""
        return self.kind if isinstance(self.kind, HealthCheck) else None

    @property
    def settings(self) -> Any:
        """The options as the Struct that the kind of check takes."""
        return None if self.check is None else msgspec.convert(self.options, self.check.settings)

    @property
    def key(self) -> StateKey:
        """Equal for what asks the same question of a backend and believes the answer at the same time."""
        name = self.kind.name if isinstance(self.kind, HealthCheck) else self.kind
        numbers = [str(getattr(self, key)) for key in HealthSettings.__struct_fields__]
        return name, msgspec.json.encode(self.options, order="deterministic").decode(), *numbers


PASSIVE: Final = Health()
"""For backends that nobody checks."""
