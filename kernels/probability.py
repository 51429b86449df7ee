"""Mean probability of every token over a KV head's query heads, from their logits, in Triton.

Two launches over blocks of logits, so that a single group keeps a card busy: the largest logit of
every block and its mass against that (`masses`), then the probabilities. Torch reference:
`macbench.attention.select.shared_probability`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from macbench.kernels.partials import total_of

BLOCK = 1024  # logits of one head, of a program
TILE = 2048  # logits of a group's heads, of a program


@triton.jit
def _masses(
    logits,  # [rows, size], -inf: none
    tops,  # [rows, blocks] out: the largest
    masses,  # [rows, blocks] out: sum of exp(logit - top)
    size,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    logit = tl.load(logits + row * size + at, at < size, float("-inf"))
    top = tl.max(logit, 0)
    mass = tl.sum(tl.exp(logit - tl.where(top == float("-inf"), 0.0, top)), 0)
    out = row * tl.num_programs(0) + tl.program_id(0)
    tl.store(tops + out, top)
    tl.store(masses + out, mass)


@triton.jit
def totals(tops, masses, group, blocks, GROUP: tl.constexpr, HEADS: tl.constexpr):
    """Of each head of a group, the largest logit and the mass against it, [HEADS]: what `mean`
    divides by. HEADS: GROUP to the next power of two."""
    head = tl.arange(0, HEADS)
    top, mass = total_of(tops, masses, group * GROUP + head, head < GROUP, blocks, HEADS)
    return tl.where(top == float("-inf"), 0.0, top), tl.where(mass > 0, mass, 1.0)


@triton.jit
def mean(logits, group, item, size, top, mass, GROUP: tl.constexpr, HEADS: tl.constexpr):
    """The mean probability of items over a group's heads, and the largest of their logits."""
    head = tl.arange(0, HEADS)
    rows = logits + (group * GROUP + head)[:, None] * size
    inside = (head < GROUP)[:, None] & (item < size)[None, :]
    logit = tl.load(rows + item[None, :], inside, float("-inf"))
    each = tl.exp(logit - top[:, None]) / mass[:, None]
    return tl.sum(each, 0) / GROUP, tl.max(logit, 0)


@triton.jit
def _probability(
    scores,  # [B, HKV * GROUP, size]
    tops,  # [B, HKV * GROUP, blocks]
    masses,  # [B, HKV * GROUP, blocks]
    lens,  # [B]
    out,  # [B, HKV, size]
    size,
    blocks,
    HKV: tl.constexpr,
    GROUP: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    group = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    top, mass = totals(tops, masses, group, blocks, GROUP, HEADS)
    share, _ = mean(scores, group, token, size, top, mass, GROUP, HEADS)
    share = tl.where(token < tl.load(lens + group // HKV), share, -1.0)  # behind one of 0
    tl.store(out + group * size + token, share, token < size)


def masses(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Logits fp32 [..., n], -inf where there is none -> of every block of n the largest one, and
    the sum of exp(logit - largest), fp32 [..., blocks] each."""
    size = logits.shape[-1]
    blocks = triton.cdiv(size, BLOCK)
    tops = torch.empty(*logits.shape[:-1], blocks, dtype=torch.float32, device=logits.device)
    sums = torch.empty_like(tops)
    _masses[(blocks, logits.numel() // size)](logits, tops, sums, size, BLOCK=BLOCK)
    return tops, sums


def probability(scores: Tensor, lens: Tensor, kv_heads: int) -> Tensor:
    """Logits [B, Hq, N], -inf from lens [B] on -> mean probability over each group, fp32
    [B, Hkv, N], -1 behind."""
    b, q_heads, size = scores.shape
    heads = triton.next_power_of_2(q_heads // kv_heads)
    out = torch.empty(b, kv_heads, size, dtype=torch.float32, device=scores.device)
    tops, sums = masses(scores)
    block = max(128, TILE // heads)
    _probability[(triton.cdiv(size, block), b * kv_heads)](
        scores,
        tops,
        sums,
        lens,
        out,
        size,
        tops.shape[-1],
        HKV=kv_heads,
        GROUP=q_heads // kv_heads,
        HEADS=heads,
        BLOCK=block,
    )
    return out
