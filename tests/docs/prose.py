"""Find sentences that the rules of this project's prose refuse.

A program too: ``uv run python tests/docs/prose.py [PATH ...]`` prints them, with their places.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT: Final = Path(__file__).parents[2]
LONGEST: Final = 35
"""Words of a sentence at the most."""
_OPENINGS: Final = re.compile(r"(?:What|Who|How|Whose|Whom)\b")
_PASSIVE: Final = re.compile(r"\bis told\b")
_SENTENCE_END: Final = re.compile(
    r"(?<=[.!?:;])\s+(?=[\"'`(\[]*[A-Z`\d])|\n\s*\n|\n\s*(?=[-*|>#]|\d+\. |\w+: )"
)
_WORD: Final = re.compile(r"[^\W_][\w'-]*")
_REPR: Final = re.compile(r"%r")
_SPEAKERS: Final = frozenset({"debug", "info", "warning", "error", "exception", "critical", "log"})


class Finding(NamedTuple):
    """A sentence that is refused.

    Attributes:
        path: the file.
        line: the line of the text that has the sentence.
        rule: the rule that it breaks.
        text: the sentence, or its beginning.
    """

    path: Path
    line: int
    rule: str
    text: str

    def __str__(self) -> str:
        place = self.path.relative_to(ROOT) if self.path.is_relative_to(ROOT) else self.path
        return f"{place}:{self.line}: {self.rule}: {' '.join(self.text.split())[:100]}"


def of_python(path: Path) -> Iterator[Finding]:
    """Look at docstrings, comments and messages of a module."""
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    for line, text in _docstrings(tree):
        if _OPENINGS.match(text.strip()):
            yield Finding(path, line, "opens with What, Who or How", text.strip())
        yield from _of_text(path, line, text)
    for line, text in _comments(source):
        yield from _of_text(path, line, text)
    for line, text in _messages(tree):
        yield Finding(path, line, "Python repr in a message", text)


def of_page(path: Path) -> Iterator[Finding]:
    """Look at the prose of a page, outside of code and tables."""
    text = re.sub(r"^```.*?^```", _blank, path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^\|.*$|^<!--.*-->$", "", text, flags=re.MULTILINE)
    yield from _of_text(path, 1, text)


def _of_text(path: Path, line: int, text: str) -> Iterator[Finding]:
    text = re.sub(r"``.*?``|`[^`\n]*`|\]\([^)]*\)", " Code ", text)
    if found := _PASSIVE.search(text):
        yield Finding(path, line + text.count("\n", 0, found.start()), "is told", found[0])
    at = 0
    for sentence in _SENTENCE_END.split(text):
        words = len(_WORD.findall(sentence))
        at = text.find(sentence, at)
        if words > LONGEST:
            place = line + text.count("\n", 0, at + len(sentence) - len(sentence.lstrip()))
            yield Finding(path, place, f"{words} words", " ".join(sentence.split()))


def _docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield all strings that stand alone: docstrings, and those of attributes and constants."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            text = node.value.value
            if isinstance(text, str):
                yield node.lineno, text


def _comments(source: str) -> Iterator[tuple[int, str]]:
    """Yield comments; lines that follow each other are one."""
    first, last, lines = 0, -1, []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        text = token.string.lstrip("# ")
        if token.start[0] == last + 1 and token.line.lstrip().startswith("#"):
            lines.append(text)
        else:
            if lines:
                yield first, "\n".join(lines)
            first, lines = token.start[0], [text]
        last = token.start[0]
    if lines:
        yield first, "\n".join(lines)


def _messages(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield messages of log lines and errors that show a value as Python writes it."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name not in _SPEAKERS and not name.endswith(("Error", "Problem", "Exception")):
            continue
        for argument in node.args:
            shown = _shown_as_repr(argument)
            if shown:
                yield node.lineno, shown


def _shown_as_repr(argument: ast.expr) -> str:
    for node in ast.walk(argument):
        if isinstance(node, ast.FormattedValue) and node.conversion == ord("r"):
            return ast.unparse(argument)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _REPR.search(node.value):
            return ast.unparse(argument)
    return ""


def _blank(found: re.Match[str]) -> str:
    return "\n" * found[0].count("\n")


def findings(paths: Sequence[Path]) -> list[Finding]:
    """Look at files and folders."""
    found: list[Finding] = []
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.suffix == ".py":
                found += of_python(file)
            elif file.suffix == ".md":
                found += of_page(file)
    return found


def main() -> None:
    """Print all findings; exit with 1 if there are any."""
    paths = [Path(argument).resolve() for argument in sys.argv[1:]] or [ROOT]
    found = findings(paths)
    for one in found:
        sys.stdout.write(f"{one}\n")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
