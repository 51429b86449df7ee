"""What a decode step's query heads pay to listed tokens, in one Triton launch.

Attention over the list has been computed before, so a probability is exp(logit - lse). (Of a
row that has finished, whose attention was cut short, it may be infinite; its list no longer
changes.) Torch reference: `macbench.engine.view.View.weights`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from macbench.kernels.paged import PAGE

TOKENS = 64  # of a program


@triton.jit
def _weights(
    q,  # [B, HKV * G, D]
    k_pool,  # [pages, HKV, PAGE, D]
    table,  # [B, M]
    lists,  # [B, H, size] tokens, strides below, the last one 1
    counts,  # [B, H], strides below
    lse,  # [B, HKV * G]
    out,  # [B, H, size]
    scale,
    size,
    M,
    list_row,
    list_head,
    count_row,
    count_head,
    H: tl.constexpr,  # lists of a row
    HKV: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    DIMS: tl.constexpr,  # the next power of two
    PAGE: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDE: tl.constexpr,
):
    row, list_ = (tl.program_id(1) // H).to(tl.int64), tl.program_id(1) % H
    entry = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    lane, query = tl.arange(0, DIMS), tl.arange(0, 16)
    count = tl.load(counts + row * count_row + list_ * count_head)
    held = (entry < count) & (entry < size)
    own = lists + row * list_row + list_ * list_head
    token = tl.load(own + entry, held, 0).to(tl.int32)
    page = tl.load(table + row * M + token // PAGE, held, 0).to(tl.int64)
    there = (query < G)[:, None] & (lane < D)[None, :]
    real = held[:, None] & (lane < D)[None, :]
    paid = tl.zeros([TOKENS], tl.float32)
    for head in range(list_ * (HKV // H), (list_ + 1) * (HKV // H)):
        place = ((page * HKV + head) * PAGE + token % PAGE) * D
        keys = tl.load(k_pool + place[:, None] + lane[None, :], real, 0.0)
        at = (row * HKV + head) * G + query
        tile = tl.load(q + at[:, None] * D + lane[None, :], there, 0.0)
        level = tl.load(lse + at, query < G, float("inf"))  # a padded head pays nothing
        if WIDE:
            score = tl.dot(tile, tl.trans(keys), input_precision="ieee")
        else:
            score = tl.dot(tile, tl.trans(keys))
        paid += tl.sum(tl.exp(score * scale - level[:, None]), 0)
    to = out + tl.program_id(1).to(tl.int64) * size + entry
    tl.store(to, tl.where(held, paid, 0.0), entry < size)


def weights(
    q: Tensor,
    k_pool: Tensor,
    table: Tensor,
    tokens: Tensor,
    counts: Tensor,
    lse: Tensor,
    scale: float,
) -> Tensor:
    """Probabilities of q [B, Hq, d] over the first counts [B, H] of tokens [B, H, n], whose
    attention has lse [B, Hq], summed over the Hq / H query heads of a list: fp32 [B, H, n].

    0 behind a list. tokens: integers of any kind, a list's side by side; H divides Hkv.
    """
    (b, q_heads, d), kv_heads, lists = q.shape, k_pool.shape[1], tokens.shape[1]
    assert q_heads // kv_heads <= 16, "query heads of a KV head share a tile of 16 rows"
    assert tokens.stride(-1) == 1, "the items of a list lie together"
    size = tokens.shape[-1]
    out = torch.empty(b, lists, size, dtype=torch.float32, device=q.device)
    _weights[(triton.cdiv(size, TOKENS), b * lists)](
        q.contiguous(),
        k_pool,
        table,
        tokens,
        counts,
        lse.contiguous(),
        out,
        scale,
        size,
        table.stride(0),
        tokens.stride(0),
        tokens.stride(1),
        counts.stride(0),
        counts.stride(1),
        H=lists,
        HKV=kv_heads,
        G=q_heads // kv_heads,
        D=d,
        DIMS=max(16, triton.next_power_of_2(d)),
        PAGE=PAGE,
        TOKENS=TOKENS,
        WIDE=q.dtype == torch.float32,
    )
    return out
