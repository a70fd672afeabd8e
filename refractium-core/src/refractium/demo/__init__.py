"""The demo: a small backend for each protocol, and a real client for each backend.

Outside of plugins, only this package knows protocols by name.
"""

from refractium.demo.scenes import SCENES, Scene
from refractium.demo.stage import SceneResult, Stage

__all__ = ["SCENES", "Scene", "SceneResult", "Stage"]
