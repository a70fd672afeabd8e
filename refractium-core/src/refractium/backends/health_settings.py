"""The health settings of backends: the check, and the numbers of checks in a row that change the state.

This module opens no socket and does not wait. `refractium.backends.checker` runs the checks, and the data
path reports clients that could not reach a backend.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from refractium.contract import SHARED_KEYS, HealthCheck
from refractium.errors import ConfigError
from refractium.guard.faults import problems_found
from refractium.problems import Problem, conversion_problems, table_problems
from refractium.settings import HealthSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


StateKey: TypeAlias = tuple[str, ...]


def option_problems(check: HealthCheck[Any], options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the mistakes in the options of a kind of check, as pairs of key and message."""
    what = f'a check of kind "{check.name}"'
    yield from problems_found(lambda: table_problems(check.settings, options, what, SHARED_KEYS)) or (
        problems_found(lambda: check.problems(msgspec.convert(options, check.settings)))
    )


class Health(HealthSettings, frozen=True, kw_only=True):
    """The health settings of a route's backends.

    Args:
        kind: name of a built-in kind of check, a `HealthCheck` object, or ``none``. With ``none``, only
            clients that cannot reach a backend show that the backend is down.
        options: settings of the kind, by key.

    Raises:
        ConfigError: a number is out of range, or the kind does not accept an option.
    """

    kind: str | HealthCheck[Any] = "none"
    options: dict[str, Any] = {}  # noqa: RUF012 - a Struct copies it

    def __post_init__(self) -> None:
        numbers = {key: getattr(self, key) for key in HealthSettings.__struct_fields__}
        findings = [*conversion_problems(HealthSettings, numbers)]
        if self.check is not None:
            findings += option_problems(self.check, self.options)
        elif self.kind == "none":
            findings += [(key, 'a check of kind "none" takes no options') for key in self.options]
        if findings:
            raise ConfigError(
                Problem(message, where=f"health.{key}".rstrip(".")) for key, message in findings
            )

    @property
    def check(self) -> HealthCheck[Any] | None:
        """The check object, or None while `kind` is a name."""
        return self.kind if isinstance(self.kind, HealthCheck) else None

    @property
    def settings(self) -> Any:
        """The options as the Struct of the kind of check, or None without a check."""
        return None if self.check is None else msgspec.convert(self.options, self.check.settings)

    @property
    def key(self) -> StateKey:
        """The key by which routes with identical health settings share one backend state."""
        name = self.kind.name if isinstance(self.kind, HealthCheck) else self.kind
        numbers = [str(getattr(self, key)) for key in HealthSettings.__struct_fields__]
        return name, msgspec.json.encode(self.options, order="deterministic").decode(), *numbers


PASSIVE: Final = Health()
"""The health settings of backends without a check."""
