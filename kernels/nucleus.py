"""The fewest items of each list that hold a share of its softmax mass, in one Triton launch.

A program serves one list. The mass of the last item that is needed is found by its bits, two at a
time: of the thresholds that they leave, the highest above which the items together reach the share.
Nothing is sorted; of equal masses the earlier item wins. Torch reference:
`macbench.attention.twilight.Twilight._prune`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from macbench.kernels.paged import PAGE

BLOCK = 8192
PASSES = tl.constexpr(15)  # masses are below 2: 30 bits


@triton.jit
def _nucleus(
    logits,  # [lists, GROUP, size], -inf: no candidate
    pages,  # [lists, most] of 16 items each; else items are what they are called
    masses,  # [lists, size] scratch
    chosen,  # [lists, size] out: tokens
    counts,  # [lists] out
    seen,  # [KV heads, words] bits of the tokens that a group loads, zero before
    loaded,  # [KV heads] out: how many, zero before
    share,
    size,
    most,
    words,
    GROUP: tl.constexpr,  # query heads of a list
    LISTS: tl.constexpr,  # lists of a KV head
    LISTED: tl.constexpr,
    EVERY: tl.constexpr,  # all candidates
    PAGE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    list_ = tl.program_id(0)
    wide = list_.to(tl.int64)
    lane = tl.arange(0, BLOCK)
    masses += wide * size
    for g in range(GROUP):
        row = logits + (wide * GROUP + g) * size
        top = tl.full([BLOCK], float("-inf"), tl.float32)
        for at in range(0, size, BLOCK):
            top = tl.maximum(top, tl.load(row + at + lane, at + lane < size, float("-inf")))
        peak = tl.max(top, 0)
        peak = tl.where(peak == float("-inf"), 0.0, peak)
        sums = tl.zeros([BLOCK], tl.float32)
        for at in range(0, size, BLOCK):
            sums += tl.exp(tl.load(row + at + lane, at + lane < size, float("-inf")) - peak)
        total = tl.sum(sums, 0)
        for at in range(0, size, BLOCK):
            inside = at + lane < size
            logit = tl.load(row + at + lane, inside, float("-inf"))
            mass = tl.exp(logit - peak) / total / GROUP
            mass += tl.load(masses + at + lane, inside & (g > 0), 0.0)
            mass = tl.where(logit == float("-inf"), -1.0, mass)
            tl.store(masses + at + lane, mass, inside)
        tl.debug_barrier()

    known = tl.full([], 0, tl.int32)  # leading bits of the least mass that is taken
    if not EVERY:
        step = tl.full([], 1 << 28, tl.int32)
        for _ in range(PASSES):
            one = tl.zeros([BLOCK], tl.float32)
            two = tl.zeros([BLOCK], tl.float32)
            three = tl.zeros([BLOCK], tl.float32)
            for at in range(0, size, BLOCK):
                mass = tl.load(masses + at + lane, at + lane < size, -1.0)
                key = mass.to(tl.int32, bitcast=True)
                one += tl.where(key >= known + step, mass, 0.0)
                two += tl.where(key >= known + 2 * step, mass, 0.0)
                three += tl.where(key >= known + 3 * step, mass, 0.0)
            digit = (tl.sum(one, 0) >= share).to(tl.int32)
            digit += (tl.sum(two, 0) >= share).to(tl.int32)
            digit += (tl.sum(three, 0) >= share).to(tl.int32)
            known += digit * step
            step = step >> 2
    sums = tl.zeros([BLOCK], tl.float32)
    for at in range(0, size, BLOCK):
        mass = tl.load(masses + at + lane, at + lane < size, -1.0)
        sums += tl.where(mass.to(tl.int32, bitcast=True) > known, mass, 0.0)
    above = tl.sum(sums, 0)
    tie = known.to(tl.float32, bitcast=True)

    kv_head = list_ // LISTS
    done = tl.full([], 0, tl.int32)
    ties = tl.full([], 0, tl.int32)
    fresh = tl.full([], 0, tl.int32)
    for at in range(0, size, BLOCK):
        inside = at + lane < size
        key = tl.load(masses + at + lane, inside, -1.0).to(tl.int32, bitcast=True)
        if EVERY:
            take = key >= 0
        else:
            equal = key == known
            rank = ties + tl.cumsum(equal.to(tl.int32)) - 1
            take = (key > known) | (equal & (above + rank.to(tl.float32) * tie < share))
            ties += tl.sum(equal.to(tl.int32))
        token = at + lane
        if LISTED:
            page = tl.load(pages + wide * most + token // PAGE, inside & take, 0)
            token = page.to(tl.int32) * PAGE + token % PAGE
        place = done + tl.cumsum(take.to(tl.int32)) - 1
        tl.store(chosen + wide * size + place, token.to(tl.int64), take)
        done += tl.sum(take.to(tl.int32))
        if LISTS > 1:
            bit = 1 << (token & 31)
            before = tl.atomic_or(seen + kv_head * words + (token >> 5), bit, take, sem="relaxed")
            fresh += tl.sum((take & ((before & bit) == 0)).to(tl.int32))
    tl.store(counts + list_, done.to(tl.int64))
    if LISTS > 1:
        tl.atomic_add(loaded + kv_head, fresh.to(tl.int64), sem="relaxed")
    else:
        tl.store(loaded + kv_head, done.to(tl.int64))
    for at in range(0, size, BLOCK):  # what is not listed must still be a token
        behind = (at + lane >= done) & (at + lane < size)
        tl.store(chosen + wide * size + at + lane, 0, behind)


def nucleus(
    logits: Tensor, share: float, kv_heads: int, bound: int, pages: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """logits [B, H, G, n], -inf where there is no candidate; a group's masses are averaged.

    Items are tokens, or those of pages [B, H, n / 16]; all tokens are below `bound`. -> tokens
    int64 [B, H, n] of which the first counts [B, H] are the fewest that hold `share` (1: all), and
    how many distinct tokens the H / kv_heads lists of each KV head name, [B, Hkv].
    """
    b, heads, group, size = logits.shape
    lists, words, device = heads // kv_heads, -(-bound // 32), logits.device
    chosen = torch.empty(b, heads, size, dtype=torch.int64, device=device)
    counts = torch.empty(b, heads, dtype=torch.int64, device=device)
    masses = torch.empty(b, heads, size, dtype=torch.float32, device=device)
    bits = words if lists > 1 else 0
    scratch = torch.zeros(b * kv_heads * (bits + 2), dtype=torch.int32, device=device)
    loaded = scratch[: 2 * b * kv_heads].view(torch.int64).view(b, kv_heads)
    block = min(BLOCK, max(256, triton.next_power_of_2(size)))
    _nucleus[(b * heads,)](
        logits.contiguous(),
        chosen if pages is None else pages.contiguous(),
        masses,
        chosen,
        counts,
        scratch[2 * b * kv_heads :],
        loaded,
        share,
        size,
        size // PAGE,
        words,
        GROUP=group,
        LISTS=lists,
        LISTED=pages is not None,
        EVERY=share >= 1,
        PAGE=PAGE,
        BLOCK=block,
        num_warps=min(16, max(4, block // 512)),
    )
    return chosen, counts, loaded
