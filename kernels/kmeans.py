"""Multipole's clusters of a prompt: Lloyd's iterations over all its blocks and KV heads at once.

Two launches an iteration: `_means` makes every cluster's mean of the points with its label, as the
product of a tile of zeros and ones with the points, so that no sum depends on an order that the
card chooses; `_assign` labels every point with its nearest mean. Before them, `_rank` finds the
seeds, and behind them the order of tokens by cluster, both by counting what comes first. Draws are
those of `macbench.attention.rng`; sums may round apart. Torch reference:
`macbench.attention.multipole.Multipole._clusters`, called for each block.

Tensor cores have no products of fp32. Numbers are kept as sums of three in bf16, which hold all of
their 24 bits: the products of parts are exact, and those that count below 2^-24 are left out.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from macbench.kernels.draws import BITS, drawn
from macbench.kernels.workspace import power

PARTS = 3  # of a number
RANKED = 128  # tokens of a program of `_rank`,
OTHERS = 32  # and those that they are compared with at a time
CENTRES = 64  # of a program of `_means`, and at a time in `_assign`
# numbers of the points that a program of these holds at a time
ROOM = 2**14  # with the 227 KB of shared memory of compute capabilities 9 and 10
LITTLE_ROOM = 2**13  # with the 99 KB of others


@triton.jit
def _block(whole, size, blocks):
    """Head, first token and number of tokens of this program's block: the last has the rest."""
    group = tl.program_id(1)
    start = group % blocks * size
    return group // blocks, start, tl.where(group % blocks + 1 < blocks, size, whole - start)


@triton.jit
def _load(parts, step, at, there):
    """The three parts of numbers, which lie `step` apart."""
    first = tl.load(parts + at, there, 0.0)
    second = tl.load(parts + step + at, there, 0.0)
    return first, second, tl.load(parts + 2 * step + at, there, 0.0)


@triton.jit
def _store(parts, step, at, x, there):
    kind = parts.dtype.element_ty
    first = x.to(kind)
    rest = x - first.to(tl.float32)
    second = rest.to(kind)
    tl.store(parts + at, first, there)
    tl.store(parts + step + at, second, there)
    tl.store(parts + 2 * step + at, (rest - second.to(tl.float32)).to(kind), there)


@triton.jit
def _split(
    x,  # [H, whole, D]
    middle,  # [H, D]: subtracted
    parts,  # [PARTS, H, whole, DIMS] out
    head_stride,  # of x
    token_stride,
    whole,
    D: tl.constexpr,
    DIMS: tl.constexpr,
    POINTS: tl.constexpr,
):
    head, dim = tl.program_id(1), tl.arange(0, DIMS)
    token = tl.program_id(0) * POINTS + tl.arange(0, POINTS)
    there = (token < whole)[:, None]
    own = there & (dim < D)[None, :]
    at = head.to(tl.int64) * head_stride + token[:, None].to(tl.int64) * token_stride
    value = tl.load(x + at + dim[None, :], own, 0.0).to(tl.float32)
    value -= tl.load(middle + head * D + dim, dim < D, 0.0)[None, :]
    at = (head * whole + token)[:, None].to(tl.int64) * DIMS + dim[None, :]
    step = tl.num_programs(1).to(tl.int64) * whole * DIMS
    _store(parts, step, at, value, there)


@triton.jit
def _sought(labels, at, there, state, position, DRAWN: tl.constexpr):
    """What tokens are ordered by: their draws, or their labels."""
    if DRAWN:
        return (drawn(state, position) >> 7).to(tl.int32)
    return tl.load(labels + at, there, 0)


@triton.jit(do_not_specialize=["key", "layer", "first", "blocks"])
def _rank(
    labels,  # [H, whole]; out where DRAWN: each token's place in the order of draws
    members,  # [H, whole] out elsewhere: positions of tokens in the order of labels
    key,
    layer,
    first,  # position
    whole,
    size,
    blocks,
    DRAWN: tl.constexpr,
    RANKED: tl.constexpr,
    OTHERS: tl.constexpr,
):
    """Among tokens that are alike, the lower position comes first."""
    head, start, n = _block(whole, size, blocks)
    begin = tl.program_id(0) * RANKED
    if begin < n:
        state = drawn(drawn(drawn(tl.zeros([], tl.int64), key), layer), head)
        token = begin + tl.arange(0, RANKED)
        base = head.to(tl.int64) * whole + start
        position = first + start
        mine = _sought(labels, base + token, token < n, state, position + token, DRAWN)
        before = tl.zeros([RANKED, OTHERS], tl.int32)  # summed up once, behind the loop
        for tile in range(0, n, OTHERS):
            other = tile + tl.arange(0, OTHERS)
            theirs = _sought(labels, base + other, other < n, state, position + other, DRAWN)
            less = theirs[None, :] < mine[:, None]
            tie = (theirs[None, :] == mine[:, None]) & (other[None, :] < token[:, None])
            less = (less | tie) & (other < n)[None, :]
            before += less.to(tl.int32)
        rank = tl.sum(before, 1)
        if DRAWN:
            tl.store(labels + base + token, rank, token < n)
        else:
            tl.store(members + base + rank, position + token, token < n)


