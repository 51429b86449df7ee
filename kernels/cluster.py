"""Multipole's newest interval of tokens becomes clusters, in one Triton launch a layer.

A program serves one KV head of a row, and has nothing to do but in the step in which an interval is
full. It turns the interval's keys back to position 0 and runs Lloyd's iterations on them as
`macbench.attention.kmeans` does, from the same draws (`macbench.attention.rng`); sums may round
apart. Torch reference: `macbench.attention.multipole.Multipole._grow`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from macbench.kernels.draws import BITS, drawn
from macbench.kernels.paged import PAGE
from macbench.kernels.workspace import power

ROOM = 2**15  # numbers that a program holds of an interval


@triton.jit(do_not_specialize=["layer"])
def _cluster(
    k_pool,  # [pages, HKV, PAGE, D]
    v_pool,
    table,  # [B, M]
    lens,  # [B]
    prompted,  # [B] intervals of the prompt
    seeds,  # [B] what a row's draws depend on
    cos,  # [B, INTERVAL, D]: what rotated the interval's keys
    sin,
    partner,  # [D]
    keys,  # [B, HKV, room, D] out: mean keys
    values,  # out: mean values
    counts,  # [B, HKV, room] out
    members,  # [B, HKV, slots] out
    layer,
    M,
    room,
    slots,
    sink,
    HKV: tl.constexpr,
    D: tl.constexpr,
    DIMS: tl.constexpr,  # powers of two, at least 16: of D,
    INTERVAL: tl.constexpr,
    N: tl.constexpr,  # and of INTERVAL
    EACH: tl.constexpr,  # clusters
    ITERATIONS: tl.constexpr,
    VALUES: tl.constexpr,
    PAGE: tl.constexpr,
):
    group = tl.program_id(0)
    row, head = group // HKV, group % HKV
    seen = tl.load(lens + row).to(tl.int32) - sink
    newest = seen // INTERVAL - 2
    if (seen % INTERVAL == 0) & (newest >= tl.load(prompted + row)):
        token, dim = tl.arange(0, N), tl.arange(0, DIMS)
        there = token < INTERVAL
        own = there[:, None] & (dim < D)[None, :]
        begin = sink + newest * INTERVAL
        position = begin + token
        page = tl.load(table + row * M + position // PAGE, there, 0).to(tl.int64)
        place = (((page * HKV + head) * PAGE + position % PAGE) * D)[:, None]
        other = tl.load(partner + dim, dim < D, 0)
        key = tl.load(k_pool + place + dim[None, :], own, 0.0).to(tl.float32)
        swapped = tl.load(k_pool + place + other[None, :], own, 0.0).to(tl.float32)
        turn = (row * INTERVAL + token)[:, None].to(tl.int64) * D + dim[None, :]
        c, s = tl.load(cos + turn, own, 1.0), tl.load(sin + turn, own, 0.0)
        key = (c * key + s * swapped) / tl.sqrt(c * c + s * s)
        points = tl.where(own, key - (tl.sum(key, 0) / INTERVAL)[None, :], 0.0)

        draw = drawn(drawn(drawn(tl.zeros([1], tl.int64), tl.load(seeds + row)), layer), head)
        first = drawn(draw, begin)
        draw = tl.where(there, (drawn(draw, position) >> 7).to(tl.int32), BITS)
        less = draw[None, :] < draw[:, None]
        less = less | ((draw[None, :] == draw[:, None]) & (token[None, :] < token[:, None]))
        label = tl.sum(less.to(tl.int32), 1)  # each seed is the one point of its cluster
        for i in range(ITERATIONS):
            best = tl.full([N], float("inf"), tl.float32)
            nearest = tl.zeros([N], tl.int32)
            for k in range(EACH):
                mine = label == k
                count = tl.sum(mine.to(tl.int32), 0)
                share = (drawn(drawn(first, i - 1), k) >> 7).to(tl.float32) * (1.0 / (1 << 24))
                mine = mine | ((count == 0) & (token == (share * INTERVAL).to(tl.int32)))
                centre = tl.sum(tl.where(mine[:, None], points, 0.0), 0)
                centre = tl.div_rn(
                    centre, tl.maximum(count, 1).to(tl.float32) + tl.zeros_like(centre)
                )
                # squared distances, less the square of the point
                apart = tl.sum(centre * centre, 0) - 2 * tl.sum(points * centre[None, :], 1)
                nearest = tl.where(apart < best, k, nearest)
                best = tl.minimum(apart, best)
            label = tl.where(there, nearest, EACH)

        value = key
        if VALUES:
            value = tl.load(v_pool + place + dim[None, :], own, 0.0).to(tl.float32)
        begun = group.to(tl.int64) * room + newest * EACH
        order = tl.zeros([N], tl.int32)
        done = tl.full([], 0, tl.int32)
        for k in range(EACH):
            mine = label == k
            count = tl.sum(mine.to(tl.int32), 0)
            size = tl.maximum(count, 1).to(tl.float32)
            tl.store(counts + begun + k, count)
            at = (begun + k) * D + dim
            mean = tl.sum(tl.where(mine[:, None], key, 0.0), 0) / size
            tl.store(keys + at, mean, dim < D)
            if VALUES:
                mean = tl.sum(tl.where(mine[:, None], value, 0.0), 0) / size
                tl.store(values + at, mean, dim < D)
            order = tl.where(mine, done + tl.cumsum(mine.to(tl.int32), 0) - 1, order)
            done += count
        at = group.to(tl.int64) * slots + newest * INTERVAL
        tl.store(members + at + order, position, there)


def fits(interval: int, d: int) -> bool:
    """Whether a program can hold an interval of tokens."""
    n = power(interval)
    return n * max(n, power(d)) <= ROOM


def cluster(
    layer: int,
    k_pool: Tensor,
    v_pool: Tensor,
    table: Tensor,
    lens: Tensor,
    prompted: Tensor,
    seeds: Tensor,
    turn: tuple[Tensor, Tensor, Tensor],
    keys: Tensor,
    counts: Tensor,
    members: Tensor,
    values: Tensor | None,
    sink: int,
    interval: int,
    each: int,
    iterations: int,
) -> None:
    """Rows with lens [B] = sink + (i + 2) interval, i >= prompted [B], get `each` clusters of
    interval i, in place: mean keys and values [B, Hkv, room, d], counts [B, Hkv, room] and members
    [B, Hkv, n], which lie as in `kernels.multipole`. turn: cos and sin [B, interval, d] of that
    interval's positions, and partner [d].
    """
    b, kv_heads, room, d = keys.shape
    cos, sin, partner = turn
    _cluster[(b * kv_heads,)](
        k_pool,
        v_pool,
        table,
        lens,
        prompted,
        seeds,
        cos.contiguous(),
        sin.contiguous(),
        partner,
        keys,
        keys if values is None else values,
        counts,
        members,
        layer,
        table.stride(0),
        room,
        members.shape[-1],
        sink,
        HKV=kv_heads,
        D=d,
        DIMS=max(16, power(d)),
        INTERVAL=interval,
        N=max(16, power(interval)),
        EACH=each,
        ITERATIONS=iterations,
        VALUES=values is not None,
        PAGE=PAGE,
        num_warps=8 if interval * d <= 2**13 else 16,
    )
