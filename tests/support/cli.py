"""The command line, called in the process of the test as the console script calls it."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
from contextlib import contextmanager
from textwrap import dedent
from typing import TYPE_CHECKING

import pytest

from refractium.cli import main
from support.process import Finished, environment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def logging_as_before() -> Iterator[None]:
    """Restore logging after the block: the handlers of a command would print lines in later tests."""
    root, ours = logging.getLogger(), logging.getLogger("refractium")
    before = root.handlers[:], root.level, ours.level, logging.raiseExceptions
    try:
        yield
    finally:
        for handler in root.handlers:
            if handler not in before[0]:
                handler.close()
        root.handlers[:] = before[0]
        root.setLevel(before[1])
        ours.setLevel(before[2])
        logging.raiseExceptions = before[3]


class Cli:
    """A caller of ``refractium`` in an empty folder and in this process, which costs little time."""

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.folder = folder
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *arguments: object, stdin: bytes = b"") -> Finished:
        """Call the command, and return its exit code, stdout and stderr. No call may end in a traceback."""
        with self._monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["refractium", *map(str, arguments)])
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            handler = signal.getsignal(signal.SIGINT)
            try:
                with pytest.raises(SystemExit) as ended:
                    main()
            finally:
                signal.signal(signal.SIGINT, handler)
        out, err = self._capsys.readouterr()
        assert "Traceback" not in out + err
        return Finished(int(ended.value.code or 0), out, err)

    def write(self, text: str, name: str = "refractium.toml") -> Path:
        """Write a configuration file, and return its path."""
        path = self.folder / name
        path.write_text(dedent(text), encoding="utf-8")
        return path


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    monkeypatch.chdir(tmp_path)
    wanted = environment()
    for key in os.environ.keys() - wanted.keys():
        monkeypatch.delenv(key)
    for key, value in wanted.items():
        monkeypatch.setenv(key, value)
    with logging_as_before():
        yield Cli(tmp_path, monkeypatch, capsys)


@pytest.fixture
def broken_plugin(tmp_path: Path) -> Path:
    """Return a folder for PYTHONPATH with a plugin ``cracked`` that cannot be imported."""
    folder = tmp_path / "site"
    info = folder / "cracked-2.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: cracked\nVersion: 2.0\nSummary: Not today\n")
    (info / "entry_points.txt").write_text("[refractium]\ncracked = cracked\n")
    (folder / "cracked.py").write_text("raise ImportError('the glass is cracked')\n")
    return folder
