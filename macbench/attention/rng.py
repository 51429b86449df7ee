"""Counter-based randomness: a draw depends on what it is for, not on the order of draws."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_BITS = 2**31 - 1


def _mix(x: Any) -> Any:
    """One round of a 31-bit multiply-xorshift hash, in int64 arithmetic that cannot overflow."""
    x = ((x ^ (x >> 16)) * 0x45D9F3B) & _BITS
    x = ((x ^ (x >> 15)) * 0x119DE1F3) & _BITS
    return x ^ (x >> 16)


def uniform(*keys: Tensor | int) -> Tensor:
    """Numbers in [0, 1), fp32, one per element of the broadcast keys (int64 tensors, some int)."""
    state: Tensor | int = 0
    for key in keys:
        state = _mix((_mix(key & _BITS) + state * 31 + 0x9E3779B) & _BITS)
    assert isinstance(state, Tensor)
    return (state >> 7).to(torch.float32) / (1 << 24)
