"""The demo: a small backend for each protocol, and a real client for each backend.

A plugin can show its own protocols by scenes (`refractium.contract.Scene`).

Outside of plugins, only this package knows protocols by name.
"""

from refractium.demo.scenes import SCENES
from refractium.demo.stage import SceneResult, Stage

__all__ = ["SCENES", "SceneResult", "Stage"]
