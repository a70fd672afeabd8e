"""Regular expressions with the library RE2, whose time grows only linearly with the number of bytes."""

from __future__ import annotations

from typing import Any, Final

_MEMORY: Final = 1 << 19
"""Maximum bytes of memory that RE2 uses for an expression and its states. This maximum bounds the size of the
expression, and so the time for each byte."""


class RefusedRegexError(ValueError):
    """RE2 does not accept an expression; the text of the exception is the reason."""


def compile_regex(expression: bytes, *, latin1: bool, ignore_case: bool = False) -> Any:
    """Compile an expression in the syntax of RE2.

    Args:
        expression: the expression.
        latin1: whether each byte of expression and text is a character. If not, both are UTF-8.
        ignore_case: whether upper and lower case are equal.

    Raises:
        RefusedRegexError: the expression is not valid, or too large for RE2.
        ValueError: the package google-re2 is not installed.
    """
    try:
        # Import here, because the import takes 20 ms and few configuration files have a regex. Another
        # project's package has a module re2 as well, but this module has no `Options`.
        from re2 import Options, compile, error  # type: ignore[import-untyped]  # noqa: A004, PLC0415
    except ImportError as missing:
        raise ValueError(
            f"a regex needs the package google-re2 ({missing}): pip install 'refractium-core[regex]', "
            "or under uv: uv pip install 'refractium-core[regex]'"
        ) from missing
    if len(expression) > _MEMORY:  # RE2 would log some errors despite its options
        raise RefusedRegexError("it is too large for RE2")
    options = Options()
    options.encoding = Options.Encoding.LATIN1 if latin1 else Options.Encoding.UTF8
    options.case_sensitive = not ignore_case
    options.log_errors = False
    options.max_mem = _MEMORY
    try:
        return compile(expression, options)
    except error as refusal:
        raise RefusedRegexError(refusal.args[0].decode(errors="replace")) from refusal
