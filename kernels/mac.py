"""MAC's decode step in three Triton launches: match, attend over spans, merge.

    match   scans the ring of every query head; the winner is one 64-bit key, kept by atomic minimum
    attend  `kernels.attend` over two lists: every group's tail [E(t), t], and its span
            [earliest start, E(t)) as the keys say; tails start before the match has ended
    merge   reused row + fresh prefix -> the ring's new row; that row + tail -> the output

Cut at E(t), a group is two entries with one accumulator each. Torch reference:
`macbench.attention.mac`, whose terms are used here. Log of versions and times: docs/kernels.md.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from macbench.kernels.attend import LOG2E, spans
from macbench.kernels.partials import gathered, partials_at, programs_of, slots_of
from macbench.kernels.workspace import Workspace, launch, power, tail_weight

CHUNK = 16  # dims of a ring query that lie together: half of them is a cheap first look


def chunk_of(d: int) -> int:
    """CHUNK, or less where that does not divide a head."""
    return min(CHUNK, d & -d)


@triton.jit
def _match(
    queries,  # [B, Hq, D]
    ring,  # [B, Hq, D / C, K, C]
    lse,  # [B, Hq, K]
    chain,  # [B, Hq, K]
    lens,  # [B]
    best,  # [B, Hq] keys, preset to the threshold's
    radius2,  # fp32: squared match radius
    min_context,
    max_chain,
    HQ: tl.constexpr,
    D: tl.constexpr,
    C: tl.constexpr,
    K: tl.constexpr,
    NEAR: tl.constexpr,  # chunks that every row is measured on
    AHEAD: tl.constexpr,  # chunks on their way
    ROWS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Rows of one head against its query: the first chunks of all, the rest of those still near.

    Squared distances only grow with more dims, so a row beyond the radius can be dropped. The key
    orders by distance, then by position; its lowest bit says that the row may not be used.
    """
    if PDL:  # first wait: what the next launch reads early was then written by kernels that ended
        gdc_wait()
        gdc_launch_dependents()
    head = tl.program_id(0).to(tl.int64)  # b * Hq + h
    dims = tl.arange(0, C)
    slot = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    base = ring + head * K * D + slot[:, None] * C + dims[None, :]
    query = queries + head * D + dims
    distance = tl.zeros([ROWS], tl.float32)
    for c in tl.range(NEAR, num_stages=AHEAD):
        row = tl.load(base + c * K * C, mask=(slot < K)[:, None], other=0.0)
        apart = row.to(tl.float32) - tl.load(query + c * C).to(tl.float32)[None, :]
        distance += tl.sum(apart * apart, 1)
    t = tl.load(lens + head // HQ).to(tl.int32) - 1
    position = t - 1 - (t - 1 - slot + K) % K  # newest position below t in this slot
    position = tl.where(t >= min_context, position, -1)
    near = (slot < K) & (position >= 0) & (distance < radius2)
    if tl.max(near.to(tl.int32), 0) > 0:
        at = head * K + slot
        level = tl.load(lse + at, mask=near, other=0.0)
        hops = tl.load(chain + at, mask=near, other=0)
        for far in tl.static_range(NEAR, D // C):
            row = tl.load(base + far * K * C, mask=near[:, None], other=0.0)
            apart = row.to(tl.float32) - tl.load(query + far * C).to(tl.float32)[None, :]
            distance += tl.sum(apart * apart, 1)
        near = near & (distance < radius2)
        unusable = (level == float("-inf")) | (hops >= max_chain)
        low = position.to(tl.int64) * 2 + unusable.to(tl.int64)
        bits = distance.to(tl.int32, bitcast=True).to(tl.int64)
        key = tl.min(tl.where(near, (bits << 32) | low, 0x7FFFFFFFFFFFFFFF), 0)
        if key < 0x7FFFFFFFFFFFFFFF:
            tl.atomic_min(best + head, key)


@triton.jit
def _join(out, top, mass, out2, top2, mass2):
    """Two unnormalised summaries in one."""
    higher = tl.maximum(top, top2)
    anchor = tl.where(higher == float("-inf"), 0.0, higher)
    a, b = tl.exp2(top - anchor), tl.exp2(top2 - anchor)
    return out * a + out2 * b, higher, mass * a + mass2 * b


@triton.jit
def _merge(
    output,  # [B, Hq, D]
    part_o,
    part_l,
    cuts,
    picked,
    picked_lse,
    picked_chain,
    best,
    lens,
    queries,  # [B, Hq, D] as matched
    ring,
    rows,  # [B, Hq, K, D]
    lse,
    chain,
    groups,
    programs,
    tail,
    threshold,
    WHOLE: tl.constexpr,
    HQ: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    DIMS: tl.constexpr,  # padded
    C: tl.constexpr,
    K: tl.constexpr,
    S: tl.constexpr,
    MORE: tl.constexpr,
    SPLIT: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        gdc_wait()
    head, part = tl.program_id(0), tl.program_id(1)
    dims = part * (DIMS // SPLIT) + tl.arange(0, DIMS // SPLIT)
    own = None if D == DIMS else dims < D  # what is loaded behind D is never stored
    g, lane = head // G, head % G
    long = head.to(tl.int64)
    spans, count = slots_of(cuts, g, groups, programs)
    spans += programs + groups
    begin = g.to(tl.int64) * tail
    tails, count2 = programs_of(begin, begin + tail, groups * tail, programs)
    tails += g
    key = tl.load(picked + head)
    t = tl.load(lens + head // HQ).to(tl.int32) - 1
    query = tl.load(queries + long * D + dims, own)
    # all loads of the common case before anything waits for one of them
    level, partial = partials_at(part_o, part_l, spans, 0, count, lane, dims, G, DIMS, S)
    level2, partial2 = partials_at(part_o, part_l, tails, 0, count2, lane, dims, G, DIMS, S)
    hit = (key < threshold) & ((key & 1) == 0)
    if WHOLE:
        for other in tl.static_range(G):
            k = tl.load(picked + g * G + other)
            hit = hit & (k < threshold) & ((k & 1) == 0)
    slot = long * K + ((key & 0xFFFFFFFF) >> 1) % K
    reused = tl.load(rows + slot * D + dims, own).to(tl.float32)  # of a miss: some row
    kept = tl.load(picked_lse + head, mask=hit, other=float("-inf")) * LOG2E
    depth = tl.load(picked_chain + head, mask=hit, other=-1) + 1
    reused = tl.where(hit, reused, 0.0)
    out, top, mass = gathered(
        part_o, part_l, spans, count, level, partial, lane, dims, G, DIMS, S, MORE
    )
    out, top, mass = _join(out, top, mass, reused, kept, tl.where(hit, 1.0, 0.0))
    safe = tl.where(mass > 0, mass, 1.0)
    new = long * K + t % K
    tl.debug_barrier()  # the row read above may be the one written here
    tl.store(rows + new * D + dims, (out / safe).to(rows.dtype.element_ty), own)
    tl.store(ring + long * K * D + (dims // C) * K * C + (t % K) * C + dims % C, query, own)
    if part == 0:
        natural = (top + tl.log2(safe)) / LOG2E
        tl.store(lse + new, tl.where(mass > 0, natural, float("-inf")))
        tl.store(chain + new, depth)
        tl.store(best + head, threshold)  # of the next step
    out2, top2, mass2 = gathered(
        part_o, part_l, tails, count2, level2, partial2, lane, dims, G, DIMS, S, MORE
    )
    out, top, mass = _join(out, top, mass, out2, top2, mass2)
    tl.store(output + long * D + dims, (out / mass).to(output.dtype.element_ty), own)


@dataclass
class Ring:
    """One layer's recent queries and the summaries of their prefixes.

    queries [B, Hq, d / C, K, C]: the first C dims of all rows lie together, so that a scan which
    rejects on them reads nothing else. rows [B, Hq, K, d], lse [B, Hq, K] fp32 (natural),
    chain [B, Hq, K] int32. axes [Hq, d, d] fp32, orthogonal, where queries are kept along their
    columns: distances stay what they are, and where the first ones tell most, fewer dims reject.
    """

    queries: Tensor
    rows: Tensor
    lse: Tensor
    chain: Tensor
    axes: Tensor | None = None


def principal(queries: Tensor) -> Tensor:
    """Axes [Hq, d, d] fp32 of queries [n, Hq, d], the one along which they spread most first."""
    apart = (queries - queries.mean(0)).float().transpose(0, 1)
    return torch.linalg.eigh(apart.transpose(1, 2) @ apart).eigenvectors.flip(-1)


def turned(queries: Tensor, axes: Tensor) -> Tensor:
    """queries [B, Hq, d] along the columns of axes, in their own dtype. The product is fp32's: axes
    rounded to 16 bits are not orthogonal."""
    return torch.einsum("bhd,hde->bhe", queries.float(), axes).to(queries.dtype).contiguous()


def threshold(tau: float, d: int) -> tuple[float, int]:
    """The squared match radius 2 d (1 - tau)^2 in fp32, and the key that no match reaches."""
    squared = struct.unpack("f", struct.pack("f", 2 * d * (1 - tau) ** 2))[0]
    return squared, struct.unpack("i", struct.pack("f", squared))[0] << 32


def decisions(key: Tensor, limit: Tensor | int) -> tuple[Tensor, Tensor, Tensor]:
    """Keys as `Workspace.picked`, and the threshold's: (hit, matched position, L2 distance)."""
    hit = (key < limit) & (key & 1 == 0)
    distance = (key >> 32).to(torch.int32).view(torch.float32).sqrt()
    return hit, (key & 0xFFFFFFFF) >> 1, distance


def hits(work: Workspace, tau: float, whole: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """`decisions` of the last step, [B, Hq] each."""
    hit, position, distance = decisions(work.picked, threshold(tau, work.output.shape[-1])[1])
    if whole:
        grouped = hit.unflatten(1, (-1, work.group))
        hit = grouped.all(-1, keepdim=True).expand_as(grouped).reshape(hit.shape)
    return hit, position, distance


def match(
    work: Workspace,
    ring: Ring,
    q_pre: Tensor,
    lens: Tensor,
    tau: float,
    min_context: int = 0,
    max_chain: int | None = None,
) -> None:
    """First launch: `work.best` [B, Hq] gets the key of every head's nearest row in the radius."""
    batch, q_heads, d = q_pre.shape
    tiling = work.tiling
    rows, c = ring.queries.shape[3:]
    assert q_pre.is_contiguous() and rows == ring.lse.shape[-1]
    tile = min(tiling.rows, power(rows))
    _match[batch * q_heads, triton.cdiv(rows, tile)](
        q_pre,
        ring.queries,
        ring.lse,
        ring.chain,
        lens,
        work.best,
        threshold(tau, d)[0],
        min_context,
        2**31 - 1 if max_chain is None else max_chain,
        HQ=q_heads,
        D=d,
        C=c,
        K=rows,
        NEAR=(d // c + 1) // 2 if ring.axes is None else 1,
        AHEAD=tiling.ahead,
        ROWS=tile,
        PDL=tiling.pdl,
        num_warps=tiling.match_warps,
        **launch(tiling.pdl),
    )


def merge(
    work: Workspace,
    ring: Ring,
    q_pre: Tensor,
    lens: Tensor,
    tau: float,
    band: int,
    sink: int = 0,
    whole: bool = False,
) -> None:
    """Last launch: partials and reused rows -> `work.output`, the ring's new rows, keys reset."""
    batch, q_heads, d = q_pre.shape
    tiling = work.tiling
    rows, c = ring.queries.shape[3:]
    _merge[batch * q_heads, tiling.split](
        work.output,
        work.part_o,
        work.part_l,
        work.cuts,
        work.picked,
        work.picked_lse,
        work.picked_chain,
        work.best,
        lens,
        q_pre,
        ring.queries,
        ring.rows,
        ring.lse,
        ring.chain,
        work.groups,
        tiling.programs,
        tail_weight(tiling, band, sink),
        threshold(tau, d)[1],
        WHOLE=whole,
        HQ=q_heads,
        G=work.group,
        D=d,
        DIMS=power(d),
        C=c,
        K=rows,
        S=tiling.partials,
        MORE=tiling.more,
        SPLIT=tiling.split,
        PDL=tiling.pdl,
        num_warps=tiling.warps,
        **launch(tiling.pdl),
    )


def step(
    work: Workspace,
    ring: Ring,
    q_pre: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    lens: Tensor,
    scale: float,
    tau: float,
    band: int,
    sink: int = 0,
    min_context: int = 0,
    max_chain: int | None = None,
    whole: bool = False,
    live: Tensor | None = None,
) -> Tensor:
    """One MAC step of every row -> [B, Hq, d] in `work.output`; the ring holds the new rows.

    q_pre, q [B, Hq, d] contiguous: the query as matched, and after RoPE; this token's K/V is in
    the cache, so lens >= 1. band, sink, min_context, max_chain, whole: `Mac`'s r, sink,
    min_context, max_chain, refresh_mixed_groups. `work.best` must hold `threshold(tau, d)[1]`
    before the first step; each step leaves it so. `hits` says what was matched. Rows that are not
    live [B] attend to their tails and a key at most.
    """
    if ring.axes is not None:
        q_pre = turned(q_pre, ring.axes)
    match(work, ring, q_pre, lens, tau, min_context, max_chain)
    spans(
        work,
        q,
        k,
        v,
        table,
        lens,
        scale,
        rows=(ring.lse, ring.chain),
        threshold=threshold(tau, q.shape[-1])[1],
        band=band,
        sink=sink,
        whole=whole,
        live=live,
    )
    merge(work, ring, q_pre, lens, tau, band, sink, whole)
    return work.output
