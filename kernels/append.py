"""One token of every row into the paged cache, K and V in one launch, in Triton.

The torch reference is `macbench.engine.cache.PagedCache.write`: two indexed assignments.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

WARPS = 4


@triton.jit
def _append(
    k_pool,  # [pages, HKV, PAGE, D]: out
    v_pool,
    k,  # [N, HKV, D], strides below, last dimension contiguous
    v,
    pages,  # [N]
    offsets,  # [N]
    k_row,
    k_head,
    v_row,
    v_head,
    HKV: tl.constexpr,
    PAGE: tl.constexpr,
    D: tl.constexpr,
    HEADS: tl.constexpr,  # the next power of two
    DIMS: tl.constexpr,
):
    """A program writes one token."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEADS)[:, None]
    lane = tl.arange(0, DIMS)[None, :]
    real = (head < HKV) & (lane < D)
    page = tl.load(pages + token).to(tl.int64)
    offset = tl.load(offsets + token)
    there = ((page * HKV + head) * PAGE + offset) * D + lane
    key = tl.load(k + token * k_row + head * k_head + lane, real)
    value = tl.load(v + token * v_row + head * v_head + lane, real)
    tl.store(k_pool + there, key, real)
    tl.store(v_pool + there, value, real)


def append(
    k_pool: Tensor, v_pool: Tensor, pages: Tensor, offsets: Tensor, k: Tensor, v: Tensor
) -> None:
    """k, v [N, Hkv, d] into pages [N] at offsets [N] of the pools [pages, Hkv, 16, d]."""
    tokens, kv_heads, d = k.shape
    assert k.stride(2) == v.stride(2) == 1, "a head's dimensions must lie together"
    _append[(tokens,)](
        k_pool,
        v_pool,
        k,
        v,
        pages,
        offsets,
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        HKV=kv_heads,
        PAGE=k_pool.shape[2],
        D=d,
        HEADS=triton.next_power_of_2(kv_heads),
        DIMS=triton.next_power_of_2(d),
        num_warps=WARPS,
    )
