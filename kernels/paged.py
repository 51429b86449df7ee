"""Exact attention over a paged KV cache in plain torch: the reference of every faster kernel.

Pools are HND, `[pages, Hkv, 16, d]`. Seen as `[pages * Hkv, 16 * d]`, one KV head's page is one
row, so a page table per KV head (or per query head) is a list of rows and selection needs no other
layout. All arithmetic is fp32 (fp64 for fp64 inputs); an empty key set gives o = 0 and lse = -inf.
"""

from __future__ import annotations

import torch
from torch import Tensor

PAGE = 16  # tokens per page
NOWHERE = -1  # a position that no range holds


def softmax(scores: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """scores, mask [..., N] -> exp(scores - max), its sum [..., 1] (never 0), lse [...]."""
    scores = scores.masked_fill(~mask, -torch.inf)
    top = scores.amax(-1, keepdim=True)
    top = torch.where(top.isinf(), torch.zeros_like(top), top)
    weights = (scores - top).exp_()
    total = weights.sum(-1, keepdim=True)
    lse = (total.log() + top).squeeze(-1)
    return weights, total.clamp_min(torch.finfo(total.dtype).tiny), lse


def softmax_attend(scores: Tensor, mask: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """scores, mask [..., n, N], values [..., N, d] -> o [..., n, d], natural-log lse [..., n]."""
    weights, total, lse = softmax(scores, mask)
    return torch.matmul(weights, values) / total, lse


def wide(x: Tensor) -> Tensor:
    """At least fp32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def page_rows(table: Tensor, pages: Tensor, kv_heads: int) -> Tensor:
    """Rows of `[pages * Hkv, 16 * d]` that hold the listed logical pages.

    table [B, M], pages [B, H, n] with H = Hkv or Hq -> [B, H, n].
    """
    b, heads, _ = pages.shape
    head = torch.arange(heads, device=pages.device) // (heads // kv_heads)
    physical = table[:, None].expand(b, heads, -1).gather(2, pages.long())
    return physical * kv_heads + head[:, None]


def tail_rows(table: Tensor, shared: Tensor, tail: int, kv_heads: int) -> Tensor:
    """Rows of the `tail` pages behind the first shared [B] of each table row, [B, Hkv, tail]."""
    page = shared[:, None] + torch.arange(tail, device=table.device)
    return page_rows(table, page[:, None].expand(-1, kv_heads, -1), kv_heads)


def take(pool: Tensor, rows: Tensor, size: int) -> Tensor:
    """Rows [B, H, n] of the pool seen as `[-1, size * d]`, as tokens [B, H, n * size, d]."""
    d = pool.shape[-1]
    b, heads, n = rows.shape
    return pool.reshape(-1, size * d).index_select(0, rows.reshape(-1)).view(b, heads, n * size, d)


def take_tokens(pool: Tensor, table: Tensor, tokens: Tensor) -> Tensor:
    """What the pool holds at positions [B, H, n], H = Hkv or Hq -> [B, H, n, d]."""
    rows = page_rows(table, tokens // PAGE, pool.shape[1]) * PAGE + tokens % PAGE
    return take(pool, rows, 1)


def logits(q: Tensor, keys: Tensor, scale: float) -> Tensor:
    """q [B, Hq, d], keys [B, H, N, d] with H = Hkv or Hq -> scale * q.k as [B, H, Hq // H, N]."""
    b, heads = keys.shape[:2]
    grouped = (wide(q) * scale).view(b, heads, -1, q.shape[-1])
    return torch.matmul(grouped, wide(keys).transpose(-1, -2))


def attend(
    q: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """q [B, Hq, d] over keys, values [B, H, N, d] with mask [B, H, Hq // H or 1, N]
    -> o [B, Hq, d], lse [B, Hq]."""
    out, lse = softmax_attend(logits(q, keys, scale), mask, wide(values))
    return out.reshape(q.shape), lse.reshape(q.shape[:2])


def lying_logits(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """q [B, Hq, d] over keys in place, pages [B, n, Hkv, 16, d] -> [B, Hkv, G, n * 16].

    Every page of a head is one small matrix of a batch: no key is copied.
    """
    b, pages, kv_heads, _, d = k.shape
    group = q.shape[1] // kv_heads
    grouped = (wide(q) * scale).view(b, 1, kv_heads, group, d).expand(b, pages, -1, -1, -1)
    blocks = wide(k).reshape(-1, PAGE, d)
    scores = torch.bmm(grouped.reshape(-1, group, d), blocks.transpose(1, 2))
    return scores.view(b, pages, kv_heads, group, PAGE).permute(0, 2, 3, 1, 4).flatten(3)


def lying_values(weights: Tensor, v: Tensor) -> Tensor:
    """weights [B, Hkv, G, n * 16] times values in place [B, n, Hkv, 16, d] -> [B, Hkv, G, d]."""
    b, pages, kv_heads, _, d = v.shape
    paged = weights.unflatten(3, (pages, PAGE)).permute(0, 3, 1, 2, 4)
    group = weights.shape[2]
    parts = torch.bmm(paged.reshape(-1, group, PAGE), wide(v).reshape(-1, PAGE, d))
    return parts.view(b, pages, kv_heads, group, d).sum(1)


def attend_range(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    starts: Tensor,
    ends: Tensor,
    lying: tuple[Tensor, Tensor],
    shared: Tensor,
    tail: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Each query head over its own keys [starts, ends), both [B, Hq].

    Row i's first shared [B] pages are read from lying (k and v, [B, n, Hkv, 16, d] each, n >=
    shared), the next `tail` pages through the table.
    """
    first = PAGE * lying[0].shape[1]
    rows = tail_rows(table, shared, tail, k.shape[1])
    keys, values = take(k, rows, PAGE), take(v, rows, PAGE)
    scores = torch.cat((lying_logits(q, lying[0], scale), logits(q, keys, scale)), -1)
    end = PAGE * shared[:, None]
    position = torch.arange(first, device=k.device).expand(len(q), -1)
    position = position.masked_fill(position >= end, NOWHERE)
    behind = end + torch.arange(PAGE * tail, device=k.device)
    position = torch.cat((position, behind), -1)[:, None]
    mask = (position >= starts[..., None]) & (position < ends[..., None])
    weights, total, lse = softmax(scores, mask.view(scores.shape))
    out = lying_values(weights[..., :first], lying[1])
    out = (out + torch.matmul(weights[..., first:], wide(values))) / total
    return out.reshape(q.shape), lse.reshape(q.shape[:2])


def attend_pages(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    pages: Tensor,
    counts: Tensor,
    lens: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The first counts [B, H] of the listed pages [B, H, n], up to the last token (lens [B])."""
    position = (pages[..., None] * PAGE + torch.arange(PAGE, device=k.device)).flatten(2)
    listed = torch.arange(pages.shape[2], device=k.device) < counts[..., None]
    mask = listed.repeat_interleave(PAGE, 2) & (position < lens[:, None, None])
    rows = page_rows(table, pages, k.shape[1])
    return attend(q, take(k, rows, PAGE), take(v, rows, PAGE), mask[:, :, None], scale)


def attend_tokens(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, tokens: Tensor, counts: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """The first counts [B, H] of the listed positions [B, H, n]."""
    listed = torch.arange(tokens.shape[2], device=k.device) < counts[..., None]
    keys, values = (take_tokens(pool, table, tokens) for pool in (k, v))
    return attend(q, keys, values, listed[:, :, None], scale)


def prefix_rows(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor, ends: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Summaries of many queries of one sequence over their own key ranges.

    q [n, Hq, d]; k, v [Hkv, N, d]; starts, ends [n] -> o [n, Hq, d], lse [n, Hq]. Blocked over
    queries: memory is linear in N.
    """
    n, q_heads, d = q.shape
    kv_heads, length = k.shape[:2]
    k, v = wide(k).transpose(-1, -2), wide(v)
    position = torch.arange(length, device=k.device)
    block = max(1, 2**25 // max(1, q_heads * length))
    outs, sums = [], []
    for at in range(0, n, block):
        part = (wide(q[at : at + block]) * scale).view(-1, kv_heads, q_heads // kv_heads, d)
        scores = torch.matmul(part.permute(1, 2, 0, 3), k[:, None])  # [Hkv, G, m, N]
        low, high = starts[at : at + block, None], ends[at : at + block, None]
        out, lse = softmax_attend(scores, (position >= low) & (position < high), v[:, None])
        outs.append(out.permute(2, 0, 1, 3).reshape(-1, q_heads, d))
        sums.append(lse.permute(2, 0, 1).reshape(-1, q_heads))
    return torch.cat(outs), torch.cat(sums)
