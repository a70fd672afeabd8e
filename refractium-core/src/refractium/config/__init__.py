"""The configuration file: what it may say (`model`), how it is read (`load`), what is checked (`check`)."""

from refractium.config.load import Loaded, Source, load, parse, read
from refractium.config.model import (
    Config,
    HealthConfig,
    HookConfig,
    ListenerConfig,
    LogConfig,
    MetricsConfig,
    PatternTable,
    PluginsConfig,
    RouteConfig,
    ServerConfig,
    json_schema,
    listeners_of,
)
from refractium.config.template import template

__all__ = [
    "Config",
    "HealthConfig",
    "HookConfig",
    "ListenerConfig",
    "Loaded",
    "LogConfig",
    "MetricsConfig",
    "PatternTable",
    "PluginsConfig",
    "RouteConfig",
    "ServerConfig",
    "Source",
    "json_schema",
    "listeners_of",
    "load",
    "parse",
    "read",
    "template",
]
