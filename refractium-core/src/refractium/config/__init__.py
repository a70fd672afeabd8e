"""The configuration file: its types (`model`), reading it (`load`) and decoding it (`decode`)."""

from refractium.config.load import Loaded, Source, read
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
    listeners_of,
)
from refractium.config.schema import json_schema
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
    "read",
    "template",
]
