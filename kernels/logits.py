"""Logits of one query token over every cached key or over listed ones, in one Triton launch.

For controls that look at every key, and for methods that evict by what kept tokens get. Torch
reference: `macbench.engine.view.View`, `logits` and `weights`.
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
    lists,  # [B, HKV, size] tokens, strides below, the last one 1
    counts,  # [B, HKV] keys to look at, strides below
    scores,  # [B, HKV * G, size] out
    scale,
    size,
    M,
    list_row,
    list_head,
    count_row,
    count_head,
    HKV: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    DIMS: tl.constexpr,  # the next power of two
    PAGE: tl.constexpr,
    TOKENS: tl.constexpr,
    LISTED: tl.constexpr,
    WIDE: tl.constexpr,
):
    row, head = tl.program_id(1) // HKV, tl.program_id(1) % HKV
    entry = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    lane, query = tl.arange(0, DIMS), tl.arange(0, 16)
    held = entry < tl.load(counts + row * count_row + head * count_head)
    token = entry
    if LISTED:
        held = held & (entry < size)
        own = lists + row.to(tl.int64) * list_row + head * list_head
        token = tl.load(own + entry, held, 0).to(tl.int32)
    page = tl.load(table + row * M + token // PAGE, held, 0).to(tl.int64)
    place = ((page * HKV + head) * PAGE + token % PAGE) * D
    real = held[:, None] & (lane < D)[None, :]
    keys = tl.load(k_pool + place[:, None] + lane[None, :], real, 0.0)
    there = (query < G)[:, None] & (lane < D)[None, :]
    tile = tl.load(q + (tl.program_id(1) * G + query)[:, None] * D + lane[None, :], there, 0.0)
    if WIDE:
        score = tl.dot(tile, tl.trans(keys), input_precision="ieee")
    else:
        score = tl.dot(tile, tl.trans(keys))
    score = tl.where(held[None, :], score * scale, float("-inf"))
    out = (tl.program_id(1) * G + query)[:, None].to(tl.int64) * size + entry[None, :]
    tl.store(scores + out, score, (query < G)[:, None] & (entry < size)[None, :])


def logits(
    q: Tensor, k_pool: Tensor, table: Tensor, lens: Tensor, scale: float, size: int
) -> Tensor:
    """q [B, Hq, d] over the first lens [B] keys -> scale * q.k, fp32 [B, Hq, size], -inf behind."""
    counts = lens[:, None].expand(-1, k_pool.shape[1])
    return _launch(q, k_pool, table, None, counts, scale, size)


def listed_logits(
    q: Tensor, k_pool: Tensor, table: Tensor, tokens: Tensor, counts: Tensor, scale: float
) -> Tensor:
    """q [B, Hq, d] over the first counts [B, Hkv] keys of tokens [B, Hkv, n], integers of any kind,
    a list's side by side -> scale * q.k, fp32 [B, Hq, n], -inf behind."""
    assert tokens.stride(-1) == 1, "the items of a list lie together"
    return _launch(q, k_pool, table, tokens, counts, scale, tokens.shape[-1])


def _launch(
    q: Tensor,
    k_pool: Tensor,
    table: Tensor,
    tokens: Tensor | None,
    counts: Tensor,
    scale: float,
    size: int,
) -> Tensor:
    b, q_heads, d = q.shape
    kv_heads = k_pool.shape[1]
    assert q_heads // kv_heads <= 16, "query heads of a KV head share a tile of 16 rows"
    scores = torch.empty(b, q_heads, size, dtype=torch.float32, device=q.device)
    _logits[(triton.cdiv(size, TOKENS), b * kv_heads)](
        q.contiguous(),
        k_pool,
        table,
        counts if tokens is None else tokens,
        counts,
        scores,
        scale,
        size,
        table.stride(0),
        0 if tokens is None else tokens.stride(0),
        0 if tokens is None else tokens.stride(1),
        counts.stride(0),
        counts.stride(1),
        HKV=kv_heads,
        G=q_heads // kv_heads,
        D=d,
        DIMS=max(16, triton.next_power_of_2(d)),
        PAGE=PAGE,
        TOKENS=TOKENS,
        LISTED=tokens is not None,
        WIDE=q.dtype == torch.float32,
    )
    return scores
