"""The configuration file: its text (`source`), its types (`model`) and its decoding (`decode`)."""

from refractium.config.decode import Decoded, decode
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
)
from refractium.config.schema import json_schema
from refractium.config.source import Source, read
from refractium.config.template import template

__all__ = [
    "Config",
    "Decoded",
    "HealthConfig",
    "HookConfig",
    "ListenerConfig",
    "LogConfig",
    "MetricsConfig",
    "PatternTable",
    "PluginsConfig",
    "RouteConfig",
    "ServerConfig",
    "Source",
    "decode",
    "json_schema",
    "read",
    "template",
]
