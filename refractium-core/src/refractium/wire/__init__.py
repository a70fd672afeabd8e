"""Formats without input or output: PROXY headers, and text that is fit for a terminal."""
