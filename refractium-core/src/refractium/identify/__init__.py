"""Identification of protocols by bytes, without I/O: the dispatch table, and protocols made of patterns."""

from refractium.identify.table import Candidate, Decision, DispatchTable, Selection, Undecided, Waiting

__all__ = ["Candidate", "Decision", "DispatchTable", "Selection", "Undecided", "Waiting"]
