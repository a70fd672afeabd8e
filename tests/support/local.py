"""Local plugins: files that are plugins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

HEAD: Final = "from refractium.contract import *\n"


def recognising(word: str, name: str = "mine") -> str:
    """Return the source of a plugin with one protocol, whose clients begin with a word."""
    return f'''\
"""Recognises {word}."""
from __future__ import annotations
{HEAD}
WORD = b"{word}"

@define_protocol("{name}", max_bytes=len(WORD))
def protocol(data):
    if data.startswith(WORD):
        return ProtocolMatch()
    return NEED_MORE if WORD.startswith(data) else NO

@hookimpl
def refractium_protocols():
    return [protocol]
'''


def recording(word: str, file: Path, isolation: str = "thread") -> str:
    """Return the source of a plugin with one hook, which writes a word and the data of each packet."""
    return f"""\
{HEAD}
class Hook(PacketHook):
    name = "mine"
    isolation = "{isolation}"

    def on_packet(self, context, direction, data):
        with open({str(file)!r}, "a") as file:
            file.write("{word} " + data.decode() + "\\n")

@hookimpl
def refractium_hooks():
    return [Hook]
"""


def rewrite(path: Path, text: str) -> None:
    """Replace a file as an editor does."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)
