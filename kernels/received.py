"""Attention that every key of a prompt gets from the prompt's last queries, in two Triton launches.

    levels  a program takes a tile of one head's queries and a share of the keys that they see:
            FlashAttention's forward pass without values leaves each query's log-sum-exp
    sums    a program takes a tile of keys and a share of one head's queries that see them: with
            the levels known, a probability is exp(logit - level), and its sums stay where they are

Every logit is computed twice and none is stored. What a tile has to see is between one tile and the
whole prompt, and a chunk of a long prompt has few tiles: `choose_splits` says in how many shares
they are cut. Shares are added in their order, so a call gives the same numbers every time.
Torch reference: `macbench.attention.observed.received`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from macbench.kernels.heads import vectors
from macbench.kernels.prefix_rows import choose_splits

LN2 = 0.6931471805599453


@triton.jit
def _some(pool, row, there, stride, dim, D: tl.constexpr):
    """Rows [N, dims] of a tile that may not be `there`: 0."""
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
    head = tl.program_id(0).to(tl.int64)
    tile = tl.num_programs(1) - 1 - tl.program_id(1)  # the longest first
    part, parts = tl.program_id(2), tl.num_programs(2)
    row, token, dim = tl.arange(0, M), tl.arange(0, N), tl.arange(0, DIMS)
    first = (tile * M).to(tl.int64)
    real = tile * M + row < w
    before = length - w + tile * M  # keys before the tile's first query
    own = q + head * head_stride + first * query_stride
    own = _some(own, row, real, query_stride, dim, D)

    tiles = tl.cdiv(tl.minimum(before + M, length), N)
    a, b = part * tiles // parts, (part + 1) * tiles // parts
    f = tl.minimum(tl.maximum((before + 1) // N, a), b)  # every query sees all tiles before
    pool = keys + head // G * kv_stride
    step = tl.full([], N, tl.int64) * key_stride
    top = tl.full([M], float("-inf"), tl.float32)
    mass = tl.zeros([M], tl.float32)
    for t in range(a, f):
        some = vectors(pool + t * step + token[:, None] * key_stride + dim[None, :], dim, D)
        top, mass = _absorb(own, some, None, top, mass, scale2, False)
    for t in range(f, b):
        at = t * N + token
        some = _some(pool + t * step, token, at < length, key_stride, dim, D)
        seen = at[None, :] <= (before + row)[:, None]
        top, mass = _absorb(own, some, seen, top, mass, scale2, True)
    level = tl.where(mass > 0, top + tl.log2(mass), float("-inf"))
    to = (part * tl.num_programs(0) + head) * w + first
    tl.store(levels + to + row, level, real)


@triton.jit(do_not_specialize=["w", "length"])
def _sums(
    q,  # as above
    keys,
    levels,  # [HQ, w]
    sums,  # [parts, HQ, length] out
    scale2,
    w,
    length,
    query_stride,
    head_stride,
    key_stride,
    kv_stride,
    G: tl.constexpr,
    D: tl.constexpr,
    DIMS: tl.constexpr,
    M: tl.constexpr,  # keys of a tile
    N: tl.constexpr,  # queries of a tile
):
    head, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)  # the longest first
    part, parts = tl.program_id(2), tl.num_programs(2)
    row, token, dim = tl.arange(0, M), tl.arange(0, N), tl.arange(0, DIMS)
    first = (tile * M).to(tl.int64)
    key = tile * M + row
    own = keys + head // G * kv_stride + first * key_stride
    own = _some(own, row, key < length, key_stride, dim, D)

    # Tiles [a, b) of queries are this program's; all queries of [f, g) see all its keys.
    before = length - w
    skipped = tl.maximum(tile * M - before, 0) // N
    tiles = tl.cdiv(w, N) - skipped
    a, b = skipped + part * tiles // parts, skipped + (part + 1) * tiles // parts
    f = tl.cdiv(tl.maximum(tile * M + M - 1 - before, 0), N)
    f = tl.minimum(tl.maximum(f, a), b)
    g = tl.minimum(tl.maximum(w // N, f), b)
    pool, level_of = q + head * head_stride, levels + head * w
    step = tl.full([], N, tl.int64) * query_stride
    paid = tl.zeros([M], tl.float32)
    for i in range(f, g):  # from the end: all programs read the same queries at the same time
        t = f + g - 1 - i
        some = vectors(pool + t * step + token[:, None] * query_stride + dim[None, :], dim, D)
        level = tl.load(level_of + t * N + token)
        score = tl.dot(own, tl.trans(some), input_precision="ieee")
        paid += tl.sum(tl.exp2(score * scale2 - level[None, :]), 1)
    for i in range(0, b - a - (g - f)):
        t = a + i
        t = tl.where(t < f, t, t + g - f)
        query = t * N + token
        real = query < w
        some = _some(pool + t * step, token, real, query_stride, dim, D)
        level = tl.load(level_of + query, real, float("inf"))  # who is not there pays nothing
        score = tl.dot(own, tl.trans(some), input_precision="ieee")
        seen = key[:, None] <= (before + query)[None, :]
        above = tl.where(seen, score * scale2 - level[None, :], float("-inf"))
        paid += tl.sum(tl.exp2(above), 1)
    to = (part * tl.num_programs(0) + head) * length + first
    tl.store(sums + to + row, paid, key < length)


@dataclass(frozen=True)
class Tiling:
    """What is tuned, not what is computed.

    rows: what a program keeps, queries or keys; columns: what passes by, a tile at a time; powers
    of two. resident: programs that fit on a multiprocessor at once. parts: shares of a tile's work;
    None chooses.
    """

    rows: int = 128
    columns: int = 64
    warps: int = 4
    stages: int = 2
    resident: int = 4
    parts: int | None = None


def default_tiling(dtype: torch.dtype, d: int) -> Tiling:
    """Exponentials cost as much as products or more, so programs that wait for either must fit on a
    multiprocessor together: at most 128 registers a thread. Large heads fetch more for a tile, and
    share it among more rows."""
    if dtype == torch.float32:  # no tensor cores: for parity, not for speed
        return Tiling(rows=32, columns=16, warps=8)
    if d <= 64:
        return Tiling()
    if d <= 128:
        return Tiling(rows=256, warps=8, resident=2)
    return Tiling(columns=32, resident=2)


def received(q: Tensor, keys: Tensor, scale: float, tiling: Tiling | None = None) -> Tensor:
    """Attention every key gets from the last w queries of its sequence, summed over them.

    q [w, Hq, d] at the last w positions, keys [Hkv, N, d], w <= N, both with the last dimension
    contiguous -> [Hq, N] (fp32). Does not wait for the device.
    """
    (w, heads, d), (kv_heads, length) = q.shape, keys.shape[:2]
    assert q.stride(2) == keys.stride(2) == 1
    tiling = tiling or default_tiling(q.dtype, d)
    few = max(64, triton.next_power_of_2(w))  # a window's queries fill no large tile
    small = replace(tiling, rows=few, warps=4, resident=4) if few < tiling.rows else tiling
    sms = torch.cuda.get_device_properties(q.device).multi_processor_count if q.is_cuda else 1

    def grid(tiling: Tiling, own: int, other: int) -> tuple[int, int, int]:
        tiles, others = triton.cdiv(own, tiling.rows), triton.cdiv(other, tiling.columns)
        parts = tiling.parts or choose_splits(heads * tiles, others, tiling.resident * sms)
        return heads, tiles, parts

    def launch(kernel, tiling: Tiling, programs: tuple[int, int, int], *tensors: Tensor) -> None:
        kernel[programs](
            q,
            keys,
            *tensors,
            scale / LN2,
            w,
            length,
            q.stride(0),
            q.stride(1),
            keys.stride(1),
            keys.stride(0),
            G=heads // kv_heads,
            D=d,
            DIMS=max(16, triton.next_power_of_2(d)),
            M=tiling.rows,
            N=tiling.columns,
            num_warps=tiling.warps,
            num_stages=tiling.stages,
            enable_fp_fusion=True,
        )

    def empty(parts: int, size: int) -> Tensor:
        return torch.empty(parts, heads, size, dtype=torch.float32, device=q.device)

    programs = grid(small, w, length)
    levels = empty(programs[-1], w)
    launch(_levels, small, programs, levels)
    level = levels[0] if len(levels) == 1 else levels.mul_(LN2).logsumexp(0) / LN2
    programs = grid(tiling, length, w)
    sums = empty(programs[-1], length)
    launch(_sums, tiling, programs, level, sums)
    return sums[0] if len(sums) == 1 else sums.sum(0)
