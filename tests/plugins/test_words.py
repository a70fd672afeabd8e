"""Messages about faulty plugins and files contain no notation of Python, such as tuples."""

from __future__ import annotations

import re
from typing import Any

import pytest

from refractium.config import Source, decode
from refractium.contract import (
    NO,
    Balancer,
    HealthCheck,
    PacketHook,
    ProtocolMatch,
    define_protocol,
    problems_of,
    problems_of_balancer,
    problems_of_health_check,
    problems_of_hook,
    problems_of_scene,
)
from refractium.contract.protocol import problems_of_answer, problems_of_metadata

WRONG: tuple[Any, ...] = (
    *(None, 7, True, 1.5, "text", b"bytes", object(), int, len),
    *((), ("a", 1), [b"x"], {"k": "v"}, {"a"}, frozenset({1})),
)
NOTATION = re.compile(r"""[()\[\]{}<>]|\bb['"]|0x""")
"""Characters of the repr of a collection, of bytes or of an object, which a message in words lacks."""


def protocol() -> Any:
    return define_protocol("words", max_bytes=10)(lambda _: NO)


@pytest.mark.parametrize("value", WRONG, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize(
    "attribute",
    ["name", "aliases", "transport", "strength", "max_bytes", "prefixes", "metadata_keys", "udp_responses"],
)
def test_wrong_attributes_of_protocols_are_described_in_words(attribute: str, value: object) -> None:
    made = protocol()
    setattr(made, attribute, value)
    for problem in problems_of(made):
        assert not NOTATION.search(problem), problem


@pytest.mark.parametrize("value", WRONG, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("base", [Balancer, HealthCheck, PacketHook], ids=lambda base: base.__name__)
@pytest.mark.parametrize(
    "attribute", ["name", "transports", "settings", "settings_type", "isolation", "overflow", "queue_bytes"]
)
def test_wrong_attributes_of_other_objects_are_described_in_words(
    base: type, attribute: str, value: object
) -> None:
    attributes = {"name": "words", "order": lambda *_: (), "check": lambda *_: None, attribute: value}
    made: Any = type("Made", (base,), attributes)
    find: Any = {
        Balancer: problems_of_balancer,
        HealthCheck: problems_of_health_check,
        PacketHook: problems_of_hook,
    }[base]
    for problem in find(made() if base is HealthCheck else made):
        assert not NOTATION.search(problem), problem


@pytest.mark.parametrize("value", WRONG, ids=lambda value: type(value).__name__)
def test_wrong_objects_are_described_in_words(value: object) -> None:
    found: Any = (
        problems_of,
        problems_of_balancer,
        problems_of_health_check,
        problems_of_hook,
        problems_of_scene,
    )
    for problem in (problem for find in found for problem in find(value)):
        assert not NOTATION.search(problem), problem
    for problem in problems_of_answer(value):
        assert not NOTATION.search(problem), problem
    match = ProtocolMatch({"key": value})  # type: ignore[dict-item]
    for problem in problems_of_metadata(protocol(), match):
        assert not NOTATION.search(problem), problem


@pytest.mark.parametrize(
    "text",
    [
        "[server]\n[server]\n",
        "a.b.c = 1\n[a.b.c.d]\n",
        "a.b = 1\na.b = 2\n",
        "a = {x = 1}\n[a]\n",
        "a = {x = 1}\na.y = 2\n",
        "[[a]]\n[a]\n",
        "[\"quo ted\".'x,y']\n[\"quo ted\".'x,y']\n",
        "a = []\n[[a]]\n",
    ],
)
def test_mistakes_in_toml_are_described_without_tuples(text: str) -> None:
    problems = decode(Source(text, "refractium.toml")).problems
    assert problems
    for problem in problems:
        assert not re.search(r"\('|',\)|\(\"", str(problem)), problem
