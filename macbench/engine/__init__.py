"""Prefill once, fork for every method, decode all forks as rows of one batch."""

from macbench.engine.answer import Answer, Request, cut
from macbench.engine.engine import Engine
from macbench.engine.sampling import Decoding

__all__ = ["Answer", "Decoding", "Engine", "Request", "cut"]
