"""The fewest items of each list that hold a share of its softmax mass, in Triton, without a sort.

The mass of the last item that is needed is found by its bits, 6 at a time: of the thresholds that
they leave, the highest above which the items together reach the share. Seven launches over chunks
of the lists, so that a single list keeps a card busy: the softmax's totals (`kernels.probability`),
the masses, four that look at further bits, and one that writes. Each leaves the mass of every digit
in every chunk, and the next adds that up. Of equal masses the earlier item wins.

No sum has an order that could change, so a choice depends on the numbers and on the shape alone.
Whether an item at the very edge is needed depends on how these sums over chunks round. Torch
reference: `macbench.attention.twilight.Twilight._prune`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from macbench.kernels.paged import PAGE
from macbench.kernels.probability import masses, mean, totals

LEAST, CHUNKS = 512, 32  # items of a chunk, and chunks of a list at most
PASSES = 5
BITS = tl.constexpr(6)  # of a pass
SHIFT = tl.constexpr(24)  # of the first: masses are below 2, so 30 bits tell all
DIGITS = tl.constexpr(64)
TILE = tl.constexpr(128)  # items whose digits are looked at together
STATE = ["known_before", "above_before", "known_now", "above_now"]  # a pass's part, as it lies


@triton.jit
def _digit(key, known, shift):
    """The next digit of keys that have the known leading bits; -1 of others, and if negative."""
    same = (key >> (shift + BITS)) == (known >> (shift + BITS))
    return tl.where(same, (key >> shift) & (DIGITS - 1), -1)


@triton.jit
def _split(mass, key, known, shift):
    """What items add to the mass of every digit, [items, DIGITS]: a thread has a digit of many
    items, so that a sum over items hardly crosses threads."""
    hit = _digit(key, known, shift)[:, None] == tl.arange(0, DIGITS)[None, :]
    return tl.where(hit, mass[:, None], 0.0)


@triton.jit
def _narrowed(
    sums,  # [lists, chunks, DIGITS] mass by digit, of the pass before
    list_,
    chunks,
    known,  # before that pass
    above,  # mass of the items above all with these leading bits
    shift,  # of that pass
    share,
    CHUNKS: tl.constexpr,
):
    """(digit, known, above) after that pass."""
    digit, chunk = tl.arange(0, DIGITS), tl.arange(0, CHUNKS)
    place = (list_ * chunks + chunk)[:, None] * DIGITS + digit[None, :]
    mass = tl.sum(tl.load(sums + place, (chunk < chunks)[:, None], 0.0), 0)
    reached = above + tl.cumsum(mass, reverse=True) >= share
    best = tl.max(tl.where(reached, digit, 0), 0)
    return best, known | (best << shift), above + tl.sum(tl.where(digit > best, mass, 0.0), 0)


@triton.jit
def _mass(
    logits,  # [lists, GROUP, size], -inf: no candidate
    tops,  # [lists, GROUP, blocks]
    totals_,  # [lists, GROUP, blocks]
    masses,  # [lists, size] out, -1: no candidate
    sums,  # [lists, chunks, DIGITS] out
    seen,  # [KV heads, words] out: zeros
    loaded,  # [KV heads] out: zeros
    size,
    blocks,
    words,
    GROUP: tl.constexpr,  # query heads of a list
    HEADS: tl.constexpr,  # to the next power of two
    LISTS: tl.constexpr,  # lists of a KV head
    BLOCK: tl.constexpr,
):
    chunk, chunks = tl.program_id(0), tl.num_programs(0)
    list_ = tl.program_id(1).to(tl.int64)
    lane = tl.arange(0, TILE)
    top, total = totals(tops, totals_, list_, blocks, GROUP, HEADS)
    none = tl.full([], 0, tl.int32)
    split = tl.zeros([TILE, DIGITS], tl.float32)
    for at in range(0, BLOCK, TILE):
        item = chunk * BLOCK + at + lane
        mass, logit = mean(logits, list_, item, size, top, total, GROUP, HEADS)
        mass = tl.where(logit == float("-inf"), -1.0, mass)
        tl.store(masses + list_ * size + item, mass, item < size)
        split += _split(mass, mass.to(tl.int32, bitcast=True), none, SHIFT)
    place = (list_ * chunks + chunk) * DIGITS + tl.arange(0, DIGITS)
    tl.store(sums + place, tl.sum(split, 0))
    if LISTS > 1:  # the lists' programs share the work
        part, parts = list_ % LISTS * chunks + chunk, LISTS * chunks
        for at in range(part * TILE, words, parts * TILE):
            tl.store(seen + list_ // LISTS * words + at + lane, 0, at + lane < words)
        tl.store(loaded + list_ // LISTS, 0, part == 0)


@triton.jit(do_not_specialize=["shift"], do_not_specialize_on_alignment=STATE)
def _look(
    masses,  # [lists, size]
    before,  # [lists, chunks, DIGITS] mass by digit, of the pass before
    sums,  # out: the same of this pass
    known_before,  # [lists] before that pass
    above_before,  # [lists]
    known_now,  # [lists] out: before this one
    above_now,  # [lists] out
    larger,  # [lists, chunks, DIGITS] out, if LAST: items that are above a digit
    equal,  # or have it
    shift,  # of this pass
    share,
    size,
    FIRST: tl.constexpr,  # the pass before was the first one
    LAST: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    chunk, chunks = tl.program_id(0), tl.num_programs(0)
    list_ = tl.program_id(1).to(tl.int64)
    known, above = tl.full([], 0, tl.int32), tl.full([], 0.0, tl.float32)
    if not FIRST:
        known, above = tl.load(known_before + list_), tl.load(above_before + list_)
    _, known, above = _narrowed(before, list_, chunks, known, above, shift + BITS, share, CHUNKS)
    tl.store(known_now + list_, known, chunk == 0)
    tl.store(above_now + list_, above, chunk == 0)

    item = chunk * BLOCK + tl.arange(0, BLOCK)
    row = masses + list_ * size
    key = tl.load(row + item, item < size, -1.0).to(tl.int32, bitcast=True)
    own = _digit(key, known, shift)
    digits = tl.arange(0, DIGITS)
    place = (list_ * chunks + chunk) * DIGITS + digits
    split = tl.zeros([TILE, DIGITS], tl.float32)
    if tl.max(own, 0) >= 0:  # few chunks hold one that has the known bits after some passes
        for at in range(0, BLOCK, TILE):
            some = chunk * BLOCK + at + tl.arange(0, TILE)
            mass = tl.load(row + some, some < size, -1.0)
            split += _split(mass, mass.to(tl.int32, bitcast=True), known, shift)
    tl.store(sums + place, tl.sum(split, 0))
    if LAST:
        count = tl.histogram(tl.maximum(own, 0), DIGITS, own >= 0)
        more = tl.sum((key >> (shift + BITS) > known >> (shift + BITS)).to(tl.int32), 0)
        tl.store(equal + place, count)
        tl.store(larger + place, more + tl.cumsum(count, reverse=True) - count)


@triton.jit(do_not_specialize_on_alignment=STATE)
def _write(
    masses,  # [lists, size]
    before,  # [lists, chunks, DIGITS] mass by digit, of the last pass
    known_before,  # [lists]
    above_before,  # [lists]
    larger,  # [lists, chunks, DIGITS]
    equal,
    pages,  # [lists, most] of 16 items each; else items are what they are called
    chosen,  # [lists, size] out: tokens
    counts,  # [lists] out
    seen,  # [KV heads, words] bits of the tokens that a group loads, zero before
    loaded,  # [KV heads] out: how many, zero before
    share,
    size,
    most,
    words,
    LISTS: tl.constexpr,
    LISTED: tl.constexpr,
    PAGE: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    chunk, chunks = tl.program_id(0), tl.num_programs(0)
    list_ = tl.program_id(1).to(tl.int64)
    known, above = tl.load(known_before + list_), tl.load(above_before + list_)
    digit, known, above = _narrowed(before, list_, chunks, known, above, 0, share, CHUNKS)

    each = tl.arange(0, CHUNKS)
    place = (list_ * chunks + each) * DIGITS + digit
    more = tl.load(larger + place, each < chunks, 0)
    ties = tl.load(equal + place, each < chunks, 0)
    all_ties = tl.sum(ties, 0)
    tie = known.to(tl.float32, bitcast=True)
    needed = tl.ceil(tl.math.div_rn(share - above, tie))  # inf: all, where ties have no mass
    needed = tl.minimum(needed, all_ties.to(tl.float32)).to(tl.int32)
    needed = tl.where(above < share, needed, 0)
    ties_before = tl.sum(tl.where(each < chunk, ties, 0), 0)
    begin = tl.sum(tl.where(each < chunk, more, 0), 0) + tl.minimum(ties_before, needed)
    count = tl.sum(more, 0) + needed

    item = chunk * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(masses + list_ * size + item, item < size, -1.0).to(tl.int32, bitcast=True)
    equals = (key == known).to(tl.int32)
    take = (key > known) | ((equals > 0) & (ties_before + tl.cumsum(equals) <= needed))
    page = item // PAGE
    if LISTED:
        page = tl.load(pages + list_ * most + page, item < size, 0).to(tl.int32)
    token = page * PAGE + item % PAGE
    out = chosen + list_ * size
    tl.store(out + begin + tl.cumsum(take.to(tl.int32)) - 1, token.to(tl.int64), take)
    tl.store(out + item, 0, (item >= count) & (item < size))  # behind: must still be a token
    tl.store(counts + list_, count.to(tl.int64), chunk == 0)
    if LISTS == 1:
        tl.store(loaded + list_, count.to(tl.int64), chunk == 0)
    else:  # the bits of 16 items are of one word
        bit = take.to(tl.int32) << (token & 31)
        bit = tl.sum(tl.reshape(bit, [BLOCK // PAGE, PAGE]), 1)
        word = tl.max(tl.reshape(token >> 5, [BLOCK // PAGE, PAGE]), 1)
        old = tl.atomic_or(seen + list_ // LISTS * words + word, bit, bit != 0, sem="relaxed")
        new = tl.where(bit != 0, bit & ~old, 0)
        fresh = (new[:, None] >> tl.arange(0, 32)[None, :]) & 1
        tl.atomic_add(loaded + list_ // LISTS, tl.sum(fresh).to(tl.int64), sem="relaxed")


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
    block = max(LEAST, triton.next_power_of_2(triton.cdiv(size, CHUNKS)))
    chunks = triton.cdiv(size, block)
    rows, digits = b * heads, DIGITS.value
    logits = logits.contiguous()
    share = share if share < 1 else float("inf")  # sums may round to less

    def made(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    chosen = made(b, heads, size, dtype=torch.int64)
    counts = made(b, heads, dtype=torch.int64)
    loaded = made(b, kv_heads, dtype=torch.int64)
    seen = made(b * kv_heads, words if lists > 1 else 1)
    mass = made(rows, size, dtype=torch.float32)
    sums = made(PASSES, rows, chunks, digits, dtype=torch.float32)
    known, above = made(PASSES, rows), made(PASSES, rows, dtype=torch.float32)
    larger, equal = made(2, rows, chunks, digits)
    grid = (chunks, rows)
    sizes = {"BLOCK": block}
    tops, parts = masses(logits)
    _mass[grid](
        logits,
        tops,
        parts,
        mass,
        sums[0],
        seen,
        loaded,
        size,
        tops.shape[-1],
        words,
        GROUP=group,
        HEADS=triton.next_power_of_2(group),
        LISTS=lists,
        **sizes,
    )
    sizes["CHUNKS"] = triton.next_power_of_2(chunks)
    for number in range(1, PASSES):
        _look[grid](
            mass,
            sums[number - 1],
            sums[number],
            known[number - 1],
            above[number - 1],
            known[number],
            above[number],
            larger,
            equal,
            SHIFT.value - number * BITS.value,
            share,
            size,
            FIRST=number == 1,
            LAST=number == PASSES - 1,
            **sizes,
        )
    _write[grid](
        mass,
        sums[-1],
        known[-1],
        above[-1],
        larger,
        equal,
        chosen if pages is None else pages.contiguous(),
        chosen,
        counts,
        seen,
        loaded,
        share,
        size,
        size // PAGE,
        words,
        LISTS=lists,
        LISTED=pages is not None,
        PAGE=PAGE,
        **sizes,
        num_warps=min(16, max(4, block // 256)),
    )
    return chosen, counts, loaded
