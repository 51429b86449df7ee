"""Summaries of many queries of one prompt, each over its own key range, in Triton.

    rows    a program takes a tile of rows (query, head) of one KV head and a share of the tile's
            keys, and keeps a running softmax: FlashAttention's forward pass
    merge   where the keys of a row are shared by several programs, a second launch joins the parts

A prompt's pages are one run, so a key's address follows from its position: no page table is read.
Ranges that follow one another, as MAC's [min(sink, E), E) do, differ over few tiles of keys; only
those are masked. The torch reference is `macbench.kernels.paged.prefix_rows`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from macbench.kernels.heads import vectors
from macbench.kernels.paged import PAGE
from macbench.kernels.workspace import power

LOG2E = tl.constexpr(1.4426950408889634)
FAR = tl.constexpr(2**30)  # beyond every position


@triton.jit
def _absorb(q, keys, values, seen, top, mass, out, scale, MASKED: tl.constexpr):
    """One tile of keys and values [N, D] into the running softmax (base 2) of rows q [M, D]."""
    score = tl.dot(q, tl.trans(keys), input_precision="ieee")
    if MASKED:
        score = tl.where(seen, score, float("-inf"))
    higher = tl.maximum(top, tl.max(score, 1) * scale)
    anchor = higher
    if MASKED:  # a row that has seen no key yet
        anchor = tl.where(higher == float("-inf"), 0.0, higher)
    p = tl.exp2(score * scale - anchor[:, None])
    shrink = tl.exp2(top - anchor)
    mass = mass * shrink + tl.sum(p, 1)
    out = tl.dot(p.to(values.dtype), values, out * shrink[:, None], input_precision="ieee")
    return higher, mass, out


@triton.jit(do_not_specialize=["n", "length"])  # one compilation for every prompt
def _rows(
    queries,  # [n, HQ, D], strides below, last dimension contiguous
    k_run,  # [pages, HKV, PAGE, D]
    v_run,
    starts,  # [n]
    ends,  # [n]
    part_o,  # [splits, n, HQ, D] fp32: out
    part_l,  # [splits, n, HQ] fp32: out, natural
    n,
    length,
    query_stride,
    head_stride,
    scale,  # times log2(e)
    HKV: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    DIMS: tl.constexpr,  # padded
    PAGE: tl.constexpr,
    M: tl.constexpr,  # rows of a tile
    N: tl.constexpr,  # keys of a tile
):
    # Neighbours read the same keys at the same time; those with the longest ranges come first.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    split, splits = tl.program_id(1), tl.num_programs(1)
    kv_head = tl.program_id(2)

    row = tile * M + tl.arange(0, M)
    query = row // G
    head = kv_head * G + row % G
    real = query < n
    dim, token = tl.arange(0, DIMS), tl.arange(0, N)
    own = real[:, None] & (dim < D)[None, :]
    start = tl.load(starts + query, mask=real, other=0).to(tl.int32)
    end = tl.minimum(tl.load(ends + query, mask=real, other=0).to(tl.int32), length)
    some = end > tl.maximum(start, 0)
    at = query.to(tl.int64) * query_stride + head.to(tl.int64) * head_stride
    q = tl.load(queries + at[:, None] + dim[None, :], mask=own, other=0.0)

    # This program's tiles of keys are [a, b); every row with keys sees all of [f, g).
    # Rows without keys are left out here, and of the result.
    low = tl.maximum(tl.min(tl.where(some, start, FAR), 0), 0)
    high = tl.max(tl.where(some, end, 0), 0)
    first = low // N
    count = tl.maximum(tl.cdiv(high, N) - first, 0)
    a = first + split * count // splits
    b = first + (split + 1) * count // splits
    f = tl.cdiv(tl.max(tl.where(some, start, 0), 0), N)
    g = tl.min(tl.where(some, end, FAR), 0) // N
    f = tl.minimum(tl.maximum(f, a), b)
    g = tl.minimum(tl.maximum(g, f), b)

    # The same offsets in every tile, so that a step adds to one address only.
    inside = (token // PAGE) * (HKV * PAGE * D) + (token % PAGE) * D
    inside = inside[:, None] + dim[None, :]
    step = tl.full([], N // PAGE * HKV * PAGE * D, tl.int64)
    k_head = k_run + kv_head * (PAGE * D)
    v_head = v_run + kv_head * (PAGE * D)
    top = tl.full([M], float("-inf"), tl.float32)
    mass = tl.zeros([M], tl.float32)
    out = tl.zeros([M, DIMS], tl.float32)
    for t in range(f, g):
        base = t * step
        keys = vectors(k_head + base + inside, dim, D)
        values = vectors(v_head + base + inside, dim, D)
        top, mass, out = _absorb(q, keys, values, None, top, mass, out, scale, False)
    for i in range(0, b - a - (g - f)):
        t = a + i
        t = tl.where(t < f, t, t + g - f)
        position = t * N + token
        # what lies behind is not the prompt's
        there = (position < high)[:, None] & (dim < D)[None, :]
        base = t * step
        keys = tl.load(k_head + base + inside, mask=there, other=0.0)
        values = tl.load(v_head + base + inside, mask=there, other=0.0)
        seen = (position[None, :] >= start[:, None]) & (position[None, :] < end[:, None])
        top, mass, out = _absorb(q, keys, values, seen, top, mass, out, scale, True)

    some = some & (mass > 0)
    mass = tl.where(some, mass, 1.0)
    out = tl.where(some[:, None], out / mass[:, None], 0.0)
    natural = tl.where(some, (top + tl.log2(mass)) / LOG2E, float("-inf"))
    at = (split * n + query).to(tl.int64) * (HKV * G) + head
    tl.store(part_l + at, natural, mask=real)
    tl.store(part_o + at[:, None] * D + dim[None, :], out, mask=own)


@triton.jit
def _merge(
    part_o,  # [splits, rows, D]
    part_l,  # [splits, rows]
    output,  # [rows, D]: out
    lse,  # [rows]: out
    rows,
    splits,
    D: tl.constexpr,
    DIMS: tl.constexpr,
    M: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)
    real = row < rows
    dim = tl.arange(0, DIMS)
    own = real[:, None] & (dim < D)[None, :]
    top = tl.full([M], float("-inf"), tl.float32)
    mass = tl.zeros([M], tl.float32)
    out = tl.zeros([M, DIMS], tl.float32)
    for split in range(splits):
        at = row + split * rows
        level = tl.load(part_l + at, mask=real, other=float("-inf"))
        part = tl.load(part_o + at[:, None] * D + dim[None, :], mask=own, other=0.0)
        higher = tl.maximum(top, level)
        anchor = tl.where(higher == float("-inf"), 0.0, higher)
        weight, shrink = tl.exp(level - anchor), tl.exp(top - anchor)
        mass = mass * shrink + weight
        out = out * shrink[:, None] + part * weight[:, None]
        top = higher
    some = mass > 0
    mass = tl.where(some, mass, 1.0)
    natural = tl.where(some, top + tl.log(mass), float("-inf"))
    tl.store(lse + row, natural, mask=real)
    tl.store(output + row[:, None] * D + dim[None, :], out / mass[:, None], mask=own)


@dataclass(frozen=True)
class Tiling:
    """What is tuned, not what is computed.

    rows, tokens: a tile's rows and keys, powers of two, tokens a multiple of the page. resident:
    programs that fit on a multiprocessor at once. splits: programs that share a row's keys; None
    chooses.
    """

    rows: int = 128
    tokens: int = 64
    warps: int = 4
    stages: int = 3
    resident: int = 2
    splits: int | None = None


def default_tiling(dtype: torch.dtype, d: int) -> Tiling:
    """16-bit tiles leave registers free: with larger ones (128 keys at d = 64) the compiler makes
    each tensor-core product wait for the one before."""
    if dtype == torch.float32:  # no tensor cores: for parity, not for speed
        return Tiling(rows=32, tokens=32, warps=8, stages=2, resident=1)
    if d <= 64:
        return Tiling()
    if d <= 128:
        return Tiling(warps=8, resident=1)
    return Tiling(tokens=32, warps=8, resident=1)


def choose_splits(programs: int, tiles: int, slots: int) -> int:
    """Programs, each of `tiles` steps, that run `slots` at a time: in how many parts to cut each.

    Cost is waves times steps. A part costs about eight steps beside its own: queries, masked tiles,
    result and merge.
    """

    def cost(splits: int) -> int:
        return -(-programs * splits // slots) * (-(-tiles // splits) + 8)

    return min(range(1, min(max(tiles, 1), 32) + 1), key=cost)


def prefix_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    length: int,
    starts: Tensor,
    ends: Tensor,
    scale: float,
    tiling: Tiling | None = None,
) -> tuple[Tensor, Tensor]:
    """Query i of one prompt over its keys [starts[i], ends[i]).

    q [n, Hq, d], last dimension contiguous; k, v: the prompt's run of pages [pages, Hkv, 16, d] of
    q's dtype, of which `length` tokens are used; starts, ends [n] of integers -> o [n, Hq, d] and
    natural-log lse [n, Hq], fp32. An empty range gives o = 0, lse = -inf. Does not wait for the
    device.
    """
    n, q_heads, d = q.shape
    kv_heads = k.shape[1]
    assert k.is_contiguous() and v.is_contiguous() and q.stride(2) == 1
    tiling = tiling or default_tiling(q.dtype, d)
    tiles = triton.cdiv(n * q_heads // kv_heads, tiling.rows)
    splits = tiling.splits
    if splits is None:
        cores = torch.cuda.get_device_properties(q.device).multi_processor_count if q.is_cuda else 1
        slots = cores * tiling.resident
        splits = choose_splits(tiles * kv_heads, triton.cdiv(length, tiling.tokens), slots)
    part_o = torch.empty(splits, n, q_heads, d, dtype=torch.float32, device=q.device)
    part_l = torch.empty(splits, n, q_heads, dtype=torch.float32, device=q.device)
    dims = max(16, power(d))
    _rows[tiles, splits, kv_heads](
        q,
        k,
        v,
        starts.contiguous(),
        ends.contiguous(),
        part_o,
        part_l,
        n,
        length,
        q.stride(0),
        q.stride(1),
        scale * LOG2E.value,
        HKV=kv_heads,
        G=q_heads // kv_heads,
        D=d,
        DIMS=dims,
        PAGE=PAGE,
        M=tiling.rows,
        N=tiling.tokens,
        num_warps=tiling.warps,
        num_stages=tiling.stages,
        enable_fp_fusion=True,
    )
    if splits == 1:
        return part_o[0], part_l[0]
    out, lse = torch.empty_like(part_o[0]), torch.empty_like(part_l[0])
    rows = n * q_heads
    _merge[(triton.cdiv(rows, 16),)](
        part_o, part_l, out, lse, rows, splits, D=d, DIMS=dims, M=16, enable_fp_fusion=True
    )
    return out, lse
