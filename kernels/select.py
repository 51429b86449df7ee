"""The k best of each list of scores, and how many items a group's lists hold together, in Triton.

The k-th largest is found by radix: passes over the scores, some bits of it each. The third one
gathers what is left to look at, a tenth of the items as scores go, and later ones look at no more.
A long list is cut into chunks, a program each: a pass leaves how many items of every chunk have
which next bits, and their sums over the chunks, from which the launch after it knows the bits; in
the end, the counts tell where each chunk's chosen items go. A list that is one chunk is served by
one launch. Nothing is sorted; of equal scores the lower item wins, so a choice does not depend on
the launch. Torch reference: `macbench.attention.select.best`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 4096  # items of a program, if a list is cut
WHOLE = 8192  # items that are one chunk
PASSES = tl.constexpr(((27, 5), (22, 5), (15, 7), (8, 7), (0, 8)))  # from which bit, how many
WARPS = (4, 4, 8, 2, 2)
GATHER = tl.constexpr(2)  # the pass that gathers
BINS = tl.constexpr(256)  # room for a pass's counts
LOOK = tl.constexpr(512)  # gathered items that are looked at together
TILE = tl.constexpr(16)  # chunks that are looked at together


@triton.jit
def _ordered(score):
    """fp32 -> uint32 in the same order (-0.0 counts as 0.0), above 0."""
    bits = (score + 0.0).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) | -0x80000000)).to(tl.uint32, bitcast=True)


@triton.jit
def _keys(row, item, end, size):
    """Of a chunk's items, the last before `end`; 0 behind the list."""
    if end <= size:
        key = _ordered(tl.load(row + item))
    else:
        key = tl.where(item < size, _ordered(tl.load(row + item, item < size, 0.0)), 0)
    return key


