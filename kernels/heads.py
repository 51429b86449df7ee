"""Heads of any size in tiles, whose sides are powers of two."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def vectors(at, dims, D: tl.constexpr):
    """Keys, values or queries at addresses [N, dims]; 0 behind D. Without a mask where there is
    nothing behind."""
    return tl.load(at) if dims.shape[0] == D else tl.load(at, (dims < D)[None, :], 0.0)
