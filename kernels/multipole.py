"""Multipole's choice of clusters, its list of tokens and what stands for all other clusters.

Four launches a layer, with `kernels.attend` before the last: logits of the centroids; the choice;
the listing of tokens together with attention to the centroids of clusters that were not chosen; and
the merge of that with the exact part. Clusters are not sorted: the score of the first that does not
fit is the highest one at which all clusters of this score and above have more tokens than may be
read, and it is found by its bits. Torch reference: `macbench.attention.multipole`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from macbench.kernels.partials import gathered, lse_of, partials_at
from macbench.kernels.workspace import power

LOG2E = tl.constexpr(1.4426950408889634)
TILE = 2**12  # numbers of the centroids that a program of `_logits` holds
CLUSTERS = 64  # of one, at most
BLOCK = 4096  # clusters that a program of `_choose` holds at a time
PASSES = tl.constexpr(16)  # of two bits
PLACES = 512  # of a list, written by a program
CHUNK = 32  # clusters that are attended to at a time
PROGRAMS = 396  # that attend to them, if lists are few
PARTIALS = 2**11  # numbers of the partials that are merged at a time


@dataclass(frozen=True)
class Sizes:
    """What Multipole's clusters are made of, in tokens; the last in clusters."""

    sink: int
    interval: int
    each: int  # clusters of an interval


