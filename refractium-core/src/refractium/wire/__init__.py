"""Formats without I/O: PROXY headers, and text that is safe for a terminal."""
