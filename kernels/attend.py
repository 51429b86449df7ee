"""Decode attention over a paged cache in two Triton launches: attend, merge.

`_attend` is persistent: the keys that every group of query heads has to read form a list, the list
is cut into equal shares, one per program, whatever the lengths (stream-K); each program leaves one
partial summary per group that its share touches. `_finish` merges them. MAC's step (`kernels.mac`)
runs the same first launch over each group's own span, found on the device. Nothing is allocated
and nothing waits for the host. What is fused, why, and what was measured: docs/kernels.md.
Torch reference: `kernels.paged`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from macbench.kernels.heads import vectors
from macbench.kernels.paged import PAGE
from macbench.kernels.partials import gathered, partials_at, slots_of
from macbench.kernels.workspace import Workspace, launch, power, tail_weight

LOG2E = tl.constexpr(1.4426950408889634)
FAR = tl.constexpr(2**30)


@triton.jit
def _hits(key, threshold, band, sink, end):
    """(hit, first prefix key to read) of heads whose match left these keys; end = E(t)."""
    hit = (key < threshold) & ((key & 1) == 0)
    position = ((key & 0xFFFFFFFF) >> 1).to(tl.int32)
    start = tl.where(hit, position + 1 - band, sink)
    return hit, tl.minimum(start, end)


@triton.jit
def _pieces(lists, index, size, LIST: tl.constexpr):
    """The pieces of a list that hold the index-th tokens, or the last one."""
    if LIST > 0:
        return tl.load(lists + tl.minimum(index, size - 1) // LIST).to(tl.int32)
    else:
        return index


@triton.jit
def _pages(
    table,
    piece,
    base,
    lead,
    index,
    LIST: tl.constexpr,
    SINK: tl.constexpr,
    PAGE: tl.constexpr,
):
    """(position, physical page) of the index-th key of a span.

    A span is a range from `base` behind `lead` keys of the start, or pieces of LIST tokens that a
    list names. Positions are held inside the sequence; the caller masks what is too much.
    """
    if LIST > 0:
        # Triton pipelines no loop that hands a value on as it came: without the maximum, which
        # changes nothing, a list of tokens would
        position = tl.maximum(piece, 0) * LIST + index % LIST
    elif SINK:
        position = tl.where(index < lead, index, base + index - lead)
    else:
        position = base + index
    return position, tl.load(table + position // PAGE).to(tl.int64)


@triton.jit
def _partial(
    q,  # [16, DIMS]: the group's query heads, padded
    k_pool,
    v_pool,
    table,  # of this row
    lists,  # of this group
    head,  # KV head
    chunk,
    chunks,
    base,  # first key of the span
    lead,  # keys of the sequence's start before it
    size,  # indices in the span
    start,  # [16]: a head's first key, where the range has reached `base`
    end,  # one past the last key
    scale2,  # scale * log2(e)
    HKV: tl.constexpr,
    D: tl.constexpr,
    DIMS: tl.constexpr,
    PAGE: tl.constexpr,
    N: tl.constexpr,
    LIST: tl.constexpr,
    MATCHED: tl.constexpr,  # a head may start later than its group
    SINK: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Attention over chunks [chunk, chunks) of N keys: (o [16, DIMS], log2 of its mass [16])."""
    dims, token = tl.arange(0, DIMS), tl.arange(0, N)
    top = tl.full([16], float("-inf"), tl.float32)
    mass = tl.zeros([16], tl.float32)
    out = tl.zeros([16, DIMS], tl.float32)
    most = size - 1
    index = tl.minimum(chunk * N + token, most)
    piece = _pieces(lists, index, size, LIST)
    position, page = _pages(table, piece, base, lead, index, LIST, SINK, PAGE)
    piece = _pieces(lists, tl.minimum(index + N, most), size, LIST)
    for c in range(chunk, chunks):
        at = c * N + token
        place = ((page * HKV + head) * PAGE + position % PAGE) * D
        place = place[:, None] + dims[None, :]
        keys, values = vectors(k_pool + place, dims, D), vectors(v_pool + place, dims, D)
        seen = (at < size) & (position < end)
        # the next chunk's pages, and what the list names behind it, are on their way while this
        # one is multiplied: neither waits for the other
        index = tl.minimum(at + N, most)
        here = position
        position, page = _pages(table, piece, base, lead, index, LIST, SINK, PAGE)
        piece = _pieces(lists, tl.minimum(index + N, most), size, LIST)
        if WIDE:
            score = tl.dot(q, tl.trans(keys), input_precision="ieee")
        else:
            score = tl.dot(q, tl.trans(keys))
        mask = seen[None, :]
        if SINK:
            mask = mask & ((here[None, :] >= start[:, None]) | (at < lead)[None, :])
        elif MATCHED:
            mask = mask & (here[None, :] >= start[:, None])
        score = tl.where(mask, score * scale2, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        anchor = tl.where(higher == float("-inf"), 0.0, higher)
        p = tl.exp2(score - anchor[:, None])
        shrink = tl.exp2(top - anchor)
        mass = mass * shrink + tl.sum(p, 1)
        out = out * shrink[:, None]
        if WIDE:
            out = tl.dot(p, values, out, input_precision="ieee")
        else:
            out = tl.dot(p.to(values.dtype), values, out)
        top = higher
    safe = tl.where(mass > 0, mass, 1.0)
    return out / safe[:, None], tl.where(mass > 0, top + tl.log2(safe), float("-inf"))


@triton.jit
def _queries(queries, group, G: tl.constexpr, D: tl.constexpr, DIMS: tl.constexpr):
    """The query heads of a group as a tile [16, DIMS]."""
    row, dims = tl.arange(0, 16), tl.arange(0, DIMS)
    at = (group * G + row).to(tl.int64)[:, None] * D + dims[None, :]
    return tl.load(queries + at, mask=(row < G)[:, None] & (dims < D)[None, :], other=0.0)


@triton.jit
def _leave(part_o, part_l, slot, out, level, G: tl.constexpr, DIMS: tl.constexpr):
    row, dims = tl.arange(0, 16), tl.arange(0, DIMS)
    at = slot.to(tl.int64) * G + row
    tl.store(part_o + at[:, None] * DIMS + dims[None, :], out, mask=(row < G)[:, None])
    tl.store(part_l + at, level, mask=row < G)


@triton.jit(do_not_specialize_on_alignment=["live"])  # a method's part of all rows' flags
def _attend(
    queries,  # [B, Hq, D] after RoPE
    k_pool,  # [pages, Hkv, PAGE, D]
    v_pool,
    table,  # [B, M]
    lens,  # [B]
    lists,  # [B, H, n] pieces of LIST tokens, strides below, the last one 1
    counts,  # [B, H] pieces of them to read, strides below
    live,  # [B] rows that go on
    best,  # [B, Hq] match keys
    picked,  # [B, Hq] out: the keys as used here
    row_lse,  # [B, Hq, K] the ring's
    row_chain,
    picked_lse,  # [B, Hq] out: of the rows that the keys name
    picked_chain,
    cuts,  # [groups] out: cumulative weights of the spans
    part_o,  # [2 * (programs + groups), G, DIMS]
    part_l,  # the same, log2
    groups,
    tail,  # weight of every tail
    width,  # M
    list_row,
    list_head,
    count_row,
    count_head,
    threshold,
    band,
    sink,
    scale,
    MATCHED: tl.constexpr,  # spans start where the heads' matches say, tails are apart
    WHOLE: tl.constexpr,  # one missing head makes its group attend exactly
    LIVE: tl.constexpr,  # some rows may be finished
    LIST: tl.constexpr,  # tokens of a piece; 0: ranges
    H: tl.constexpr,  # spans per row: Hkv, or Hq for lists per query head
    HKV: tl.constexpr,
    G: tl.constexpr,  # query heads of a span
    GP: tl.constexpr,  # G padded to a power of two
    NP: tl.constexpr,  # groups padded
    K: tl.constexpr,
    D: tl.constexpr,
    DIMS: tl.constexpr,  # D padded
    PAGE: tl.constexpr,
    N: tl.constexpr,  # tokens of a chunk
    W: tl.constexpr,  # weight of a span beside its chunks
    SINK: tl.constexpr,  # sink > 0
    PICKS: tl.constexpr,  # matches a program copies
    WIDE: tl.constexpr,  # multiply in fp32 (inputs of fp32)
    PDL: tl.constexpr,
):
    if PDL:
        if not MATCHED:
            gdc_wait()
        gdc_launch_dependents()
    program, programs = tl.program_id(0), tl.num_programs(0)
    group, lane = tl.arange(0, NP), tl.arange(0, GP)
    real = group < groups
    length = tl.load(lens + group // H, mask=real, other=0).to(tl.int32)
    row = tl.arange(0, 16)

    ends = tl.maximum(length - band, 0) if MATCHED else length  # E(t)
    bases = tl.zeros_like(length)
    keys = length
    cut = tl.zeros_like(length)
    # Phase 0: tails. They need no match, so they run while it may still be under way.
    for phase in range(0 if MATCHED else 1, 2):
        total = groups * tail
        if phase == 1:
            if MATCHED:
                if PDL:
                    gdc_wait()
                at = group[:, None] * G + lane[None, :]
                there = real[:, None] & (lane < G)[None, :]
                winners = tl.load(best + at, mask=there, other=threshold)
                hits, starts = _hits(winners, threshold, band, sink, ends[:, None])
                begins = tl.min(tl.where(there, starts, FAR), 1)
                if WHOLE:
                    every = tl.min(tl.where(there, hits.to(tl.int32), 1), 1)
                    begins = tl.where(every > 0, begins, tl.minimum(sink, ends))
                bases = tl.minimum(begins, ends)
                keys = ends - bases
            elif LIST > 0:
                listed = group // H * count_row + group % H * count_head
                keys = tl.load(counts + listed, mask=real, other=0).to(tl.int32) * LIST
            if LIVE:  # of a finished row one piece, which keeps its output finite
                going = tl.load(live + group // H, mask=real, other=0)
                keys = tl.where(going, keys, tl.minimum(keys, 1 if LIST == 0 else LIST))
            weight = tl.where(real & (keys > 0), tl.cdiv(keys, N) + W, 0)
            cut = tl.cumsum(weight, 0)
            total = tl.sum(weight, 0)
            if program == 0:
                tl.store(cuts + group, cut, mask=real)
        busy = tl.maximum(tl.minimum(programs, total), 1)
        # programs with the larger share of the tails take the smaller one of the spans
        mine = tl.where(phase == 0, program, programs - 1 - program)
        wide = mine.to(tl.int64)
        unit = tl.where(mine < busy, (wide * total // busy).to(tl.int32), total)
        last = tl.where(mine < busy, ((wide + 1) * total // busy).to(tl.int32), total)

        while unit < last:
            if phase == 0:  # all tails weigh the same
                g = unit // tail
                first = g * tail
                stop = tl.minimum(first + tail, last)
                size = 0
                base = 0
            else:
                g = tl.sum((cut <= unit).to(tl.int32), 0)  # the entry that holds `unit`
                first = tl.max(tl.where(cut <= unit, cut, 0), 0)
                stop = tl.minimum(tl.min(tl.where(cut > unit, cut, FAR), 0), last)
                size = tl.sum(tl.where(group == g, keys, 0), 0)
                base = tl.sum(tl.where(group == g, bases, 0), 0)
            b, h = g // H, g % H
            end = tl.load(lens + b).to(tl.int32)
            start = tl.zeros([16], tl.int32)
            lead = 0
            idle = tl.where(phase == 0, 1, W)
            if MATCHED:
                edge = tl.maximum(end - band, 0)
                key = tl.load(best + g * G + row, mask=row < G, other=threshold)
                hit, start = _hits(key, threshold, band, sink, edge)
                if WHOLE:
                    all_hit = tl.min(tl.where(row < G, hit.to(tl.int32), 1), 0)
                    start = tl.where(all_hit > 0, start, tl.minimum(sink, edge))
                if phase == 0:
                    start = tl.zeros_like(start) + edge
                    base = edge
                    if SINK:
                        lead = tl.minimum(sink, edge)
                    size = end - base + lead
                else:
                    end = edge
            out, level = _partial(
                _queries(queries, g, G, D, DIMS),
                k_pool,
                v_pool,
                table + b.to(tl.int64) * width,
                lists + b.to(tl.int64) * list_row + h * list_head,
                h * HKV // H,
                tl.maximum(unit - first - idle, 0),
                tl.minimum(tl.maximum(stop - first - idle, 0), tl.cdiv(size, N)),
                base,
                lead,
                size,
                start,
                end,
                scale * LOG2E,
                HKV,
                D,
                DIMS,
                PAGE,
                N,
                LIST,
                MATCHED,
                SINK,
                WIDE,
            )
            slot = phase * (programs + groups) + mine + g
            _leave(part_o, part_l, slot, out, level, G, DIMS)
            unit = stop

    if MATCHED:  # what the merge needs of the matched rows, copied: it overwrites row and key
        head = program * PICKS + tl.arange(0, PICKS)
        own = tl.load(best + head, mask=head < groups * G, other=threshold)
        fine = (head < groups * G) & (own < threshold)
        place = head.to(tl.int64) * K + ((own & 0xFFFFFFFF) >> 1) % K
        tl.store(picked + head, own, mask=head < groups * G)
        tl.store(picked_lse + head, tl.load(row_lse + place, mask=fine), mask=fine)
        tl.store(picked_chain + head, tl.load(row_chain + place, mask=fine), mask=fine)


@triton.jit
def _finish(
    output,  # [B, Hq, D]
    lse,  # [B, Hq]
    part_o,
    part_l,
    cuts,
    groups,
    programs,
    G: tl.constexpr,
    D: tl.constexpr,
    DIMS: tl.constexpr,
    S: tl.constexpr,
    MORE: tl.constexpr,
    SPLIT: tl.constexpr,  # programs per head
    PDL: tl.constexpr,
):
    """The partials of every head's one entry -> output and natural-log lse."""
    if PDL:
        gdc_wait()
    head, part = tl.program_id(0), tl.program_id(1)
    dims = part * (DIMS // SPLIT) + tl.arange(0, DIMS // SPLIT)
    first, count = slots_of(cuts, head // G, groups, programs)
    first += programs + groups
    level, partial = partials_at(part_o, part_l, first, 0, count, head % G, dims, G, DIMS, S)
    out, top, mass = gathered(
        part_o, part_l, first, count, level, partial, head % G, dims, G, DIMS, S, MORE
    )
    safe = tl.where(mass > 0, mass, 1.0)
    out = (out / safe).to(output.dtype.element_ty)
    tl.store(output + head.to(tl.int64) * D + dims, out, dims < D)
    if part == 0:
        natural = (top + tl.log2(safe)) / LOG2E
        tl.store(lse + head, tl.where(mass > 0, natural, float("-inf")))


def attend(
    work: Workspace,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    lens: Tensor,
    scale: float,
    lists: Tensor | None = None,
    counts: Tensor | None = None,
    piece: int = PAGE,
    output: Tensor | None = None,
    lse: Tensor | None = None,
    live: Tensor | None = None,
) -> Tensor:
    """Attention of q [B, Hq, d] over the first lens [B] keys -> [B, Hq, d].

    output and lse [B, Hq] (natural) are written in place; by default they are `work`'s own.
    k, v: HND pools [pages, Hkv, 16, d]; table [B, M] physical pages. With lists [B, H, n] and
    counts [B, H] (H = `work.spans` divided among the batch; integers of any kind, a list's items
    side by side), only over the first counts of the listed pieces, in units of `piece` tokens (16:
    pages, 1: tokens) and inside lens. What comes out of rows that are not live [B] means nothing,
    but is finite: they cost next to nothing.
    """
    if lists is not None:
        assert counts is not None and lists.stride(-1) == 1, "the items of a list lie together"
    piece = piece if lists is not None else 0
    spans(work, q, k, v, table, lens, scale, lists, counts, piece, live=live)
    tiling, (batch, q_heads, d) = work.tiling, q.shape
    output = work.output if output is None else output
    _finish[batch * q_heads, tiling.split](
        output,
        work.lse if lse is None else lse,
        work.part_o,
        work.part_l,
        work.cuts,
        work.groups,
        tiling.programs,
        G=work.group,
        D=d,
        DIMS=power(d),
        S=tiling.partials,
        MORE=tiling.more,
        SPLIT=tiling.split,
        PDL=tiling.pdl,
        num_warps=tiling.warps,
        **launch(tiling.pdl),
    )
    return output


def spans(
    work: Workspace,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    lens: Tensor,
    scale: float,
    lists: Tensor | None = None,
    counts: Tensor | None = None,
    piece: int = 0,
    rows: tuple[Tensor, Tensor] | None = None,
    threshold: int = 0,
    band: int = 0,
    sink: int = 0,
    whole: bool = False,
    live: Tensor | None = None,
) -> None:
    """The first launch: partial summaries of every span in `work`. rows: a ring's lse and chain."""
    tiling = work.tiling
    assert q.is_contiguous() and table.stride(1) == 1
    lse, chain = rows or (work.lse, work.picked_chain)
    _attend[(tiling.programs,)](
        q,
        k,
        v,
        table,
        lens,
        work.cuts if lists is None else lists,
        work.cuts if counts is None else counts,
        work.cuts if live is None else live,
        work.best,
        work.picked,
        lse,
        chain,
        work.picked_lse,
        work.picked_chain,
        work.cuts,
        work.part_o,
        work.part_l,
        work.groups,
        tail_weight(tiling, band, sink),
        table.stride(0),
        0 if lists is None else lists.stride(0),
        0 if lists is None else lists.stride(1),
        0 if counts is None else counts.stride(0),
        0 if counts is None else counts.stride(1),
        threshold,
        band,
        sink,
        scale,
        MATCHED=rows is not None,
        WHOLE=whole,
        LIVE=live is not None,
        LIST=piece,
        H=work.spans,
        HKV=work.kv_heads,
        G=work.group,
        GP=power(work.group),
        NP=power(work.groups),
        K=lse.shape[-1],
        D=q.shape[-1],
        DIMS=power(q.shape[-1]),
        PAGE=PAGE,
        N=tiling.tokens,
        W=tiling.weight,
        SINK=sink > 0,
        PICKS=power(triton.cdiv(work.groups * work.group, tiling.programs)),
        WIDE=q.dtype == torch.float32,
        PDL=tiling.pdl,
        num_warps=4,
        num_stages=tiling.stages,
        maxnreg=tiling.registers,
        **launch(tiling.pdl),
    )
