"""Identification of protocols by bytes, without I/O: the dispatch table, and protocols made of patterns."""

from refractium.identify.table import Candidate, DispatchTable

__all__ = ["Candidate", "DispatchTable"]
