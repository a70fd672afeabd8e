"""The configuration file: what it may say (`model`), how it is read (`load`), what is checked (`check`)."""

from refractium.config.load import Loaded, Source, load, parse, read
from refractium.config.model import (
    Config,
    HealthConfig,
    MetricsConfig,
    PatternTable,
    PluginsConfig,
    RouteConfig,
    ServerConfig,
    json_schema,
)
from refractium.config.template import template

__all__ = [
    "Config",
    "HealthConfig",
    "Loaded",
    "MetricsConfig",
    "PatternTable",
    "PluginsConfig",
    "RouteConfig",
    "ServerConfig",
    "Source",
    "json_schema",
    "load",
    "parse",
    "read",
    "template",
]
