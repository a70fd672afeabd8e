"""The prose of docstrings, comments, messages and pages keeps the rules that a machine can check."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from docs.prose import ROOT, findings, of_page, of_python

if TYPE_CHECKING:
    from pathlib import Path

CHECKED = [
    "tests",
    "CHANGELOG.md",
    "refractium-core/src",
    "refractium-protocols",
    "refractium-hooks-pcap",
    "docs",
    "README.md",
    "CONTRIBUTING.md",
]

WORDS = "word " * 30


@pytest.mark.parametrize("path", CHECKED)
def test_prose_keeps_the_rules(path: str) -> None:
    found = findings([ROOT / path])
    assert not found, "\n".join(["see `uv run python tests/docs/prose.py`:", *map(str, found)])


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ('def f():\n    """What it does."""\n', "opens with What, Who or How"),
        ('class A:\n    """Who serves."""\n', "opens with What, Who or How"),
        ('A = 1\n"""How long."""\n', "opens with What, Who or How"),
        ("# The hook is told of it.\n", "is told"),
        (f"# {'word ' * 36}.\n", "36 words"),
        (f"# {'word ' * 20}\n# {'word ' * 20}.\n", "40 words"),
        ("log.warning('%r failed', name)\n", "Python repr in a message"),
        ("raise ValueError(f'{name!r} is wrong')\n", "Python repr in a message"),
        ("Problem(f'there is no {name!r}')\n", "Python repr in a message"),
    ],
)
def test_a_sentence_that_breaks_a_rule_is_found(source: str, rule: str, tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(source)
    assert [one.rule for one in of_python(module)] == [rule]


@pytest.mark.parametrize(
    "source",
    [
        'def f():\n    """Return whether it holds."""\n',
        f"# {'word ' * 30}. {'Word ' * 30}.\n",
        f'def f():\n    """Do it.\n\n    Args:\n        a: {WORDS}\n        b: {WORDS}\n    """\n',
        "def __repr__(self):\n    return f'<A {self.name!r}>'\n",
    ],
)
def test_other_sentences_pass(source: str, tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(source)
    assert list(of_python(module)) == []


def test_code_and_tables_of_a_page_are_no_sentences(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"```text\n{'word ' * 40}\n```\n\n| {'word ' * 40} |\n\n{'word ' * 40}.\n")
    assert [(one.line, one.rule) for one in of_page(page)] == [(7, "40 words")]