@triton.jit
def _far(lens, row, sink, interval):
    """Intervals of a row that were clustered before its newest token came."""
    before = tl.load(lens + row).to(tl.int32) - 1 - sink
    return tl.maximum(before // interval - 1, 0)


@triton.jit
def _logits(
    q,  # [B, HKV * G, D] before RoPE
    cos,  # [B, D]: what turns a row's queries
    sin,
    partner,  # [D]
    keys,  # [B, HKV, room, D]
    counts,  # [B, HKV, room]
    lens,  # [B]
    logits,  # [B, HKV * G, size] out: log of the tokens of each cluster + logit of its mean key
    tops,  # [B, HKV * G, blocks] out: the largest of this program's
    masses,  # out: sum of exp(logit - top)
    scale,
    sink,
    interval,
    each,
    room,
    size,
    HKV: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    DIMS: tl.constexpr,  # the next power of two, at least 16
    CLUSTERS: tl.constexpr,
    PRECISION: tl.constexpr,  # of products in fp32: queries are turned in fp32
):
    block, group = tl.program_id(0), tl.program_id(1)
    row = group // HKV
    dim, query = tl.arange(0, DIMS), tl.arange(0, 16)
    cluster = block * CLUSTERS + tl.arange(0, CLUSTERS)
    made = cluster < _far(lens, row, sink, interval) * each
    place = group.to(tl.int64) * room + cluster
    count = tl.load(counts + place, made, 0)

    own = (query < G)[:, None] & (dim < D)[None, :]
    first = q + (group * G + query)[:, None].to(tl.int64) * D
    other = tl.load(partner + dim, dim < D, 0)
    tile = tl.load(first + dim[None, :], own, 0.0).to(tl.float32)
    swapped = tl.load(first + other[None, :], own, 0.0).to(tl.float32)
    tile = tile * tl.load(cos + row * D + dim, dim < D, 0.0)[None, :]
    tile -= swapped * tl.load(sin + row * D + dim, dim < D, 0.0)[None, :]

    there = (count > 0)[:, None] & (dim < D)[None, :]
    key = tl.load(keys + place[:, None] * D + dim[None, :], there, 0.0).to(tl.float32)
    logit = tl.dot(tile, tl.trans(key), input_precision=PRECISION) * scale
    logit += tl.log(tl.maximum(count, 1).to(tl.float32))[None, :]
    logit = tl.where((count > 0)[None, :], logit, float("-inf"))

    out = (group * G + query).to(tl.int64)
    tl.store(logits + out[:, None] * size + cluster[None, :], logit, (query < G)[:, None])
    top = tl.max(logit, 1)
    anchor = tl.where(top == float("-inf"), 0.0, top)
    mass = tl.sum(tl.exp(logit - anchor[:, None]), 1)
    tl.store(tops + out * tl.num_programs(0) + block, top, query < G)
    tl.store(masses + out * tl.num_programs(0) + block, mass, query < G)


@triton.jit
def _choose(
    logits,  # [B, HKV * G, size]
    tops,  # [B, HKV * G, blocks]
    masses,
    counts,  # [B, HKV, room]
    lens,  # [B]
    limit,  # [B] tokens of chosen clusters, at most
    scores,  # [B, HKV, size] out: sum over the group of the mean mass of a token; -1 of no cluster
    refused,  # [B, HKV] out: chosen is what scores above
    ends,  # [B, HKV, size] out: tokens of chosen clusters up to each
    skips,  # [B, HKV, size] out: of the others
    used,  # [B, HKV] out: tokens to attend to
    sink,
    interval,
    each,
    room,
    size,
    blocks,
    HKV: tl.constexpr,
    G: tl.constexpr,
    HEADS: tl.constexpr,  # G, the next power of two
    BLOCK: tl.constexpr,
):
    group = tl.program_id(0)
    row = group // HKV
    far = _far(lens, row, sink, interval)
    most = tl.load(limit + row).to(tl.int32)
    query, lane = tl.arange(0, HEADS), tl.arange(0, BLOCK)
    own = (group * G + query).to(tl.int64)
    lse = lse_of(tops, masses, own, query < G, blocks, HEADS)

    counts += group.to(tl.int64) * room
    scores += group.to(tl.int64) * size
    ends += group.to(tl.int64) * size
    skips += group.to(tl.int64) * size
    held = tl.zeros([BLOCK], tl.int32)
    for at in range(0, size, BLOCK):
        cluster = at + lane
        count = tl.load(counts + cluster, cluster < far * each, 0)
        total = tl.zeros([BLOCK], tl.float32)
        for g in range(G):
            here = logits + (group * G + g).to(tl.int64) * size
            logit = tl.load(here + cluster, count > 0, float("-inf"))
            total += tl.exp(logit - tl.sum(tl.where(query == g, lse, 0.0), 0))
        score = tl.where(count > 0, total / tl.maximum(count, 1).to(tl.float32), -1.0)
        tl.store(scores + cluster, score, cluster < size)
        held += count
    tl.debug_barrier()

    worst = tl.full([], -1.0, tl.float32)
    if tl.sum(held, 0) > most:
        known = tl.full([], 0, tl.uint32)  # leading bits of the score that is refused
        step = tl.full([], 1 << 30, tl.uint32)
        for _ in range(PASSES):
            one, two, three = known + step, known + step + step, known + step + step + step
            first = tl.zeros([BLOCK], tl.int32)
            second = tl.zeros([BLOCK], tl.int32)
            third = tl.zeros([BLOCK], tl.int32)
            for at in range(0, size, BLOCK):
                cluster = at + lane
                count = tl.load(counts + cluster, cluster < far * each, 0)
                key = tl.load(scores + cluster, count > 0, 0.0).to(tl.uint32, bitcast=True)
                first += tl.where(key >= one, count, 0)
                second += tl.where(key >= two, count, 0)
                third += tl.where(key >= three, count, 0)
            digit = (tl.sum(first, 0) > most).to(tl.uint32)
            digit += (tl.sum(second, 0) > most).to(tl.uint32)
            digit += (tl.sum(third, 0) > most).to(tl.uint32)
            known += digit * step
            step = step >> 2
        worst = known.to(tl.float32, bitcast=True)
    tl.store(refused + group, worst)

    taken = tl.full([], 0, tl.int32)
    left = tl.full([], 0, tl.int32)
    for at in range(0, size, BLOCK):
        cluster = at + lane
        count = tl.load(counts + cluster, cluster < far * each, 0)
        score = tl.load(scores + cluster, count > 0, -1.0)
        mine = tl.where(score > worst, count, 0)
        other = count - mine
        tl.store(ends + cluster, taken + tl.cumsum(mine), cluster < size)
        tl.store(skips + cluster, left + tl.cumsum(other), cluster < size)
        taken += tl.sum(mine, 0)
        left += tl.sum(other, 0)
    near = tl.load(lens + row).to(tl.int32) - far * interval
    tl.store(used + group, (near + taken).to(tl.int64))


@triton.jit
def _list(
    block,
    members,  # of this list
    ends,
    skips,
    tokens,  # out
    length,
    far,  # tokens of its clusters
    sink,
    size,
    steps,
    width,
    PLACES: tl.constexpr,
):
    """Positions of the first tokens, of the newest ones and of those of chosen clusters."""
    place = block * PLACES + tl.arange(0, PLACES)
    at = place - (length - far)  # among the clusters' tokens
    low = tl.zeros([PLACES], tl.int32)  # finds the cluster that holds it
    high = low + size
    for _ in range(steps):
        middle = tl.minimum((low + high) // 2, size - 1)
        reached = tl.load(ends + middle) > at
        high = tl.where(reached, middle, high)
        low = tl.where(reached, low, middle + 1)
    listed = (at >= 0) & (low < size)
    member = at + tl.load(skips + low, listed, 0)
    token = tl.load(members + member, listed, 0)
    near = tl.where(place < sink, place, place + far)
    token = tl.where(at < 0, near, token)  # 0 behind the last
    tl.store(tokens + place, token.to(tl.int64), place < width)


@triton.jit
def _replace(
    split,
    splits,
    group,
    logits,
    scores,  # of this list
    worst,
    values,  # of this list
    part_o,
    part_l,
    size,
    G: tl.constexpr,
    D: tl.constexpr,
    DIMS: tl.constexpr,
    CHUNK: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Attention of a group to its share of the clusters that were not chosen, as one entry each."""
    dim, query, index = tl.arange(0, DIMS), tl.arange(0, 16), tl.arange(0, CHUNK)
    chunks = tl.cdiv(size, CHUNK)
    share = tl.cdiv(chunks, splits)
    first = split * share
    here = logits + (group * G + query)[:, None].to(tl.int64) * size
    top = tl.full([16], float("-inf"), tl.float32)
    mass = tl.zeros([16], tl.float32)
    out = tl.zeros([16, DIMS], tl.float32)
    for c in range(first, tl.minimum(first + share, chunks)):
        cluster = c * CHUNK + index
        score = tl.load(scores + cluster, cluster < size, -1.0)
        rest = (score >= 0.0) & (score <= worst)
        there = rest[:, None] & (dim < D)[None, :]
        value = tl.load(values + cluster[:, None] * D + dim[None, :], there, 0.0)
        real = (query < G)[:, None] & rest[None, :]
        logit = tl.load(here + cluster[None, :], real, float("-inf")) * LOG2E
        higher = tl.maximum(top, tl.max(logit, 1))
        anchor = tl.where(higher == float("-inf"), 0.0, higher)
        p = tl.exp2(logit - anchor[:, None])
        shrink = tl.exp2(top - anchor)
        mass = mass * shrink + tl.sum(p, 1)
        out = out * shrink[:, None]
        if WIDE:
            out = tl.dot(p, value, out, input_precision="ieee")
        else:
            out = tl.dot(p.to(value.dtype), value, out)
        top = higher
    safe = tl.where(mass > 0, mass, 1.0)
    slot = (group * splits + split).to(tl.int64) * G + query
    tl.store(
        part_o + slot[:, None] * DIMS + dim[None, :], out / safe[:, None], (query < G)[:, None]
    )
    tl.store(part_l + slot, tl.where(mass > 0, top + tl.log2(safe), float("-inf")), query < G)


@triton.jit
def _read(
    logits,  # [B, HKV * G, size]
    scores,  # [B, HKV, size]
    refused,  # [B, HKV]
    ends,  # [B, HKV, size]
    skips,
    members,  # [B, HKV, slots] positions, cluster after cluster
    values,  # [B, HKV, room, D]
    lens,  # [B]
    tokens,  # [B, HKV, width] out
    part_o,  # [B * HKV, splits, G, DIMS] out
    part_l,  # [B * HKV, splits, G] out, log2
    sink,
    interval,
    slots,
    room,
    size,
    steps,
    width,
    lists,  # programs of each list that write it; the others attend
    HKV: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    DIMS: tl.constexpr,
    PLACES: tl.constexpr,
    CHUNK: tl.constexpr,
    WIDE: tl.constexpr,
):
    program, group = tl.program_id(0), tl.program_id(1)
    wide = group.to(tl.int64)
    if program < lists:
        length = tl.load(lens + group // HKV).to(tl.int32)
        far = _far(lens, group // HKV, sink, interval) * interval
        _list(
            program,
            members + wide * slots,
            ends + wide * size,
            skips + wide * size,
            tokens + wide * width,
            length,
            far,
            sink,
            size,
            steps,
            width,
            PLACES,
        )
    else:
        _replace(
            program - lists,
            tl.num_programs(0) - lists,
            group,
            logits,
            scores + wide * size,
            tl.load(refused + group),
            values + wide * room * D,
            part_o,
            part_l,
            size,
            G,
            D,
            DIMS,
            CHUNK,
            WIDE,
        )


@triton.jit
def _merge(
    exact,  # [B, HKV * G, D]
    lse,  # [B, HKV * G]
    part_o,
    part_l,
    output,  # [B, HKV * G, D]
    splits,
    G: tl.constexpr,
    D: tl.constexpr,
    DIMS: tl.constexpr,
    S: tl.constexpr,
):
    """The exact part and the partials of one query head."""
    head, dim = tl.program_id(0), tl.arange(0, DIMS)
    first = head // G * splits
    level, part = partials_at(part_o, part_l, first, 0, splits, head % G, dim, G, DIMS, S)
    out, top, mass = gathered(
        part_o, part_l, first, splits, level, part, head % G, dim, G, DIMS, S, S
    )
    level = tl.load(lse + head).to(tl.float32) * LOG2E
    here = head.to(tl.int64) * D + dim
    own = tl.load(exact + here, dim < D, 0.0).to(tl.float32)
    higher = tl.maximum(top, level)  # finite: some token is attended to
    weight, shrink = tl.exp2(level - higher), tl.exp2(top - higher)
    out = (out * shrink + own * weight) / (mass * shrink + weight)
    tl.store(output + here, out.to(output.dtype.element_ty), dim < D)


@dataclass(frozen=True)
class Choice:
    """What `choose` leaves for `read`; a size is padded to whole programs."""

    logits: Tensor  # [B, Hq, size]
    scores: Tensor  # [B, Hkv, size]
    refused: Tensor  # [B, Hkv]
    ends: Tensor  # [B, Hkv, size]
    skips: Tensor


def choose(
    q_pre: Tensor,
    turn: tuple[Tensor, Tensor, Tensor],
    keys: Tensor,
    counts: Tensor,
    lens: Tensor,
    limit: Tensor,
    used: Tensor,
    sizes: Sizes,
    scale: float,
    clusters: int,
) -> Choice:
    """Which clusters are attended to exactly: whole ones by score, of limit [B] tokens at most.

    q_pre [B, Hq, d], turned to cos * q - sin * q[partner] with turn = cos, sin [B, d], partner [d];
    keys [B, Hkv, room, d] and counts [B, Hkv, room] of clusters, of which no row has more than
    `clusters`; used int64 [B, Hkv] gets the tokens to attend to, sinks and newest ones included.
    """
    b, q_heads, d = q_pre.shape
    kv_heads, room = keys.shape[1:3]
    group, dims = q_heads // kv_heads, max(16, power(d))
    assert group <= 16, "query heads of a KV head share a tile of 16 rows"
    assert used.is_contiguous()
    held = max(16, min(CLUSTERS, TILE // dims))
    blocks = triton.cdiv(clusters, held)
    size = blocks * held

    def empty(heads: int, n: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(b, heads, n, dtype=dtype, device=q_pre.device)

    logits, tops, masses = (empty(q_heads, n) for n in (size, blocks, blocks))
    scores, refused = empty(kv_heads, size), empty(kv_heads, 1)
    ends, skips = (empty(kv_heads, size, torch.int32) for _ in range(2))
    _logits[(blocks, b * kv_heads)](
        q_pre.contiguous(),
        *turn,
        keys,
        counts,
        lens,
        logits,
        tops,
        masses,
        scale,
        sizes.sink,
        sizes.interval,
        sizes.each,
        room,
        size,
        HKV=kv_heads,
        G=group,
        D=d,
        DIMS=dims,
        CLUSTERS=held,
        PRECISION="ieee" if keys.dtype == torch.float32 else "tf32x3",
    )
    block = min(BLOCK, max(64, power(size)))
    _choose[(b * kv_heads,)](
        logits,
        tops,
        masses,
        counts,
        lens,
        limit,
        scores,
        refused,
        ends,
        skips,
        used,
        sizes.sink,
        sizes.interval,
        sizes.each,
        room,
        size,
        blocks,
        HKV=kv_heads,
        G=group,
        HEADS=power(group),
        BLOCK=block,
        num_warps=min(16, max(4, block // 256)),
    )
    return Choice(logits, scores, refused, ends, skips)


def read(
    choice: Choice,
    members: Tensor,
    values: Tensor | None,
    lens: Tensor,
    sizes: Sizes,
    width: int,
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """The tokens to attend to, int64 [B, Hkv, width], 0 behind the last; and with values
    [B, Hkv, room, d] partial attention to the other clusters, for `merge`.

    members [B, Hkv, n]: positions of the clusters' tokens, cluster after cluster.
    """
    (b, q_heads, size), kv_heads = choice.logits.shape, members.shape[1]
    lists, group, device = triton.cdiv(width, PLACES), q_heads // kv_heads, members.device
    tokens = torch.empty(b, kv_heads, width, dtype=torch.int64, device=device)
    splits, room, d, partials = 0, 0, 16, None
    wide = True
    if values is not None:
        room, d = values.shape[2:]
        wide = values.dtype == torch.float32
        splits = max(1, min(PROGRAMS // (b * kv_heads), triton.cdiv(size, CHUNK)))
        shape = (b * kv_heads, splits, group, max(16, power(d)))
        part_o = torch.empty(shape, dtype=torch.float32, device=device)
        partials = part_o, torch.empty(shape[:3], dtype=torch.float32, device=device)
    part_o, part_l = partials or (choice.logits, choice.logits)
    _read[(lists + splits, b * kv_heads)](
        choice.logits,
        choice.scores,
        choice.refused,
        choice.ends,
        choice.skips,
        members,
        choice.logits if values is None else values,
        lens,
        tokens,
        part_o,
        part_l,
        sizes.sink,
        sizes.interval,
        members.shape[-1],
        room,
        size,
        size.bit_length(),
        width,
        lists,
        HKV=kv_heads,
        G=group,
        D=d,
        DIMS=max(16, power(d)),
        PLACES=PLACES,
        CHUNK=CHUNK,
        WIDE=wide,
    )
    return tokens, partials


def merge(exact: tuple[Tensor, Tensor], partials: tuple[Tensor, Tensor], like: Tensor) -> Tensor:
    """exact o [B, Hq, d] and natural-log lse [B, Hq] with the partials of `read` -> output."""
    part_o, part_l = partials
    splits, group, dims = part_o.shape[1:]
    b, q_heads, d = exact[0].shape
    output = torch.empty(b, q_heads, d, dtype=like.dtype, device=like.device)
    _merge[(b * q_heads,)](
        exact[0].contiguous(),
        exact[1].contiguous(),
        part_o,
        part_l,
        output,
        splits,
        G=group,
        D=d,
        DIMS=dims,
        S=min(PARTIALS // dims, power(splits)),
        num_warps=1,
    )
    return output
