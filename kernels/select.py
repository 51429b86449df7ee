"""The k best of each list of scores, and how many items a group's lists hold together, in Triton.

A program selects for one list by radix: four passes over the scores find the k-th largest, byte by
byte, a fifth writes the chosen. Scores are read from the L2 cache; nothing is sorted. Of equal
scores the lower item wins, so a choice does not depend on the launch. Torch reference:
`macbench.attention.select.best`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096


@triton.jit
def _ordered(score):
    """fp32 -> uint32 in the same order (-0.0 counts as 0.0)."""
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.uint32, bitcast=True) ^ 0x80000000


@triton.jit
def _select(
    scores,  # [B, H, size] fp32
    counts,  # [B, H], strides below
    chosen,  # [B, H, most] out: item numbers, descending; 0 behind the first counts
    seen,  # [B, HKV, words] bits of the items that a group loads, zero before
    loaded,  # [B, HKV] out: how many, zero before
    size,
    most,
    words,
    count_row,
    count_head,
    heads,
    GROUP: tl.constexpr,  # lists of a KV head
    BLOCK: tl.constexpr,
):
    list_ = tl.program_id(0)
    count = tl.load(counts + list_ // heads * count_row + list_ % heads * count_head)
    need = tl.minimum(count, tl.minimum(most, size)).to(tl.int32)
    row = scores + list_.to(tl.int64) * size
    lane = tl.arange(0, BLOCK)
    bins = tl.arange(0, 256)
    known = tl.full([], 0, tl.uint32)  # leading bytes of the need-th largest
    wanted = need
    for byte in tl.static_range(4):
        shift = 24 - 8 * byte
        histogram = tl.zeros([256], tl.int32)
        for at in range(0, size, BLOCK):
            key = _ordered(tl.load(row + at + lane, at + lane < size, float("-inf")))
            if byte == 0:
                same = at + lane < size
            else:
                same = (at + lane < size) & ((key >> (shift + 8)) == (known >> (shift + 8)))
            own = ((key >> shift) & 255).to(tl.int32)
            histogram += tl.histogram(tl.where(same, own, 0), 256) - tl.where(
                bins == 0, BLOCK - tl.sum(same.to(tl.int32)), 0
            )
        above = tl.cumsum(histogram, reverse=True)  # with this digit or a larger one
        digit = tl.sum((above >= wanted).to(tl.int32)) - 1
        wanted -= tl.sum(tl.where(bins > digit, histogram, 0))
        known = known | (digit.to(tl.uint32) << shift)
    done = tl.full([], 0, tl.int32)
    ties = tl.full([], 0, tl.int32)
    fresh = tl.full([], 0, tl.int32)
    kv_head = list_ // GROUP
    for at in range(0, size, BLOCK):
        inside = at + lane < size
        key = _ordered(tl.load(row + at + lane, inside, float("-inf")))
        equal = inside & (key == known)
        rank = ties + tl.cumsum(equal.to(tl.int32))
        take = inside & ((key > known) | (equal & (rank <= wanted)))
        place = need - done - tl.cumsum(take.to(tl.int32))
        tl.store(chosen + list_.to(tl.int64) * most + place, (at + lane).to(tl.int64), take)
        done += tl.sum(take.to(tl.int32))
        ties += tl.sum(equal.to(tl.int32))
        if GROUP > 1:
            item = at + lane
            bit = 1 << (item & 31)
            before = tl.atomic_or(seen + kv_head * words + (item >> 5), bit, take, sem="relaxed")
            fresh += tl.sum((take & ((before & bit) == 0)).to(tl.int32))
    if GROUP > 1:
        tl.atomic_add(loaded + kv_head, fresh.to(tl.int64), sem="relaxed")
    else:
        tl.store(loaded + kv_head, done.to(tl.int64))
    for at in range(0, most, BLOCK):  # what is not listed must still be an item
        behind = (at + lane >= done) & (at + lane < most)
        tl.store(chosen + list_.to(tl.int64) * most + at + lane, 0, behind)


def select(scores: Tensor, counts: Tensor, most: int, kv_heads: int) -> tuple[Tensor, Tensor]:
    """The counts [B, H] items with the highest scores [B, H, n], counts at most `most` and n.

    -> item numbers int64 [B, H, most], of which the first counts hold, descending; and how many
    distinct items the H / kv_heads lists of each KV head name, int64 [B, Hkv].
    """
    b, heads, size = scores.shape
    words = -(-size // 32)
    group = heads // kv_heads
    chosen = torch.empty(b, heads, most, dtype=torch.int64, device=scores.device)
    many = b * kv_heads * ((words if group > 1 else 0) + 2)
    fresh = torch.zeros if group > 1 else torch.empty  # a single list's number is just stored
    scratch = fresh(many, dtype=torch.int32, device=scores.device)
    loaded = scratch[: 2 * b * kv_heads].view(torch.int64).view(b, kv_heads)
    block = min(BLOCK, max(256, triton.next_power_of_2(size)))
    _select[(b * heads,)](
        scores.contiguous(),
        counts,
        chosen,
        scratch[2 * b * kv_heads :],
        loaded,
        size,
        most,
        words,
        counts.stride(0),
        counts.stride(1),
        heads,
        GROUP=group,
        BLOCK=block,
        num_warps=4 if block <= 1024 else 8,
    )
    return chosen, loaded
