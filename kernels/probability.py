"""Probabilities of logits, summed or averaged over the query heads that share a list, in Triton.

A program takes one list: a pass over the logits of its heads for their maxima and masses, a second
one for the probabilities. Torch references: `macbench.attention.select.shared_probability` and
`macbench.engine.view.View.weights`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 8192  # logits looked at together


@triton.jit
def _probability(
    scores,  # [B, H * GROUP, size]
    counts,  # [B, H], strides below
    out,  # [B, H, size]
    size,
    count_row,
    count_head,
    behind,  # what is written behind a list's first counts
    H: tl.constexpr,
    GROUP: tl.constexpr,  # query heads of a list
    HEADS: tl.constexpr,  # the next power of two
    MEAN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    list_ = tl.program_id(0)
    count = tl.load(counts + list_ // H * count_row + list_ % H * count_head)
    count = tl.minimum(count.to(tl.int32), size)
    head, lane = tl.arange(0, HEADS), tl.arange(0, BLOCK)
    rows = scores + (list_ * GROUP + head).to(tl.int64)[:, None] * size + lane[None, :]
    own = (head < GROUP)[:, None]
    top = tl.full([HEADS, BLOCK], float("-inf"), tl.float32)
    mass = tl.zeros([HEADS, BLOCK], tl.float32)
    for at in range(0, count, BLOCK):
        score = tl.load(rows + at, own & (at + lane < count)[None, :], float("-inf"))
        higher = tl.maximum(top, score)
        anchor = tl.where(higher == float("-inf"), 0.0, higher)
        mass = mass * tl.exp(top - anchor) + tl.exp(score - anchor)
        top = higher
    most = tl.max(top, 1)
    most = tl.where(most == float("-inf"), 0.0, most)
    total = tl.sum(mass * tl.exp(top - most[:, None]), 1)
    total = tl.where(total > 0, total, 1.0)
    for at in range(0, size, BLOCK):
        item = at + lane
        score = tl.load(rows + at, own & (item < count)[None, :], float("-inf"))
        share = tl.sum(tl.exp(score - most[:, None]) / total[:, None], 0)
        if MEAN:
            share = share / GROUP
        share = tl.where(item < count, share, behind)
        tl.store(out + list_.to(tl.int64) * size + item, share, item < size)


def probability(scores: Tensor, counts: Tensor, behind: float, mean: bool) -> Tensor:
    """Softmax of logits [B, Hq, n] over the first counts [B, H] of each, then the sum, or mean,
    over the Hq / H query heads of a list -> fp32 [B, H, n], `behind` where nothing is listed."""
    b, q_heads, size = scores.shape
    lists = counts.shape[1]
    heads = triton.next_power_of_2(q_heads // lists)
    out = torch.empty(b, lists, size, dtype=torch.float32, device=scores.device)
    _probability[(b * lists,)](
        scores,
        counts,
        out,
        size,
        counts.stride(0),
        counts.stride(1),
        behind,
        H=lists,
        GROUP=q_heads // lists,
        HEADS=heads,
        MEAN=mean,
        BLOCK=max(128, min(TILE // heads, triton.next_power_of_2(size))),
        num_warps=8,
    )
    return out
