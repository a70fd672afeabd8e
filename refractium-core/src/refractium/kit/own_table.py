"""The table of a plugin in the configuration, read by a command of the plugin."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

import msgspec

from refractium.errors import ConfigError
from refractium.problems import table_problems

if TYPE_CHECKING:
    from pathlib import Path

    from refractium.config import Source
    from refractium.problems import Problem

SettingsT = TypeVar("SettingsT", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class OwnTable(Generic[SettingsT]):
    """The table ``[plugins.ID]`` of one plugin, decoded into its settings.

    Refractium passes the settings to a hook. A command reads its settings itself::

        own = OwnTable.read("greeter", GreeterSettings, config)
        if not own.settings.greeting:
            raise ConfigError([own.problem("is empty", "greeting")])

    Attributes:
        settings: the table as a Struct; a missing key has its default.
    """

    settings: SettingsT
    _source: Source = field(repr=False)
    _where: str = field(repr=False)

    @classmethod
    def read(
        cls, plugin: str, settings_type: type[SettingsT], file: Path | None = None
    ) -> OwnTable[SettingsT]:
        """Read the configuration file and decode the table. A missing table counts as an empty table.

        This method checks only this table: mistakes elsewhere, such as in a route, raise no error.

        Args:
            plugin: the id of the plugin, which is the name of its entry point.
            settings_type: a msgspec Struct that forbids unknown fields.
            file: the configuration file, as `config_option` passes it. None means ``refractium.toml`` in the
                current folder, or an empty configuration if there is no such file.

        Raises:
            ConfigError: the file cannot be read, it is not TOML, or the table does not fit `settings_type`.
                The error contains all problems of the table, with file and line.
        """
        # Imported here, because a hook that imports the kit does not need these modules.
        from refractium.assembly.sources import Overrides, read_file  # noqa: PLC0415
        from refractium.problems import key_path  # noqa: PLC0415

        decoded = read_file(Overrides(file))
        where = key_path("plugins", plugin)
        # A problem of the whole file, such as a syntax error, has no key path.
        if problems := [one for one in decoded.problems if one.where in {"", "plugins", where}]:
            raise ConfigError(problems)
        table = decoded.config.plugins.settings.get(plugin, {})
        problems = [
            decoded.source.problem(f"{where}.{key}", message)
            for key, message in table_problems(settings_type, table, f"plugin '{plugin}'")
        ]
        if problems:
            raise ConfigError(problems)
        return cls(msgspec.convert(table, settings_type), decoded.source, where)

    def problem(self, message: str, key: str = "") -> Problem:
        """Return a problem with the settings, for a `ConfigError`.

        Args:
            message: the mistake and its remedy.
            key: the key with the mistake; an empty key stands for the whole table.
        """
        where = f"{self._where}.{key}" if key else self._where
        return self._source.problem(where, message)
