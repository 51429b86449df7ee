"""Decoder-only models: transformers' modules with our attention inside."""

from macbench.models.adapter import Attend, Model
from macbench.models.load import load, pick_device
from macbench.models.source import Source
from macbench.models.text import Text

__all__ = ["Attend", "Model", "Source", "Text", "load", "pick_device"]
