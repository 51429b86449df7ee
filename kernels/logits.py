"""Logits of one query token over every cached key, in one Triton launch.

For controls that look at every key. Torch reference: `macbench.engine.view.View.logits`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from macbench.kernels.paged import PAGE

TOKENS = 128  # of a program


@triton.jit
def _logits(
    q,  # [B, HKV * G, D]
    k_pool,  # [pages, HKV, PAGE, D]
    table,  # [B, M]
    lens,  # [B]
    scores,  # [B, HKV * G, size] out
    scale,
    size,
    M,
    HKV: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    DIMS: tl.constexpr,  # the next power of two
    PAGE: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDE: tl.constexpr,
):
    row, head = tl.program_id(1) // HKV, tl.program_id(1) % HKV
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    lane, query = tl.arange(0, DIMS), tl.arange(0, 16)
    held = token < tl.load(lens + row)
    page = tl.load(table + row * M + token // PAGE, held, 0).to(tl.int64)
    place = ((page * HKV + head) * PAGE + token % PAGE) * D
    real = held[:, None] & (lane < D)[None, :]
    keys = tl.load(k_pool + place[:, None] + lane[None, :], real, 0.0)
    own = (query < G)[:, None] & (lane < D)[None, :]
    tile = tl.load(q + (tl.program_id(1) * G + query)[:, None] * D + lane[None, :], own, 0.0)
    if WIDE:
        score = tl.dot(tile, tl.trans(keys), input_precision="ieee")
    else:
        score = tl.dot(tile, tl.trans(keys))
    score = tl.where(held[None, :], score * scale, float("-inf"))
    out = (tl.program_id(1) * G + query)[:, None].to(tl.int64) * size + token[None, :]
    tl.store(scores + out, score, (query < G)[:, None] & (token < size)[None, :])


def logits(
    q: Tensor, k_pool: Tensor, table: Tensor, lens: Tensor, scale: float, size: int
) -> Tensor:
    """q [B, Hq, d] over the first lens [B] keys -> scale * q.k, fp32 [B, Hq, size], -inf behind."""
    b, q_heads, d = q.shape
    kv_heads = k_pool.shape[1]
    assert q_heads // kv_heads <= 16, "query heads of a KV head share a tile of 16 rows"
    scores = torch.empty(b, q_heads, size, dtype=torch.float32, device=q.device)
    _logits[(triton.cdiv(size, TOKENS), b * kv_heads)](
        q.contiguous(),
        k_pool,
        table,
        lens,
        scores,
        scale,
        size,
        table.shape[1],
        HKV=kv_heads,
        G=q_heads // kv_heads,
        D=d,
        DIMS=triton.next_power_of_2(d),
        PAGE=PAGE,
        TOKENS=TOKENS,
        WIDE=q.dtype == torch.float32,
    )
    return scores
