"""The lists of eviction methods in a decode step, in Triton: one launch adds the newest token to
every list, one drops the token of lowest score.

Torch references: `macbench.attention.kept` and the methods' own eviction.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LISTS = 128  # of a program
BLOCK = 2048


@triton.jit
def _append(
    tokens,  # [B * H, most] in and out
    held,  # [B * H] in and out
    lens,  # [B]
    live,  # [B]
    counts,  # [B * H] out
    lists,
    most,
    size,
    H: tl.constexpr,
    LISTS: tl.constexpr,
):
    own = tl.program_id(0) * LISTS + tl.arange(0, LISTS)
    real = own < lists
    more = tl.load(live + own // H, real, 0).to(tl.int64)
    count = tl.minimum(tl.load(held + own, real, 1) + more, most)
    newest = tl.load(lens + own // H, real, 1) - 1
    place = own.to(tl.int64) * most + count - 1
    tl.store(tokens + place, newest.to(tokens.dtype.element_ty), real)
    tl.store(held + own, count, real)
    tl.store(counts + own, tl.minimum(count, size), real)


@triton.jit
def _drop(
    paid,  # [B, H, size] what the step's queries paid
    sums,  # [B, H, room] in and out, if SUMS: what all queries paid
    tokens,  # [B, H, most] in and out
    held,  # [B, H] in and out
    lens,  # [B]
    limit,  # [B] tokens kept at most
    recent,  # [B] of them the last ones stay, if SUMS
    size,
    room,
    most,
    H: tl.constexpr,
    SUMS: tl.constexpr,
    GROUP: tl.constexpr,  # of these sums, which are means over so many query heads
    NORMALISE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program treats one list: it finds the entry to drop, then writes."""
    list_ = tl.program_id(0).to(tl.int64)
    row = list_ // H
    lane = tl.arange(0, BLOCK)
    count = tl.load(held + list_).to(tl.int32)
    length = tl.load(lens + row).to(tl.int32)
    drop = count > tl.load(limit + row)
    last = count - 1
    least = tl.full([], float("inf"), tl.float32)
    latest = tl.full([], -1, tl.int32)  # position of the lowest so far
    worst = tl.full([], 0, tl.int32)
    kept_sum = tl.full([], 0.0, tl.float32)  # of the last entry
    for at in range(0, tl.minimum(count, size), BLOCK):
        item = at + lane
        inside = (item < count) & (item < size)
        score = tl.load(paid + list_ * size + item, inside, 0.0)
        token = tl.load(tokens + list_ * most + item, inside, -1).to(tl.int32)
        if SUMS:
            before = tl.load(sums + list_ * room + item, inside & (item < last), 0.0)
            score = before + tl.div_rn(score, GROUP * 1.0)
            kept_sum += tl.sum(tl.where(item == last, score, 0.0))
            if NORMALISE:
                score = tl.div_rn(score, tl.maximum(length - token, 1).to(tl.float32))
            score = tl.where(token >= length - tl.load(recent + row), float("inf"), score)
        score = tl.where(inside, score, float("inf"))
        low = tl.min(score)
        high = tl.max(tl.where(inside & (score == low), token, -1))  # of equals, the latest goes
        where = tl.min(tl.where(inside & (score == low) & (token == high), item, 2147483647))
        lower = (low < least) | ((low == least) & (high > latest))
        least = tl.where(lower, low, least)
        latest = tl.where(lower, high, latest)
        worst = tl.where(lower, where, worst)
    if SUMS:
        for at in range(0, tl.minimum(count, size), BLOCK):
            item = at + lane
            inside = (item < count) & (item < size)
            score = tl.load(paid + list_ * size + item, inside, 0.0)
            before = tl.load(sums + list_ * room + item, inside & (item < last), 0.0)
            score = before + tl.div_rn(score, GROUP * 1.0)
            score = tl.where(drop & (item == worst), kept_sum, score)
            tl.store(sums + list_ * room + item, score, inside)
    if drop:  # the last entry takes the place
        tl.store(tokens + list_ * most + worst, tl.load(tokens + list_ * most + last))
        tl.store(held + list_, last.to(tl.int64))


def append(
    tokens: Tensor, held: Tensor, lens: Tensor, live: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """Position lens - 1 ([B]) joins the lists tokens [B, H, most] of held [B, H] entries, where
    live [B]; a list that does not grow has its last entry written.

    -> the first `size` entries of every list, where they lie, and how many of these hold [B, H].
    """
    counts = torch.empty_like(held)
    many, (_, heads, most) = held.numel(), tokens.shape
    _append[(triton.cdiv(many, LISTS),)](
        tokens, held, lens, live, counts, many, most, size, H=heads, LISTS=LISTS
    )
    return tokens[..., :size], counts


def drop(
    tokens: Tensor,
    held: Tensor,
    paid: Tensor,
    lens: Tensor,
    limit: Tensor,
    sums: Tensor | None = None,
    recent: Tensor | None = None,
    group: int = 1,
    normalise: bool = False,
) -> None:
    """Lists tokens [B, H, most] of more than limit [B] entries lose one, the last takes its place.

    The one of lowest paid [B, H, n]; with sums [B, H, most], to which paid / group is added first
    (the last entry begins at 0), the one of lowest sum outside the `recent` [B] last positions,
    each sum divided by the queries that could see the token if `normalise`. Of equals the latest.
    """
    b, heads, size = paid.shape
    _drop[(b * heads,)](
        paid,
        paid if sums is None else sums,
        tokens,
        held,
        lens,
        limit,
        limit if recent is None else recent,
        size,
        0 if sums is None else sums.shape[-1],
        tokens.shape[-1],
        H=heads,
        SUMS=sums is not None,
        GROUP=group,
        NORMALISE=normalise,
        BLOCK=min(BLOCK, max(128, triton.next_power_of_2(size))),
        num_warps=4,
    )
