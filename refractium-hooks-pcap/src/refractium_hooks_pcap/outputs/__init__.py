"""Outputs for packets: files, stdout, and viewers at a port or a FIFO.

An output that cannot write raises no error: the output logs the failure and counts the lost packets. Files
and viewers try again later.
"""

from refractium_hooks_pcap.outputs.files import CaptureFiles, FileSeries, Rotation
from refractium_hooks_pcap.outputs.names import FileNames
from refractium_hooks_pcap.outputs.records import Form, Output
from refractium_hooks_pcap.outputs.stdout import Stdout
from refractium_hooks_pcap.outputs.viewers import Viewers

__all__ = [
    "CaptureFiles",
    "FileNames",
    "FileSeries",
    "Form",
    "Output",
    "Rotation",
    "Stdout",
    "Viewers",
]
