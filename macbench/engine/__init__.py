"""Prefill once, fork for every method, decode all forks as rows of one batch."""

from macbench.engine.engine import Answer, Engine, Request
from macbench.engine.sampling import Decoding

__all__ = ["Answer", "Decoding", "Engine", "Request"]
