"""The configuration file as JSON Schema, for editors."""

from __future__ import annotations

from typing import Any

import msgspec

from refractium.config.model import FALLBACKS, Config


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of the file. `decode` also checks rules that no schema can express."""
    schema = msgspec.json.schema(Config)
    definitions = schema["$defs"]
    server = definitions["ServerConfig"]["properties"]
    definitions["Config"]["properties"] |= {key: server[key] for key in FALLBACKS}
    definitions["RouteConfig"]["oneOf"] = [{"required": ["forward_to"]}, {"required": ["action"]}]
    _spread_health_options(definitions)
    del definitions["HookConfig"]["properties"]["options"], definitions["HookConfig"]["additionalProperties"]
    plugins = definitions["PluginsConfig"]
    plugins["additionalProperties"] = plugins["properties"].pop("settings")["additionalProperties"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Refractium configuration",
        **schema,
    }


def _spread_health_options(definitions: dict[str, Any]) -> None:
    """Add the keys of each built-in kind of health check to the keys that all kinds share."""
    from refractium.backends.checks import CHECKS, NONE  # noqa: PLC0415 - slow to import, and only needed here

    health = definitions["HealthConfig"]
    shared = health["properties"]
    del shared["options"], health["additionalProperties"]  # a kind from a plugin has keys unknown here
    health["allOf"] = [
        {"if": {"properties": {"kind": {"const": NONE}}}, "then": {"propertyNames": {"enum": [*shared]}}}
    ]
    for name, check in CHECKS.items():
        schema = msgspec.json.schema(check.settings, ref_template="#/$defs/{name}")
        own = schema["$defs"].pop(check.settings.__name__)
        definitions |= schema["$defs"]
        then = {"properties": own["properties"], "propertyNames": {"enum": [*shared, *own["properties"]]}}
        if own["required"]:
            then["required"] = own["required"]
        health["allOf"].append({"if": {"properties": {"kind": {"const": name}}}, "then": then})
