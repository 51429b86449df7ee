"""Mean probability of every token over a KV head's query heads, from their logits, in Triton.

A program takes one group: a pass over the logits of its heads for their maxima and masses, a second
one for the probabilities. Torch reference: `macbench.attention.select.shared_probability`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 8192  # logits looked at together


@triton.jit
def _probability(
    scores,  # [B, HKV * GROUP, size]
    lens,  # [B]
    out,  # [B, HKV, size]
    size,
    HKV: tl.constexpr,
    GROUP: tl.constexpr,
    HEADS: tl.constexpr,  # GROUP to the next power of two
    BLOCK: tl.constexpr,
):
    group = tl.program_id(0).to(tl.int64)
    length = tl.minimum(tl.load(lens + group // HKV).to(tl.int32), size)
    head, lane = tl.arange(0, HEADS), tl.arange(0, BLOCK)
    rows = scores + (group * GROUP + head)[:, None] * size + lane[None, :]
    own = (head < GROUP)[:, None]
    top = tl.full([HEADS, BLOCK], float("-inf"), tl.float32)
    mass = tl.zeros([HEADS, BLOCK], tl.float32)
    for at in range(0, length, BLOCK):
        score = tl.load(rows + at, own & (at + lane < length)[None, :], float("-inf"))
        higher = tl.maximum(top, score)
        anchor = tl.where(higher == float("-inf"), 0.0, higher)
        mass = mass * tl.exp(top - anchor) + tl.exp(score - anchor)
        top = higher
    most = tl.max(top, 1)
    most = tl.where(most == float("-inf"), 0.0, most)
    total = tl.sum(mass * tl.exp(top - most[:, None]), 1)
    total = tl.where(total > 0, total, 1.0)
    for at in range(0, size, BLOCK):
        token = at + lane
        score = tl.load(rows + at, own & (token < length)[None, :], float("-inf"))
        share = tl.sum(tl.exp(score - most[:, None]) / total[:, None], 0)
        share = tl.where(token < length, share / GROUP, -1.0)  # behind one that underflows
        tl.store(out + group * size + token, share, token < size)


def probability(scores: Tensor, lens: Tensor, kv_heads: int) -> Tensor:
    """Logits [B, Hq, N] of the first lens [B] tokens -> mean probability over each group, fp32
    [B, Hkv, N], -1 behind."""
    b, q_heads, size = scores.shape
    heads = triton.next_power_of_2(q_heads // kv_heads)
    out = torch.empty(b, kv_heads, size, dtype=torch.float32, device=scores.device)
    _probability[(b * kv_heads,)](
        scores,
        lens,
        out,
        size,
        HKV=kv_heads,
        GROUP=q_heads // kv_heads,
        HEADS=heads,
        BLOCK=max(128, min(TILE // heads, triton.next_power_of_2(size))),
        num_warps=8,
    )
    return out
