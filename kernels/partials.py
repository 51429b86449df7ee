"""Partial summaries of a list that stream-K has cut into equal shares: where they lie, how merged.

A list's entries are laid end to end (`cuts`: where each ends) and cut at equal distances, one share
a program; a program leaves one partial (o, log2 of its mass) per entry that its share touches.
Device functions of `kernels.attend` and of the methods' kernels; so are `lse_of` and `total_of`,
the sum of what blocks of one list of logits come to.
"""

from __future__ import annotations

import triton
import triton.language as tl

BLOCKS = tl.constexpr(64)  # whose sums are merged at once


@triton.jit
def slots_of(cuts, entry, groups, programs):
    """(first slot, number) of an entry's partials in the list with these cuts."""
    begin = tl.load(cuts + entry - 1, mask=entry > 0, other=0).to(tl.int64)
    stop = tl.load(cuts + entry).to(tl.int64)
    total = tl.maximum(tl.load(cuts + groups - 1), 1)
    first, count = programs_of(begin, stop, total, programs)
    return first + entry, count


@triton.jit
def programs_of(begin, stop, total, programs):
    """(first, number) of the programs whose shares hold units [begin, stop) of `total`."""
    busy = tl.minimum(programs, total)
    first = ((begin + 1) * busy - 1) // total
    count = tl.where(stop > begin, (stop * busy - 1) // total + 1 - first, 0)
    return first.to(tl.int32), count.to(tl.int32)


@triton.jit
def partials_at(
    part_o,
    part_l,
    first,
    at,
    count,
    lane,  # head within its group
    dims,
    G: tl.constexpr,
    D: tl.constexpr,
    S: tl.constexpr,
):
    """Partials [at, at + S) of an entry: log2 masses [S], outputs [S, dims]."""
    index = at + tl.arange(0, S)
    slot = ((first + index) * G + lane).to(tl.int64)
    level = tl.load(part_l + slot, mask=index < count, other=float("-inf"))
    here = part_o + slot[:, None] * D + dims[None, :]
    return level, tl.load(here, mask=(index < count)[:, None], other=0.0)


@triton.jit
def gathered(
    part_o,
    part_l,
    first,
    count,
    level,  # the first S partials, loaded by the caller
    part,
    lane,
    dims,
    G: tl.constexpr,
    D: tl.constexpr,
    S: tl.constexpr,
    MORE: tl.constexpr,  # partials at a time behind them
):
    """An entry's partials merged: (unnormalised o, its log2 scale, its mass)."""
    top = tl.max(level, 0)
    w = tl.exp2(level - tl.where(top == float("-inf"), 0.0, top))
    out = tl.sum(w[:, None] * part, 0)
    mass = tl.sum(w, 0)
    for at in range(S, count, MORE):
        levels, parts = partials_at(part_o, part_l, first, at, count, lane, dims, G, D, MORE)
        higher = tl.maximum(top, tl.max(levels, 0))
        anchor = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(levels - anchor)
        shrink = tl.exp2(top - anchor)
        out = out * shrink + tl.sum(weights[:, None] * parts, 0)
        mass = mass * shrink + tl.sum(weights, 0)
        top = higher
    return out, top, mass


@triton.jit
def lse_of(tops, masses, heads, real, blocks, HEADS: tl.constexpr):
    """Natural lse of each head's logits [HEADS], from every block's largest one and its mass,
    tops and masses [heads, blocks]; 0 where there is none."""
    top, mass = total_of(tops, masses, heads, real, blocks, HEADS)
    return tl.where(mass > 0, top + tl.log(tl.where(mass > 0, mass, 1.0)), 0.0)


@triton.jit
def total_of(tops, masses, heads, real, blocks, HEADS: tl.constexpr):
    """The same as (largest logit, mass against it), [HEADS]; -inf and 0 where there is none."""
    top = tl.full([HEADS], float("-inf"), tl.float32)
    mass = tl.zeros([HEADS], tl.float32)
    for at in range(0, blocks, BLOCKS):
        block = at + tl.arange(0, BLOCKS)
        there = real[:, None] & (block < blocks)[None, :]
        place = heads[:, None] * blocks + block[None, :]
        theirs = tl.load(tops + place, there, float("-inf"))
        higher = tl.maximum(top, tl.max(theirs, 1))
        anchor = tl.where(higher == float("-inf"), 0.0, higher)
        more = tl.load(masses + place, there, 0.0) * tl.exp(theirs - anchor[:, None])
        mass = mass * tl.exp(top - anchor) + tl.sum(more, 1)
        top = higher
    return top, mass