@triton.jit
def _by_words(first, CHUNK: tl.constexpr):
    """A chunk's items, those of a word of 32 side by side, [32, CHUNK / 32]."""
    item = first + tl.arange(0, CHUNK // 32)[None, :] * 32 + tl.arange(0, 32)[:, None]
    return tl.multiple_of(item, (1, 1))  # not known as aligned, so that a thread loads single items


@triton.jit
def _ones(x):
    """Bits that are set in an int32."""
    x = x.to(tl.uint32, bitcast=True)
    x -= (x >> 1) & 0x55555555
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    return ((((x + (x >> 4)) & 0x0F0F0F0F) * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def _bits(x):
    """bool [32, W] as the bits of W words, int32 [W]."""
    return tl.sum(tl.where(x, (1 << tl.arange(0, 32))[:, None], 0), 0)


@triton.jit
def _before(word):
    """How many bits of words [W] are set before each bit, [32, W]."""
    count = _ones(word)
    lower = (1 << tl.arange(0, 32)) - 1
    return (tl.cumsum(count) - count)[None, :] + _ones(word[None, :] & lower[:, None])


@triton.jit
def _need(counts, list_, count_row, count_head, heads, most, size):
    """Items that a list takes."""
    count = tl.load(counts + list_ // heads * count_row + list_ % heads * count_head)
    return tl.minimum(count, tl.minimum(most, size)).to(tl.int32)


@triton.jit
def _histogram(key, known, SHIFT: tl.constexpr, BITS: tl.constexpr):
    """Of the keys that begin as `known` does, how many have which BITS from SHIFT: [2^BITS]."""
    key = tl.ravel(key)
    digit = ((key >> SHIFT) & ((1 << BITS) - 1)).to(tl.int32)
    if SHIFT + BITS == 32:
        return tl.histogram(digit, 1 << BITS)
    else:
        return tl.histogram(digit, 1 << BITS, (key ^ known) >> (SHIFT + BITS) == 0)


@triton.jit
def _gather(few, key, known, SHIFT: tl.constexpr):
    """Write those of a chunk's keys that begin as `known` does, to SHIFT, side by side."""
    same = (key ^ known) >> SHIFT == 0
    tl.store(few + _before(_bits(same)), key.to(tl.int32, bitcast=True), same)
    tl.debug_barrier()  # other threads read them


@triton.jit
def _histogram_of_few(few, held, known, SHIFT: tl.constexpr, BITS: tl.constexpr):
    """`_histogram` of gathered keys."""
    histogram = tl.zeros([1 << BITS], tl.int32)
    for at in range(0, held, LOOK):
        item = at + tl.arange(0, LOOK)
        key = tl.load(few + item, item < held, 0).to(tl.uint32, bitcast=True)
        histogram += _histogram(key, known, SHIFT, BITS)
    return histogram


@triton.jit
def _next(at_least, known, wanted, SHIFT: tl.constexpr):
    """More bits, from SHIFT, of the least key that is taken, and how many are still wanted of those
    that begin like it. at_least: how many have these bits or larger ones. Returns known, wanted and
    the bits."""
    digit = tl.sum((at_least >= wanted).to(tl.int32)) - 1
    wanted -= tl.max(tl.where(at_least < wanted, at_least, 0))
    return known | (digit.to(tl.uint32) << SHIFT), wanted, digit


@triton.jit
def _larger(at_least, digit, BITS: tl.constexpr):
    """How many have larger bits than `digit`, and how many the same."""
    more = tl.load(at_least + digit + 1, digit + 1 < (1 << BITS), 0)
    return more, tl.load(at_least + digit) - more


@triton.jit
def _take(
    key,  # [32, CHUNK / 32]
    first,  # the chunk's first item
    known,
    allowed,  # of the items whose key is `known`
    equal,  # how many there are
    place,  # of the first item taken
    chosen,
    seen,
    loaded,
    GROUP: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Write a chunk's items, the last first, and count those that no other list has named."""
    word = _bits(key >= known)
    if equal > allowed:
        ties = key == known
        word -= _bits(ties & (_before(_bits(ties)) >= allowed))
    taken = ((word[None, :] >> tl.arange(0, 32)[:, None]) & 1) != 0
    item = _by_words(first, CHUNK).to(tl.uint32).to(tl.int64)
    tl.store(chosen + (place - _before(word)), item, taken)
    if GROUP > 1:
        there = seen + first // 32 + tl.arange(0, CHUNK // 32)
        old = tl.atomic_or(there, word, word != 0, sem="relaxed")
        fresh = tl.where(word != 0, word & ~old, 0)
        tl.atomic_add(loaded, tl.sum(_ones(fresh)).to(tl.int64), sem="relaxed")


@triton.jit
def _clear(chosen, need, most, first, step, CHUNK: tl.constexpr):
    """What is not listed must still be an item."""
    lane = tl.arange(0, CHUNK)
    for at in range(first, most, step):
        tl.store(chosen + at + lane, 0, (at + lane >= need) & (at + lane < most))


@triton.jit
def _pass(key, few, known, wanted, held, left, PASS: tl.constexpr):
    """A pass over a list that is one chunk. held: keys that are gathered; left: how many begin as
    `known` does."""
    SHIFT: tl.constexpr = PASSES.value[PASS][0]
    BITS: tl.constexpr = PASSES.value[PASS][1]
    if PASS < GATHER:
        histogram = _histogram(key, known, SHIFT, BITS)
    else:
        if PASS == GATHER:
            held = left
            _gather(few, key, known, SHIFT + BITS)
        histogram = _histogram_of_few(few, held, known, SHIFT, BITS)
    at_least = tl.cumsum(histogram, reverse=True)
    known, wanted, digit = _next(at_least, known, wanted, SHIFT)
    left = tl.sum(tl.where(tl.arange(0, 1 << BITS) == digit, histogram, 0))
    return known, wanted, held, left


@triton.jit
def _select(
    scores,  # [B, H, size] fp32
    counts,  # [B, H], strides below
    few,  # [B, H, CHUNK] keys that are gathered
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
    CHUNK: tl.constexpr,
):
    """Lists of one chunk."""
    list_ = tl.program_id(0).to(tl.int64)
    need = _need(counts, list_, count_row, count_head, heads, most, size)
    key = _keys(scores + list_ * size, _by_words(0, CHUNK), CHUNK, size)
    few += list_ * CHUNK
    known = tl.full([], 0, tl.uint32)
    wanted, left, held = need, need, need
    for number in tl.static_range(len(PASSES.value)):
        known, wanted, held, left = _pass(key, few, known, wanted, held, left, number)
    own, group = chosen + list_ * most, list_ // GROUP
    seen += group * words
    loaded += group
    _take(key, 0, known, wanted, left, need - 1, own, seen, loaded, GROUP, CHUNK)
    if GROUP == 1:
        tl.store(loaded, need.to(tl.int64))
    _clear(own, need, most, 0, CHUNK, CHUNK)


@triton.jit
def _count(
    scores,
    counts,
    few,  # [lists, chunks, CHUNK] keys that were gathered
    held,  # [lists, chunks] how many
    at_least,  # [2, lists, chunks, BINS] a chunk's keys with these bits or larger ones, by turns
    totals,  # [passes, lists, BINS] the same of all chunks, zero before
    sures,  # [lists, chunks] items that are taken for sure
    state,  # [passes, lists, 2] known and wanted before each pass
    size,
    most,
    count_row,
    count_head,
    heads,
    PASS: tl.constexpr,
    SHIFT: tl.constexpr,
    BITS: tl.constexpr,
    BEFORE: tl.constexpr,  # bits of the pass before
    CHUNK: tl.constexpr,
):
    """A pass over one chunk of a list."""
    chunk, chunks = tl.program_id(0), tl.num_programs(0)
    list_, lists = tl.program_id(1), tl.num_programs(1)
    own = list_.to(tl.int64) * chunks + chunk
    turn = lists.to(tl.int64) * chunks * BINS
    row, first = scores + list_.to(tl.int64) * size, chunk * CHUNK
    if PASS < GATHER:  # first, as it depends on nothing
        key = _keys(row, first + tl.arange(0, CHUNK), first + CHUNK, size)
    if PASS == 0:
        known = tl.full([], 0, tl.uint32)
        wanted = _need(counts, list_, count_row, count_head, heads, most, size)
        sure, left = 0, CHUNK
    else:
        before = (PASS - 1) * lists + list_
        known = tl.load(state + before * 2).to(tl.uint32, bitcast=True)
        wanted = tl.load(state + before * 2 + 1)
        total = tl.load(totals + before * BINS + tl.arange(0, 1 << BEFORE))
        known, wanted, digit = _next(total, known, wanted, SHIFT + BITS)
        last = at_least + (PASS - 1) % 2 * turn + own * BINS
        sure, left = _larger(last, digit, BEFORE)  # left: items that begin as `known` does
        if PASS > 1:
            sure += tl.load(sures + own)
    tl.store(sures + own, sure)
    now = PASS * lists + list_
    if chunk == 0:
        tl.store(state + now * 2, known.to(tl.int32, bitcast=True))
        tl.store(state + now * 2 + 1, wanted)

    few += own * CHUNK
    if PASS < GATHER:
        histogram = _histogram(key, known, SHIFT, BITS)
    else:
        if PASS == GATHER:
            tl.store(held + own, left)
            if left > 0:
                key = _keys(row, _by_words(first, CHUNK), first + CHUNK, size)
                _gather(few, key, known, SHIFT + BITS)
        elif left > 0:
            left = tl.load(held + own)
        histogram = _histogram_of_few(few, left, known, SHIFT, BITS)
    digits = tl.arange(0, 1 << BITS)
    many = tl.cumsum(histogram, reverse=True)
    tl.store(at_least + PASS % 2 * turn + own * BINS + digits, many)
    tl.atomic_add(totals + now * BINS + digits, many, many > 0, sem="relaxed")


@triton.jit
def _place(
    scores,
    counts,
    chosen,
    seen,
    loaded,
    at_least,
    totals,
    sures,
    state,
    size,
    most,
    words,
    count_row,
    count_head,
    heads,
    LAST: tl.constexpr,  # pass
    BITS: tl.constexpr,  # of the last pass
    GROUP: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """The chosen items of one chunk of a list."""
    chunk, chunks = tl.program_id(0), tl.num_programs(0)
    list_, lists = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    first = chunk * CHUNK
    key = _keys(scores + list_ * size, _by_words(first, CHUNK), first + CHUNK, size)
    need = _need(counts, list_, count_row, count_head, heads, most, size)
    before = LAST * lists + list_
    known = tl.load(state + before * 2).to(tl.uint32, bitcast=True)
    wanted = tl.load(state + before * 2 + 1)
    total = tl.load(totals + before * BINS + tl.arange(0, 1 << BITS))
    known, wanted, digit = _next(total, known, wanted, 0)
    last = at_least + (LAST % 2 * lists + list_) * chunks * BINS
    sure = tl.full([], 0, tl.int32)  # taken of earlier chunks
    ties = tl.full([], 0, tl.int32)  # whose key is `known`
    for at in range(0, chunk, TILE):
        earlier = at + tl.arange(0, TILE)
        real = earlier < chunk
        one = last + earlier * BINS + digit
        more = tl.where(digit + 1 < (1 << BITS), tl.load(one + 1, real, 0), 0)
        sure += tl.sum(tl.load(sures + list_ * chunks + earlier, real, 0) + more)
        ties += tl.sum(tl.load(one, real, 0) - more)
    done = sure + tl.minimum(ties, wanted)
    _, equal = _larger(last + chunk * BINS, digit, BITS)
    allowed = tl.maximum(wanted - ties, 0)
    own, group = chosen + list_ * most, list_ // GROUP
    seen += group * words
    loaded += group
    _take(key, first, known, allowed, equal, need - 1 - done, own, seen, loaded, GROUP, CHUNK)
    if GROUP == 1:
        tl.store(loaded, need.to(tl.int64), chunk == 0)
    _clear(own, need, most, first, chunks * CHUNK, CHUNK)


def select(scores: Tensor, counts: Tensor, most: int, kv_heads: int) -> tuple[Tensor, Tensor]:
    """The counts [B, H] items with the highest scores [B, H, n], counts at most `most` and n.

    -> item numbers int64 [B, H, most], of which the first counts hold, descending; and how many
    distinct items the H / kv_heads lists of each KV head name, int64 [B, Hkv].
    """
    b, heads, size = scores.shape
    scores, device = scores.contiguous(), scores.device
    lists, group, words = b * heads, heads // kv_heads, -(-size // 32)
    whole, chunks = size <= WHOLE, triton.cdiv(size, CHUNK)
    chosen = torch.empty(b, heads, most, dtype=torch.int64, device=device)
    named = b * kv_heads * words if group > 1 else 0
    sums = 0 if whole else len(PASSES.value) * lists * BINS.value
    fresh = torch.zeros if named + sums else torch.empty  # a single list's number is just stored
    scratch = fresh(2 * b * kv_heads + sums + named, dtype=torch.int32, device=device)
    loaded, totals, seen = scratch.split([2 * b * kv_heads, sums, named])
    loaded = loaded.view(torch.int64).view(b, kv_heads)
    out = (chosen, seen, loaded)
    asked = (counts.stride(0), counts.stride(1), heads)

    def made(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int32, device=device)

    if whole:
        chunk = max(256, triton.next_power_of_2(size))
        _select[(lists,)](
            scores,
            counts,
            made(lists, chunk),
            *out,
            size,
            most,
            words,
            *asked,
            GROUP=group,
            CHUNK=chunk,
            num_warps=4 if chunk <= 1024 else max(8, chunk // 512),
        )
        return chosen, loaded

    few, held, sures = made(lists, chunks, CHUNK), made(lists, chunks), made(lists, chunks)
    at_least, state = made(2, lists, chunks, BINS.value), made(len(PASSES.value), lists, 2)
    found = (at_least, totals, sures, state)
    before = 0
    for number, (shift, bits) in enumerate(PASSES.value):
        _count[(chunks, lists)](
            scores,
            counts,
            few,
            held,
            *found,
            size,
            most,
            *asked,
            PASS=number,
            SHIFT=shift,
            BITS=bits,
            BEFORE=before,
            CHUNK=CHUNK,
            num_warps=WARPS[number],
        )
        before = bits
    _place[(chunks, lists)](
        scores,
        counts,
        *out,
        *found,
        size,
        most,
        words,
        *asked,
        LAST=number,
        BITS=before,
        GROUP=group,
        CHUNK=CHUNK,
        num_warps=8,
        maxnreg=64,  # for four programs at a time
    )
    return chosen, loaded
