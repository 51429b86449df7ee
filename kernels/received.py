"""Attention that every key of a prompt gets from the prompt's last queries, in two Triton launches.

    levels  a program takes a tile of one head's queries and a share of the keys that they see:
            FlashAttention's forward pass without values leaves each query's log-sum-exp
    sums    a program takes a tile of keys and a share of the queries that see them, head by head
            of a list: with the level known, a probability is exp(logit - level), and a tile's sum
            stays where it is

Every logit is computed twice and none is stored. Tiles see between one key or query and all, and
there may be fewer of them than the card runs at once, so shares are cut as `choose_splits` says and
added in their order: the same numbers in every call. Torch reference:
`macbench.attention.observed.received`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from macbench.kernels.prefix_rows import choose_splits

LN2 = 0.6931471805599453


@triton.jit
def _vectors(pool, row, stride, dim, D: tl.constexpr):
    """Rows [N, dims] of a tile; 0 behind D."""
    at = pool + row[:, None] * stride + dim[None, :]
    return tl.load(at) if dim.shape[0] == D else tl.load(at, (dim < D)[None, :], 0.0)


@triton.jit
def _some(pool, row, there, stride, dim, D: tl.constexpr):
    """The same of rows that may not be `there`: 0."""
    at = pool + row[:, None] * stride + dim[None, :]
    return tl.load(at, there[:, None] & (dim < D)[None, :], 0.0)


@triton.jit
def _absorb(q, keys, seen, top, mass, scale2, MASKED: tl.constexpr):
    """A tile of keys [N, D] into the running sum, and its exponent `top`, of queries q [M, D]."""
    score = tl.dot(q, tl.trans(keys), input_precision="ieee")
    if MASKED:
        score = tl.where(seen, score, float("-inf"))
    higher = tl.maximum(top, tl.max(score, 1) * scale2)
    anchor = higher
    if MASKED:  # a query that has seen no key yet
        anchor = tl.where(higher == float("-inf"), 0.0, higher)
    p = tl.exp2(score * scale2 - anchor[:, None])
    return higher, mass * tl.exp2(top - anchor) + tl.sum(p, 1)


@triton.jit(do_not_specialize=["w", "length"])  # one compilation for every prompt
def _levels(
    q,  # [w, HQ, D], strides below, the last one 1
    keys,  # [HKV, length, D], strides below, the last one 1
    levels,  # [parts, HQ, w] out, log2
    scale2,  # scale * log2(e)
    w,
    length,
    query_stride,
    head_stride,
    key_stride,
    kv_stride,
    G: tl.constexpr,  # query heads of a KV head
    D: tl.constexpr,
    DIMS: tl.constexpr,  # padded
    M: tl.constexpr,  # queries of a tile
    N: tl.constexpr,  # keys of a tile
):
    head, tile = tl.program_id(0), tl.num_programs(1) - 1 - tl.program_id(1)  # the longest first
    part, parts = tl.program_id(2), tl.num_programs(2)
    row, token, dim = tl.arange(0, M), tl.arange(0, N), tl.arange(0, DIMS)
    first = (tile * M).to(tl.int64)
    real = tile * M + row < w
    before = length - w + tile * M  # keys before the tile's first query
    own = q + head.to(tl.int64) * head_stride + first * query_stride
    own = _some(own, row, real, query_stride, dim, D)

    tiles = tl.cdiv(tl.minimum(before + M, length), N)
    a, b = part * tiles // parts, (part + 1) * tiles // parts
    f = tl.minimum(tl.maximum((before + 1) // N, a), b)  # every query sees all tiles before
    pool = keys + (head // G).to(tl.int64) * kv_stride
    step = tl.full([], N, tl.int64) * key_stride
    top = tl.full([M], float("-inf"), tl.float32)
    mass = tl.zeros([M], tl.float32)
    for t in range(a, f):
        some = _vectors(pool + t * step, token, key_stride, dim, D)
        top, mass = _absorb(own, some, None, top, mass, scale2, False)
    for t in range(f, b):
        at = t * N + token
        some = _some(pool + t * step, token, at < length, key_stride, dim, D)
        seen = at[None, :] <= (before + row)[:, None]
        top, mass = _absorb(own, some, seen, top, mass, scale2, True)
    level = tl.where(mass > 0, top + tl.log2(mass), float("-inf"))
    to = (part * tl.num_programs(0) + head).to(tl.int64) * w + first
    tl.store(levels + to + row, level, real)


@triton.jit(do_not_specialize=["w", "length"])
def _sums(
    q,  # as above
    keys,
    levels,  # [HQ, w]
    sums,  # [parts, lists, length] out
    scale2,
    w,
    length,
    query_stride,
    head_stride,
    key_stride,
    kv_stride,
    G: tl.constexpr,  # query heads of a KV head
    HEADS: tl.constexpr,  # and of a list
    D: tl.constexpr,
    DIMS: tl.constexpr,
    M: tl.constexpr,  # keys of a tile
    N: tl.constexpr,  # queries of a tile
):
    list_, tile = tl.program_id(0), tl.program_id(1)  # the longest first
    part, parts = tl.program_id(2), tl.num_programs(2)
    row, token, dim = tl.arange(0, M), tl.arange(0, N), tl.arange(0, DIMS)
    first = (tile * M).to(tl.int64)
    key = tile * M + row
    pool = keys + (list_ * HEADS // G).to(tl.int64) * kv_stride + first * key_stride
    own = _some(pool, row, key < length, key_stride, dim, D)

    # Tiles [a, b) of queries are this program's; all queries of [f, g) see all its keys.
    before = length - w
    skipped = tl.maximum(tile * M - before, 0) // N
    tiles = tl.cdiv(w, N) - skipped
    a, b = skipped + part * tiles // parts, skipped + (part + 1) * tiles // parts
    f = tl.cdiv(tl.maximum(tile * M + M - 1 - before, 0), N)
    f = tl.minimum(tl.maximum(f, a), b)
    g = tl.minimum(tl.maximum(w // N, f), b)
    step = tl.full([], N, tl.int64) * query_stride
    paid = tl.zeros([M], tl.float32)
    for i in range(f * HEADS, g * HEADS):
        t, head = i // HEADS, (list_ * HEADS + i % HEADS).to(tl.int64)
        some = _vectors(q + head * head_stride + t * step, token, query_stride, dim, D)
        level = tl.load(levels + head * w + t * N + token)
        score = tl.dot(own, tl.trans(some), input_precision="ieee")
        paid += tl.sum(tl.exp2(score * scale2 - level[None, :]), 1)
    for i in range(0, (b - a - (g - f)) * HEADS):
        t, head = a + i // HEADS, (list_ * HEADS + i % HEADS).to(tl.int64)
        t = tl.where(t < f, t, t + g - f)
        query = t * N + token
        there = query < w
        some = _some(q + head * head_stride + t * step, token, there, query_stride, dim, D)
        level = tl.load(levels + head * w + query, there, float("inf"))  # none pays nothing
        score = tl.dot(own, tl.trans(some), input_precision="ieee")
        seen = key[:, None] <= (before + query)[None, :]
        above = tl.where(seen, score * scale2 - level[None, :], float("-inf"))
        paid += tl.sum(tl.exp2(above), 1)
    to = (part * tl.num_programs(0) + list_).to(tl.int64) * length + first
    tl.store(sums + to + row, paid, key < length)


@dataclass(frozen=True)
class Tiling:
    """What is tuned, not what is computed.

    rows: what a program keeps, queries or keys; columns: what passes by, a tile at a time. resident:
    programs that fit on a multiprocessor at once. parts: programs that share a tile's work; None
    chooses.
    """

    rows: int = 128
    columns: int = 64
    warps: int = 4
    stages: int = 2
    resident: int = 4
    parts: int | None = None


def default_tiling(dtype: torch.dtype, d: int) -> Tiling:
    if dtype == torch.float32:  # no tensor cores: for parity, not for speed
        return Tiling(rows=32, columns=32, warps=8, stages=2, resident=1)
    if d <= 64:
        return Tiling()
    return Tiling(resident=3) if d <= 128 else Tiling(columns=32, resident=2)


def received(
    q: Tensor, keys: Tensor, scale: float, lists: int, tiling: Tiling | None = None
) -> Tensor:
    """Attention every key gets from the last w queries of its sequence, summed over them and over
    the query heads of each of `lists` equal parts of Hq, which Hkv divides.

    q [w, Hq, d] at the last w positions, keys [Hkv, N, d], w <= N, both with the last dimension
    contiguous -> [lists, N] (fp32). Does not wait for the device.
    """
    (w, q_heads, d), (kv_heads, length) = q.shape, keys.shape[:2]
    assert q.stride(2) == keys.stride(2) == 1
    assert q_heads % lists == 0 and lists % kv_heads == 0
    tiling = tiling or default_tiling(q.dtype, d)
    rows, columns, group = tiling.rows, tiling.columns, q_heads // kv_heads
    strides = q.stride(0), q.stride(1), keys.stride(1), keys.stride(0)
    shape = {"G": group, "D": d, "DIMS": max(16, triton.next_power_of_2(d)), "M": rows}
    shape |= {"N": columns, "num_warps": tiling.warps, "num_stages": tiling.stages}
    cores = torch.cuda.get_device_properties(q.device).multi_processor_count if q.is_cuda else 1

    def grid(heads: int, own: int, steps: int) -> tuple[int, int, int]:
        tiles = triton.cdiv(own, rows)
        parts = tiling.parts or choose_splits(heads * tiles, steps, cores * tiling.resident)
        return heads, tiles, parts

    def empty(*size: int) -> Tensor:
        return torch.empty(size, dtype=torch.float32, device=q.device)

    programs = grid(q_heads, w, triton.cdiv(length, columns))
    levels = empty(programs[2], q_heads, w)
    _levels[programs](q, keys, levels, scale / LN2, w, length, *strides, **shape)
    level = levels[0] if len(levels) == 1 else levels.mul_(LN2).logsumexp(0) / LN2

    heads = q_heads // lists
    programs = grid(lists, length, triton.cdiv(w, columns) * heads)
    sums = empty(programs[2], lists, length)
    _sums[programs](
        q, keys, level, sums, scale / LN2, w, length, *strides, HEADS=heads, **shape
    )
    return sums[0] if len(sums) == 1 else sums.sum(0)
