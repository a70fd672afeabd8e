"""Identification of protocols by bytes, without I/O: the dispatch table, and protocols made of patterns."""

from refractium.identify.table import (
    Answer,
    Candidate,
    Decision,
    DispatchTable,
    Selection,
    Undecided,
    Waiting,
)

__all__ = ["Answer", "Candidate", "Decision", "DispatchTable", "Selection", "Undecided", "Waiting"]
