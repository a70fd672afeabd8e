"""Where packets go: files, stdout, and whoever looks on at a port or a FIFO.

None of them raises when it cannot write: what is lost is counted and logged, and it is tried again.
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
