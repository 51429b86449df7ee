"""Quest's page scores in one Triton launch: the newest key enters its page's bounds, then every
page gets the highest logit that its bounds allow.

The torch reference is in `macbench.attention.pages.PageBounds.scores`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from macbench.kernels.paged import PAGE

PAGES = 32  # of a program


@triton.jit
def _bounds(
    q,  # [B, HKV * G, D]
    low,  # [B, HKV, room, D]: in and out
    high,
    k_pool,  # [pages, HKV, PAGE, D]
    table,  # [B, M]
    lens,  # [B]
    scores,  # out: [B, HKV * G, size], or [B, HKV, size] if SHARED
    room,
    size,
    M,
    HKV: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    DIMS: tl.constexpr,  # the next power of two
    PAGE: tl.constexpr,
    PAGES: tl.constexpr,
    Q: tl.constexpr,  # G padded
    SHARED: tl.constexpr,
):
    row, head = tl.program_id(1) // HKV, tl.program_id(1) % HKV
    page = tl.program_id(0) * PAGES + tl.arange(0, PAGES)
    lane = tl.arange(0, DIMS)
    inside = (page < size)[:, None] & (lane < D)[None, :]
    position = tl.load(lens + row).to(tl.int32) - 1
    newest = position // PAGE
    at = tl.program_id(1).to(tl.int64) * room * D + page[:, None] * D + lane[None, :]
    least = tl.load(low + at, inside, 0.0)
    most = tl.load(high + at, inside, 0.0)
    if (newest >= tl.program_id(0) * PAGES) & (newest < (tl.program_id(0) + 1) * PAGES):
        where = tl.load(table + row * M + newest).to(tl.int64)
        offset = position % PAGE
        place = ((where * HKV + head) * PAGE + offset) * D + lane
        key = tl.load(k_pool + place, lane < D, 0.0)[None, :]
        here = (page == newest)[:, None]
        least = tl.where(here & ((offset == 0) | (key < least)), key, least)
        most = tl.where(here & ((offset == 0) | (key > most)), key, most)
        tl.store(low + at, least, inside & here)
        tl.store(high + at, most, inside & here)
    query = tl.arange(0, Q)
    own = (query < G)[:, None] & (lane < D)[None, :]
    tile = tl.load(q + (tl.program_id(1) * G + query)[:, None] * D + lane[None, :], own, 0.0)
    above, below = tl.where(tile > 0, tile, 0.0), tl.where(tile < 0, tile, 0.0)
    score = tl.dot(most, tl.trans(above.to(most.dtype)), input_precision="ieee")
    score = tl.dot(least, tl.trans(below.to(least.dtype)), score, input_precision="ieee")
    if SHARED:
        score = tl.sum(score, 1)[:, None]
    score = tl.where((page == newest)[:, None], float("inf"), score)
    score = tl.where((page > newest)[:, None], float("-inf"), score)
    heads: tl.constexpr = 1 if SHARED else G
    out = (tl.program_id(1) * heads + query)[None, :] * size + page[:, None]
    tl.store(scores + out, score, (query < heads)[None, :] & (page < size)[:, None])


def page_scores(
    q: Tensor,
    low: Tensor,
    high: Tensor,
    k_pool: Tensor,
    table: Tensor,
    lens: Tensor,
    size: int,
    shared: bool,
) -> Tensor:
    """q [B, Hq, d]; bounds [B, Hkv, pages, d], updated in place with the key at lens - 1.

    -> fp32 bounds of q.k over each of the first `size` pages [B, Hq, size], or if shared the sums
    of groups [B, Hkv, size]; inf for the newest page, -inf behind it.
    """
    b, kv_heads, room, d = low.shape
    group = q.shape[1] // kv_heads
    heads = kv_heads if shared else kv_heads * group
    scores = torch.empty(b, heads, size, dtype=torch.float32, device=q.device)
    _bounds[(triton.cdiv(size, PAGES), b * kv_heads)](
        q.contiguous(),
        low,
        high,
        k_pool,
        table,
        lens,
        scores,
        room,
        size,
        table.shape[1],
        HKV=kv_heads,
        G=group,
        D=d,
        DIMS=triton.next_power_of_2(d),
        PAGE=PAGE,
        PAGES=PAGES,
        Q=8 if group <= 8 else triton.next_power_of_2(group),
        SHARED=shared,
    )
    return scores
