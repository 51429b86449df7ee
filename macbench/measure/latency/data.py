"""Caches, queries and rings in which exactly the planned heads hit.

A set is what a layer of a model has for itself: K and V pools, queries, ring. Sets share the page
table and the lengths, as layers do. Queries stay; rings are built around them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from macbench.kernels.paged import PAGE
from macbench.measure.latency.cases import Plan, Reuse, Shape

NOISE = 0.05  # per dim, between a query and the row planted for it
NEAR = 8  # rows of a `typical` ring nearer than 1.25 match radii
EDGE = 16  # last dims, in which alone the rows of a `worst` ring are apart


@dataclass(frozen=True)
class Layer:
    """One set: k, v [pages, Hkv, 16, d]; q_pre, q [B, Hq, d]."""

    k: Tensor
    v: Tensor
    q_pre: Tensor
    q: Tensor


@dataclass(frozen=True)
class Bank:
    """Sets of one shape. table [B, M] int32: shuffled pages; lens [B] int32: all `context`."""

    shape: Shape
    table: Tensor
    lens: Tensor
    layers: list[Layer]
    scale: float

    @property
    def device(self) -> torch.device:
        return self.table.device

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.shape.dtype)


def bank(shape: Shape, count: int, device: torch.device | str, seed: int) -> Bank:
    """`count` sets of standard normal K, V and queries."""
    draw = torch.Generator(device).manual_seed(seed)
    width = -(-shape.context // PAGE)
    pages = shape.batch * width
    table = torch.randperm(pages, generator=draw, device=device).to(torch.int32)
    dtype = getattr(torch, shape.dtype)

    def normal(*size: int) -> Tensor:
        return torch.empty(size, dtype=dtype, device=device).normal_(generator=draw)

    layers = [
        Layer(
            normal(pages, shape.kv_heads, PAGE, shape.d),
            normal(pages, shape.kv_heads, PAGE, shape.d),
            normal(shape.batch, shape.q_heads, shape.d),
            normal(shape.batch, shape.q_heads, shape.d),
        )
        for _ in range(count)
    ]
    lens = torch.full((shape.batch,), shape.context, dtype=torch.int32, device=device)
    return Bank(shape, table.view(shape.batch, width), lens, layers, shape.d**-0.5)


def stored_queries(q: Tensor, hit: Tensor, lag: Tensor, t: int, reuse: Reuse, draw) -> Tensor:
    """One row's ring in fp32: q [Hq, d], hit and lag [Hq] -> [Hq, K, d].

    far      N(0, 1) + 10: the first dims alone reject every row
    typical  normal; NEAR rows are moved to distances from 0.8 to 1.2 match radii (for a miss from
             1.02) up to 1.25, all others are further
    worst    apart from q in the last EDGE dims only, by such distances: nothing is rejected early
    Hits are planted over that: slot (t - lag) mod K holds q + NOISE.
    """
    q = q.float()
    (heads, d), K, radius = q.shape, reuse.K, reuse.radius(q.shape[-1])

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=draw, device=q.device)

    def uniform(*size: int) -> Tensor:
        return torch.rand(size, generator=draw, device=q.device)

    low = torch.where(hit, 0.8, 1.02)[:, None]
    if reuse.ring == "far":
        rows = normal(heads, K, d) + 10
    elif reuse.ring == "worst":
        edge = min(EDGE, d // 2)
        apart = 0.02 * normal(heads, K, d)
        wanted = radius * (low + (1.2 - low) * uniform(heads, K))
        rest = apart[..., :-edge].square().sum(-1)
        length = (wanted.square() - rest).clamp_min(0).sqrt()
        direction = torch.nn.functional.normalize(normal(heads, K, edge), dim=-1)
        apart[..., -edge:] = length[..., None] * direction
        rows = q[:, None] + apart
    else:
        apart = normal(heads, K, d) - q[:, None]
        distance = apart.norm(dim=-1)
        wanted = distance.clamp_min(1.25 * radius)
        chosen = uniform(heads, K).topk(min(NEAR, K), -1).indices
        nearest = low + (1.2 - low) * uniform(heads, 1)
        share = torch.linspace(0, 1, chosen.shape[-1], device=q.device)
        wanted.scatter_(1, chosen, radius * (nearest + (1.25 - nearest) * share))
        rows = q[:, None] + apart * (wanted / distance)[..., None]
    head = torch.arange(heads, device=q.device)[hit]
    rows[head, ((t - lag) % K)[hit]] = (q + NOISE * normal(heads, d))[hit]
    return rows


def ring(
    bank: Bank, index: int, reuse: Reuse, plan: Plan, chunk: int, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The ring of one set: queries [B, Hq, d / chunk, K, chunk], rows [B, Hq, K, d], lse and chain
    [B, Hq, K].

    Rows are random, and weigh about as much as the fresh part of a hit, so that an error in either
    shows in the output.
    """
    shape, layer = bank.shape, bank.layers[index]
    draw = torch.Generator(bank.device).manual_seed(seed)
    batch, heads, K = shape.batch, shape.q_heads, reuse.K
    hit, lag = plan.hit.to(bank.device), plan.lag.to(bank.device)
    queries = torch.empty(
        batch, heads, shape.d // chunk, K, chunk, dtype=bank.dtype, device=bank.device
    )
    for b in range(batch):  # fp32 of one row at a time
        rows = stored_queries(layer.q_pre[b], hit[b], lag[b], shape.context - 1, reuse, draw)
        queries[b] = rows.to(bank.dtype).unflatten(-1, (-1, chunk)).transpose(1, 2)
    rows = torch.empty(batch, heads, K, shape.d, dtype=bank.dtype, device=bank.device)
    rows.normal_(0, 0.1, generator=draw)
    lse = torch.empty(batch, heads, K, dtype=torch.float32, device=bank.device)
    lse.normal_(math.log(max(reuse.r, 1)) + 0.5, 0.1, generator=draw)
    return queries, rows, lse, torch.zeros(batch, heads, K, dtype=torch.int32, device=bank.device)
