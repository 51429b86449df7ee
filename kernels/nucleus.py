"""The fewest items of each list that hold a share of its softmax mass, in Triton, without a sort.

A program has a whole list in registers, from its logits to the tokens that are chosen. The mass of
the last item that is needed is found by its bits, one at a time: it is the largest above which the
items together reach the share. Lists that registers do not hold (`HELD`) are read anew for every
bit, until few items share those found; their masses come from two launches over chunks before.
Of equal masses the earlier item wins.

No sum has an order that could change, so a choice depends on the numbers and on the shape alone.
Whether an item at the very edge is needed depends on how these sums round. Torch reference:
`macbench.attention.twilight.Twilight._prune`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from macbench.kernels.paged import PAGE
from macbench.kernels.probability import masses, mean, totals

HELD = 32768  # items of a list in registers at most
TILE = 8192  # items at a time of a longer one
CHUNK = 1024  # items of a program that takes its masses
EACH = 512  # items of a warp: 16 of a thread, whose comparisons fit its predicates
REGISTERS = 64  # of a thread: a multiprocessor holds two lists of 8192
PART = 128  # items of a warp that are written at a time
TOP = tl.constexpr(1 << 29)  # the highest bit: masses are below 2
SURE = tl.constexpr(2.0**-16)  # half of it is more than the sums of `HELD` items lose by rounding
NEAR = tl.constexpr(1 << 17)  # the first bit found among only the items that share all before


@triton.jit
def _mass(
    logits,  # [lists, GROUP, size], -inf: no candidate
    tops,  # [lists, GROUP, blocks]
    totals_,
    masses,  # [lists, size] out, -1: no candidate
    size,
    blocks,
    GROUP: tl.constexpr,  # query heads of a list
    HEADS: tl.constexpr,  # to the next power of two
    CHUNK: tl.constexpr,
):
    list_ = tl.program_id(1).to(tl.int64)
    item = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    top, total = totals(tops, totals_, list_, blocks, GROUP, HEADS)
    mass, logit = mean(logits, list_, item, size, top, total, GROUP, HEADS)
    mass = tl.where(logit == float("-inf"), -1.0, mass)
    tl.store(masses + list_ * size + item, mass, item < size)


@triton.jit
def _mass_held(logits, size, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """The same of one list [GROUP, size]: [BLOCK]."""
    item = tl.arange(0, BLOCK)
    mass = tl.zeros([BLOCK], tl.float32)
    for head in range(GROUP):
        logit = tl.load(logits + head * size + item, item < size, float("-inf"))
        top = tl.max(logit, 0)
        each = tl.exp(logit - tl.where(top == float("-inf"), 0.0, top))
        total = tl.sum(each, 0)
        share = each / tl.where(total > 0, total, 1.0) / GROUP
        mass = tl.where(logit == float("-inf"), -1.0, mass + share)
    return mass


@triton.jit
def _key(mass):
    """As integers, masses have the same order, and those of no candidate are below 0."""
    return mass.to(tl.int32, bitcast=True)


@triton.jit
def _from(mass, row, size, least, HELD: tl.constexpr, BLOCK: tl.constexpr):
    """What items hold whose key is `least` at least: those of mass [BLOCK], or `size` at `row`."""
    if HELD:
        held = tl.where(_key(mass) >= least, mass, 0.0)
    else:
        held = tl.zeros([BLOCK], tl.float32)
        for at in tl.range(0, size, BLOCK, num_stages=3):
            item = at + tl.arange(0, BLOCK)
            mass = tl.load(row + item, item < size, -1.0)
            held += tl.where(_key(mass) >= least, mass, 0.0)
    return tl.sum(held, 0)


@triton.jit
def _between(masses, near, size, begin, end, BLOCK: tl.constexpr):
    """Lays the masses whose keys are in [begin, end) together at `near`: how many."""
    many = 0
    for at in range(0, size, BLOCK):
        item = at + tl.arange(0, BLOCK)
        mass = tl.load(masses + item, item < size, -1.0)
        own = (_key(mass) >= begin) & (_key(mass) < end)
        tl.store(near + many + tl.cumsum(own.to(tl.int32)) - 1, mass, own)
        many += tl.sum(own.to(tl.int32))
    tl.debug_barrier()
    return many


@triton.jit
def _nucleus(
    logits,  # [lists, GROUP, size]
    masses,  # [lists, size], as `_mass` leaves them; out if HELD
    near,  # [lists, size] scratch, unless HELD
    pages,  # [lists, most] of 16 items each; else items are what they are called
    chosen,  # [lists, size] out: tokens
    counts,  # [lists] out
    seen,  # [KV heads, words] bits of the tokens that a group loads, zero before
    loaded,  # [KV heads] out: how many, zero before
    share,
    size,
    most,
    words,
    GROUP: tl.constexpr,
    LISTS: tl.constexpr,  # lists of a KV head
    LISTED: tl.constexpr,
    HELD: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK: tl.constexpr,
    PART: tl.constexpr,
):
    list_ = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    masses, near = masses + list_ * size, near + list_ * size
    row, many = masses, size
    mass = tl.zeros([BLOCK], tl.float32)
    if HELD:
        mass = _mass_held(logits + list_ * GROUP * size, size, GROUP, BLOCK)
        tl.store(masses + lane, mass, lane < size)
        tl.debug_barrier()  # other threads read them below

    known, above = tl.full([], 0, tl.int32), tl.full([], 0.0, tl.float32)
    held, less = tl.full([], float("inf"), tl.float32), above  # from `known` on; from its end on
    bit = tl.full([], TOP, tl.int32)
    while bit > 0:
        if not HELD and bit == NEAR:
            end = known + 2 * bit
            above = _from(mass, masses, size, end, HELD, BLOCK)
            row, many = near, _between(masses, near, size, known, end, BLOCK)
        some = above + _from(mass, row, many, known + bit, HELD, BLOCK)
        enough = some >= share
        known = tl.where(enough, known + bit, known)
        bit = bit >> 1
        if HELD:  # a single item is left: whatever its further bits, it is needed
            held, less = tl.where(enough, some, held), tl.where(enough, less, some)
            tie = known.to(tl.float32, bitcast=True)
            alone = (held - less < 1.5 * tie) & (tie > SURE)
            known, bit = tl.where(alone, known - 1, known), tl.where(alone, 0, bit)
    above += _from(mass, row, many, known + 1, HELD, BLOCK)
    tie = known.to(tl.float32, bitcast=True)
    needed = tl.ceil(tl.math.div_rn(share - above, tie))  # inf: all, where ties have no mass
    needed = tl.minimum(tl.maximum(needed, 0.0), size).to(tl.int32)

    out, pages, seen = chosen + list_ * size, pages + list_ * most, seen + list_ // LISTS * words
    more, ties = 0, 0  # in parts before
    fresh = tl.zeros([PART // PAGE, PAGE], tl.int32)
    for at in range(0, size, PART):
        item = at + tl.arange(0, PART)
        key = _key(tl.load(masses + item, item < size, -1.0))
        page = item // PAGE
        if LISTED:
            page = tl.load(pages + page, item < size, 0).to(tl.int32)
        token = page * PAGE + item % PAGE
        is_more, is_tie = (key > known).to(tl.int32), (key == known).to(tl.int32)
        both = is_more + (is_tie << 16)  # counted in one sum
        upto = tl.cumsum(both)
        nth = ties + (upto >> 16)
        take = is_more + is_tie * (nth <= needed)
        place = more + (upto & 0xFFFF) + tl.minimum(nth, needed) - 1
        tl.store(out + place, token, take > 0)
        both = tl.sum(both)
        more += both & 0xFFFF
        ties += both >> 16
        if LISTS > 1:  # the bits of 16 items are of one word
            own = tl.reshape(take << (token & 31), [PART // PAGE, PAGE])
            word = tl.max(tl.reshape(token >> 5, [PART // PAGE, PAGE]), 1)
            bits = tl.sum(own, 1)
            old = tl.atomic_or(seen + word, bits, bits != 0, sem="relaxed")
            fresh += (own & ~old[:, None] != 0).to(tl.int32)
    count = more + tl.minimum(ties, needed)
    tl.store(counts + list_, count.to(tl.int64))
    if LISTS > 1:
        tl.atomic_add(loaded + list_ // LISTS, tl.sum(fresh).to(tl.int64), sem="relaxed")
    for at in range(0, size, PART):  # behind: must still be a token
        item = at + tl.arange(0, PART)
        tl.store(out + item, 0, (item >= count) & (item < size))


def nucleus(
    logits: Tensor, share: float, kv_heads: int, bound: int, pages: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """logits [B, H, G, n], -inf where there is no candidate; a group's masses are averaged.

    Items are tokens, or those of pages [B, H, n / 16]; all tokens are below `bound`. -> tokens
    int32 [B, H, n] of which the first counts [B, H] are the fewest that hold `share` (1: all), and
    how many distinct tokens the H / kv_heads lists of each KV head name, [B, Hkv].
    """
    b, heads, group, size = logits.shape
    rows, lists, words, device = b * heads, heads // kv_heads, -(-bound // 32), logits.device
    logits = logits.contiguous()
    chosen = torch.empty(b, heads, size, dtype=torch.int32, device=device)
    counts = torch.empty(b, heads, dtype=torch.int64, device=device)
    many = b * kv_heads * (2 + words) if lists > 1 else 0
    scratch = torch.zeros(many, dtype=torch.int32, device=device)
    loaded = counts if lists == 1 else scratch[: 2 * b * kv_heads].view(torch.int64)
    held = size <= HELD
    mass = torch.empty(rows, size, dtype=torch.float32, device=device)
    if not held:
        tops, parts = masses(logits)
        _mass[(triton.cdiv(size, CHUNK), rows)](
            logits,
            tops,
            parts,
            mass,
            size,
            tops.shape[-1],
            GROUP=group,
            HEADS=triton.next_power_of_2(group),
            CHUNK=CHUNK,
        )
    block = max(EACH, triton.next_power_of_2(size)) if held else TILE
    warps = min(32, max(4, block // EACH))
    _nucleus[(rows,)](
        logits,
        mass,
        mass if held else torch.empty_like(mass),
        chosen if pages is None else pages.contiguous(),
        chosen,
        counts,
        scratch[2 * b * kv_heads :],
        loaded,
        share if share < 1 else float("inf"),  # sums may round to less
        size,
        size // PAGE,
        words,
        GROUP=group,
        LISTS=lists,
        LISTED=pages is not None,
        HELD=held,
        PAGE=PAGE,
        BLOCK=block,
        PART=PART * warps,
        num_warps=warps,
        maxnreg=REGISTERS if held else None,
    )
    return chosen, counts, loaded.view(b, kv_heads)
