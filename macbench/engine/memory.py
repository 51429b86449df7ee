"""Memory of a GPU, or of the process: given back, and at its peak."""

from __future__ import annotations

import gc
import resource

import torch


def release() -> None:
    """Memory of what is no longer referred to, graphs and cycles included, back to the card."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def peak() -> int:
    """Bytes: of the GPU where one was used, else of the process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