@triton.jit(do_not_specialize=["key", "layer", "first", "before", "blocks", "clusters"])
def _means(
    points,  # [PARTS, H, whole, DIMS]
    labels,  # [H, whole]
    middle,  # [H, D]: what was subtracted from the points
    centres,  # [PARTS, H, clusters, DIMS] out, but not if LAST
    squares,  # [H, clusters] out, but not if LAST: the centres' squared lengths
    means,  # [H, clusters, D] out if LAST, 0 where there are no points
    counts,  # [H, clusters] out if LAST
    key,
    layer,
    first,  # position
    before,  # iterations before this one, less 1
    whole,
    size,
    blocks,
    clusters,
    EACH: tl.constexpr,  # points of a cluster on average
    D: tl.constexpr,
    DIMS: tl.constexpr,
    POINTS: tl.constexpr,
    CENTRES: tl.constexpr,
    LAST: tl.constexpr,
):
    head, start, n = _block(whole, size, blocks)
    begin = tl.program_id(0) * CENTRES
    if begin < n // EACH:
        dim, lane = tl.arange(0, DIMS), tl.arange(0, POINTS)
        number = begin + tl.arange(0, CENTRES)
        base = head.to(tl.int64) * whole + start
        step = (tl.num_programs(1) // blocks).to(tl.int64) * whole * DIMS
        total = tl.zeros([CENTRES, DIMS], tl.float32)
        hits = tl.zeros([CENTRES, POINTS], tl.int32)
        for tile in range(0, n, POINTS):
            there = tile + lane < n
            label = tl.load(labels + base + tile + lane, there, -1)
            mine = number[:, None] == label[None, :]
            hits += mine.to(tl.int32)
            at = (base + tile + lane)[:, None] * DIMS + dim[None, :]
            p, q, r = _load(points, step, at, there[:, None])
            mine = mine.to(p.dtype)
            # tensor cores cut off what they add; between tiles sums are rounded
            part = tl.dot(mine, r)
            part = tl.dot(mine, q, part)
            total += tl.dot(mine, p, part)
        held = number < n // EACH
        count = tl.sum(hits, 1)
        some = (count > 0)[:, None]
        size_of = tl.maximum(count, 1).to(tl.float32)[:, None] + tl.zeros_like(total)
        mean = tl.div_rn(total, size_of)
        row = head.to(tl.int64) * clusters + start // EACH + number
        if LAST:
            mean += tl.load(middle + head * D + dim, dim < D, 0.0)[None, :]
            at = row[:, None] * D + dim[None, :]
            tl.store(means + at, tl.where(some, mean, 0.0), held[:, None] & (dim < D)[None, :])
            tl.store(counts + row, count, held)
        else:  # a centre without points starts anew at a drawn one
            state = drawn(drawn(drawn(tl.zeros([], tl.int64), key), layer), head)
            state = drawn(drawn(drawn(state, first + start), before), number)
            draw = (state >> 7).to(tl.float32) * (1.0 / (1 << 24)) * n
            at = (base + draw.to(tl.int32))[:, None] * DIMS + dim[None, :]
            p, q, r = _load(points, step, at, (held & (count == 0))[:, None])
            anew = p.to(tl.float32) + q.to(tl.float32) + r.to(tl.float32)
            centre = tl.where(some, mean, anew)
            tl.store(squares + row, tl.sum(centre * centre, 1), held)
            step = (tl.num_programs(1) // blocks).to(tl.int64) * clusters * DIMS
            _store(centres, step, row[:, None] * DIMS + dim[None, :], centre, held[:, None])


@triton.jit(do_not_specialize=["blocks", "clusters"])
def _assign(
    points,  # [PARTS, H, whole, DIMS]
    centres,  # [PARTS, H, clusters, DIMS]
    squares,  # [H, clusters]
    labels,  # [H, whole] out
    whole,
    size,
    blocks,
    clusters,
    EACH: tl.constexpr,
    DIMS: tl.constexpr,
    POINTS: tl.constexpr,
    CENTRES: tl.constexpr,
):
    head, start, n = _block(whole, size, blocks)
    begin = tl.program_id(0) * POINTS
    if begin < n:
        dim, lane = tl.arange(0, DIMS), tl.arange(0, CENTRES)
        token = begin + tl.arange(0, POINTS)
        heads = (tl.num_programs(1) // blocks).to(tl.int64)
        base = head.to(tl.int64) * whole + start
        at = (base + token)[:, None] * DIMS + dim[None, :]
        p, q, r = _load(points, heads * whole * DIMS, at, (token < n)[:, None])
        best = tl.full([POINTS], float("inf"), tl.float32)
        nearest = tl.zeros([POINTS], tl.int32)
        row = head.to(tl.int64) * clusters + start // EACH
        for tile in range(0, n // EACH, CENTRES):
            held = tile + lane < n // EACH
            place = (row + tile + lane)[:, None] * DIMS + dim[None, :]
            a, b, c = _load(centres, heads * clusters * DIMS, place, held[:, None])
            square = tl.load(squares + row + tile + lane, held, float("inf"))
            product = tl.dot(p, tl.trans(c))
            product = tl.dot(q, tl.trans(b), product)
            product = tl.dot(r, tl.trans(a), product)
            product = tl.dot(p, tl.trans(b), product)
            product = tl.dot(q, tl.trans(a), product)
            product = tl.dot(p, tl.trans(a), product)
            # squared distances, less the square of the point
            apart, which = tl.min(square[None, :] - 2 * product, 1, return_indices=True)
            nearest = tl.where(apart < best, tile + which, nearest)
            best = tl.minimum(apart, best)
        tl.store(labels + base + token, nearest, token < n)


def clusters(
    points: Tensor,
    values: Tensor | None,
    key: int,
    layer: int,
    first: int,
    size: int,
    blocks: int,
    each: int,
    iterations: int,
) -> tuple[Tensor, ...]:
    """points fp32 and values [H, n, d] of the tokens at positions first, first + 1, …, which are
    clustered in blocks of `size`, the last of which has the rest -> of their n / each clusters mean
    points fp32 [H, clusters, d] and numbers of tokens int32 [H, clusters], positions int32 [H, n]
    in the order of clusters, and mean values fp32, if there are any. key, layer: of the draws."""
    heads, n, d = points.shape
    dims, on_cpu = max(16, power(d)), points.device.type == "cpu"
    large = on_cpu or torch.cuda.get_device_properties(points.device).major in (9, 10)
    room = ROOM if large else LITTLE_ROOM
    per_program, at_a_time = min(128, room // dims), min(CENTRES, room // (2 * dims))
    longest = max(size if blocks > 1 else 0, n - (blocks - 1) * size)
    rows, k = heads * blocks, n // each

    def empty(*shape: int, of: torch.dtype) -> Tensor:
        return torch.empty(*shape, dtype=of, device=points.device)

    # the interpreter multiplies none in bf16
    kind = torch.float32 if on_cpu else torch.bfloat16
    parts, centres = (empty(PARTS, heads, size, dims, of=kind) for size in (n, k))
    squares = empty(heads, k, of=torch.float32)
    labels, members = (empty(heads, n, of=torch.int32) for _ in range(2))
    counts = empty(heads, k, of=torch.int32)
    where = key & BITS.value, layer, first
    cut = n, size, blocks

    def split(x: Tensor, middle: Tensor) -> None:
        strides, few = x.stride()[:2], per_program // 4
        _split[(triton.cdiv(n, few), heads)](
            x, middle, parts, *strides, n, D=d, DIMS=dims, POINTS=few, num_warps=4
        )

    def rank(drawn: bool) -> None:
        grid = triton.cdiv(longest, RANKED), rows
        tiles = {"RANKED": RANKED, "OTHERS": OTHERS}
        _rank[grid](labels, members, *where, *cut, DRAWN=drawn, **tiles, num_warps=4)

    def means(middle: Tensor, before: int, out: Tensor | None = None) -> None:
        _means[(triton.cdiv(longest // each, CENTRES), rows)](
            parts,
            labels,
            middle,
            centres,
            squares,
            squares if out is None else out,
            counts,
            *where,
            before,
            *cut,
            k,
            EACH=each,
            D=d,
            DIMS=dims,
            POINTS=per_program,
            CENTRES=CENTRES,
            LAST=out is not None,
            num_warps=8,
            num_stages=2,
        )

    middle = points.mean(1)  # distances are differences of large numbers
    split(points, middle)
    rank(drawn=True)  # each seed is the one point of its cluster
    for i in range(iterations):
        means(middle, i - 1)
        _assign[(triton.cdiv(longest, per_program), rows)](
            parts,
            centres,
            squares,
            labels,
            *cut,
            k,
            EACH=each,
            DIMS=dims,
            POINTS=per_program,
            CENTRES=at_a_time,
            num_warps=4 if dims <= 64 else 8,
            num_stages=2,
        )
    rank(drawn=False)
    keys = empty(heads, k, d, of=torch.float32)
    means(middle, iterations, keys)
    if values is None:
        return keys, counts, members
    middle = torch.zeros_like(middle)
    split(values, middle)
    mean_values = torch.empty_like(keys)
    means(middle, iterations, mean_values)
    return keys, counts, members, mean_values
