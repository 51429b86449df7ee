"""The k best of each list of scores, and how many items a group's lists hold together, in Triton.

The k-th largest is found by radix: four passes over the scores, a byte of it each. A list is cut
into chunks, a program each; a pass leaves every chunk's histogram of the next byte, and the launch
after it reads them all to know the byte. The last one also knows from them where each chunk's
chosen items go. A list that is one chunk is served by one launch. Nothing is sorted; of equal
scores the lower item wins, so a choice does not depend on the launch. Torch reference:
`macbench.attention.select.best`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 4096  # items of a program
TILE = tl.constexpr(16)  # histograms looked at together


@triton.jit
def _ordered(score):
    """fp32 -> uint32 in the same order (-0.0 counts as 0.0)."""
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.uint32, bitcast=True) ^ 0x80000000


@triton.jit
def _need(counts, list_, count_row, count_head, heads, most, size):
    """Items that a list takes."""
    count = tl.load(counts + list_ // heads * count_row + list_ % heads * count_head)
    return tl.minimum(count, tl.minimum(most, size)).to(tl.int32)


@triton.jit
def _histogram(key, inside, known, BYTE: tl.constexpr, CHUNK: tl.constexpr):
    """Of the keys that begin as `known` does, how many have which next byte: [256]."""
    shift: tl.constexpr = 24 - 8 * BYTE
    same = inside
    if BYTE > 0:
        same = same & ((key >> (shift + 8)) == (known >> (shift + 8)))
    own = tl.where(same, ((key >> shift) & 255).to(tl.int32), 0)
    rest = CHUNK - tl.sum(same.to(tl.int32))
    return tl.histogram(own, 256) - tl.where(tl.arange(0, 256) == 0, rest, 0)


@triton.jit
def _next(histogram, known, wanted, BYTE: tl.constexpr):
    """One byte more of the least key that is taken, and how many are still wanted of those that
    begin like it. Returns known, wanted and the byte."""
    above = tl.cumsum(histogram, reverse=True)  # with this byte or a larger one
    digit = tl.sum((above >= wanted).to(tl.int32)) - 1
    wanted -= tl.sum(tl.where(tl.arange(0, 256) > digit, histogram, 0))
    return known | (digit.to(tl.uint32) << (24 - 8 * BYTE)), wanted, digit


@triton.jit
def _take(
    key,
    at,  # the chunk's first item
    inside,
    known,
    wanted,  # of the items whose key is `known`
    done,  # items taken in earlier chunks
    ties,  # items of earlier chunks whose key is `known`
    need,
    chosen,
    seen,
    loaded,
    GROUP: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Write a chunk's items, the last first, and count those that no other list has named."""
    lane = tl.arange(0, CHUNK)
    equal = inside & (key == known)
    take = inside & ((key > known) | (equal & (ties + tl.cumsum(equal.to(tl.int32)) <= wanted)))
    place = need - done - tl.cumsum(take.to(tl.int32))
    tl.store(chosen + place, (at + lane).to(tl.int64), take)
    if GROUP > 1:
        bits = tl.reshape(tl.where(take, 1 << (lane & 31), 0), [CHUNK // 32, 32])
        word = tl.sum(bits, 1)
        place = seen + at // 32 + tl.arange(0, CHUNK // 32)
        fresh = word & ~tl.atomic_or(place, word, word != 0, sem="relaxed")
        fresh = tl.where(word != 0, fresh, 0)
        fresh = (fresh[:, None] >> tl.arange(0, 32)[None, :]) & 1
        tl.atomic_add(loaded, tl.sum(tl.sum(fresh, 1)).to(tl.int64), sem="relaxed")
    elif at == 0:
        tl.store(loaded, need.to(tl.int64))


@triton.jit
def _clear(chosen, need, most, first, step, CHUNK: tl.constexpr):
    """What is not listed must still be an item."""
    lane = tl.arange(0, CHUNK)
    for at in range(first, most, step):
        tl.store(chosen + at + lane, 0, (at + lane >= need) & (at + lane < most))


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
    CHUNK: tl.constexpr,
):
    """Lists of one chunk."""
    list_ = tl.program_id(0).to(tl.int64)
    need = _need(counts, list_, count_row, count_head, heads, most, size)
    lane = tl.arange(0, CHUNK)
    inside = lane < size
    key = _ordered(tl.load(scores + list_ * size + lane, inside, float("-inf")))
    known = tl.full([], 0, tl.uint32)
    wanted = need
    for byte in tl.static_range(4):
        histogram = _histogram(key, inside, known, byte, CHUNK)
        known, wanted, _ = _next(histogram, known, wanted, byte)
    own, group = chosen + list_ * most, list_ // GROUP
    _take(
        key,
        0,
        inside,
        known,
        wanted,
        0,
        0,
        need,
        own,
        seen + group * words,
        loaded + group,
        GROUP,
        CHUNK,
    )
    _clear(own, need, most, 0, CHUNK, CHUNK)


@triton.jit
def _total(histograms, chunks):
    """Sum of a list's histograms [chunks, 256]."""
    chunk, digit = tl.arange(0, TILE), tl.arange(0, 256)
    total = tl.zeros([256], tl.int32)
    for at in range(0, chunks, TILE):
        place = (at + chunk)[:, None] * 256 + digit[None, :]
        total += tl.sum(tl.load(histograms + place, (at + chunk < chunks)[:, None], 0), 0)
    return total


@triton.jit
def _count(
    scores,
    counts,
    histograms,  # [2, lists, chunks, 256], by turns: in and out
    above,  # [lists, chunks] items that are taken for sure: in and out
    state,  # [4, lists, 2] known and wanted before each pass: in and out
    size,
    most,
    count_row,
    count_head,
    heads,
    BYTE: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """A pass over one chunk of a list."""
    chunk, chunks = tl.program_id(0), tl.num_programs(0)
    list_, lists = tl.program_id(1), tl.num_programs(1)
    own = list_.to(tl.int64) * chunks + chunk
    turn = lists.to(tl.int64) * chunks * 256
    if BYTE == 0:
        known = tl.full([], 0, tl.uint32)
        wanted = _need(counts, list_, count_row, count_head, heads, most, size)
        sure = 0
    else:
        before = state + ((BYTE - 1) * lists + list_) * 2
        known = tl.load(before).to(tl.uint32, bitcast=True)
        last = histograms + (BYTE - 1) % 2 * turn
        total = _total(last + (own - chunk) * 256, chunks)
        known, wanted, digit = _next(total, known, tl.load(before + 1), BYTE - 1)
        bins = tl.arange(0, 256)
        sure = tl.sum(tl.where(bins > digit, tl.load(last + own * 256 + bins), 0))
        if BYTE > 1:
            sure += tl.load(above + own)
    tl.store(above + own, sure)
    if chunk == 0:
        after = state + (BYTE * lists + list_) * 2
        tl.store(after, known.to(tl.int32, bitcast=True))
        tl.store(after + 1, wanted)
    item = chunk * CHUNK + tl.arange(0, CHUNK)
    row = scores + list_.to(tl.int64) * size
    key = _ordered(tl.load(row + item, item < size, float("-inf")))
    histogram = _histogram(key, item < size, known, BYTE, CHUNK)
    tl.store(histograms + BYTE % 2 * turn + own * 256 + tl.arange(0, 256), histogram)


@triton.jit
def _place(
    scores,
    counts,
    chosen,
    seen,
    loaded,
    histograms,
    above,
    state,
    size,
    most,
    words,
    count_row,
    count_head,
    heads,
    GROUP: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """The chosen items of one chunk of a list."""
    chunk, chunks = tl.program_id(0), tl.num_programs(0)
    list_, lists = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    need = _need(counts, list_, count_row, count_head, heads, most, size)
    before = state + (3 * lists + list_) * 2
    last = histograms + (lists + list_) * chunks * 256
    known = tl.load(before).to(tl.uint32, bitcast=True)
    known, wanted, digit = _next(_total(last, chunks), known, tl.load(before + 1), 3)
    sure = tl.full([], 0, tl.int32)
    ties = tl.full([], 0, tl.int32)
    earlier, bins = tl.arange(0, TILE), tl.arange(0, 256)
    for at in range(0, chunk, TILE):
        real = at + earlier < chunk
        place = (at + earlier)[:, None] * 256 + bins[None, :]
        histogram = tl.load(last + place, real[:, None], 0)
        sure += tl.sum(tl.load(above + list_ * chunks + at + earlier, real, 0))
        sure += tl.sum(tl.sum(tl.where((bins > digit)[None, :], histogram, 0), 1))
        ties += tl.sum(tl.sum(tl.where((bins == digit)[None, :], histogram, 0), 1))
    done = sure + tl.minimum(ties, wanted)
    first = chunk * CHUNK
    item = first + tl.arange(0, CHUNK)
    key = _ordered(tl.load(scores + list_ * size + item, item < size, float("-inf")))
    own, group = chosen + list_ * most, list_ // GROUP
    _take(
        key,
        first,
        item < size,
        known,
        wanted,
        done,
        ties,
        need,
        own,
        seen + group * words,
        loaded + group,
        GROUP,
        CHUNK,
    )
    _clear(own, need, most, first, chunks * CHUNK, CHUNK)


def select(scores: Tensor, counts: Tensor, most: int, kv_heads: int) -> tuple[Tensor, Tensor]:
    """The counts [B, H] items with the highest scores [B, H, n], counts at most `most` and n.

    -> item numbers int64 [B, H, most], of which the first counts hold, descending; and how many
    distinct items the H / kv_heads lists of each KV head name, int64 [B, Hkv].
    """
    b, heads, size = scores.shape
    scores, device = scores.contiguous(), scores.device
    lists, group, words = b * heads, heads // kv_heads, -(-size // 32)
    chosen = torch.empty(b, heads, most, dtype=torch.int64, device=device)
    many = b * kv_heads * ((words if group > 1 else 0) + 2)
    fresh = torch.zeros if group > 1 else torch.empty  # a single list's number is just stored
    scratch = fresh(many, dtype=torch.int32, device=device)
    loaded = scratch[: 2 * b * kv_heads].view(torch.int64).view(b, kv_heads)
    seen = scratch[2 * b * kv_heads :]
    asked = (counts.stride(0), counts.stride(1), heads)
    chunks = triton.cdiv(size, CHUNK)
    if chunks == 1:
        chunk = max(256, triton.next_power_of_2(size))
        warps = 4 if chunk <= 1024 else 8
        out = (chosen, seen, loaded)
        _select[(lists,)](
            scores,
            counts,
            *out,
            size,
            most,
            words,
            *asked,
            GROUP=group,
            CHUNK=chunk,
            num_warps=warps,
        )
        return chosen, loaded
    histograms = torch.empty(2, lists, chunks, 256, dtype=torch.int32, device=device)
    above = torch.empty(lists, chunks, dtype=torch.int32, device=device)
    state = torch.empty(4, lists, 2, dtype=torch.int32, device=device)
    found = (histograms, above, state)
    for byte in range(4):
        _count[(chunks, lists)](
            scores, counts, *found, size, most, *asked, BYTE=byte, CHUNK=CHUNK, num_warps=8
        )
    _place[(chunks, lists)](
        scores,
        counts,
        chosen,
        seen,
        loaded,
        *found,
        size,
        most,
        words,
        *asked,
        GROUP=group,
        CHUNK=CHUNK,
        num_warps=8,
    )
    return chosen, loaded
