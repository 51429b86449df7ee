"""What is timed: one decode step of a shape, who reuses from where, and the bytes it must move."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}  # of an element
PATTERNS = ("contiguous", "independent")
RINGS = ("far", "typical", "worst")
FULL = ("flashinfer_tc", "flashinfer_cc", "triton_full")  # attention to everything
LAUNCHES = ("mac_match", "mac_attend", "mac_merge")  # what `mac_launches` times, each alone
METHODS = ("mac", "mac_launches", *FULL)


@dataclass(frozen=True)
class Shape:
    """layout "query heads/KV heads"; context: tokens in the cache, this step's own included."""

    layout: str
    d: int
    context: int
    batch: int
    dtype: str = "bfloat16"

    @property
    def q_heads(self) -> int:
        return int(self.layout.partition("/")[0])

    @property
    def kv_heads(self) -> int:
        return int(self.layout.partition("/")[2])

    @property
    def group(self) -> int:
        """Query heads per KV head, G."""
        return self.q_heads // self.kv_heads

    @property
    def vector(self) -> int:
        """Bytes of one query, key or value."""
        return self.d * BYTES[self.dtype]

    @property
    def cache_bytes(self) -> int:
        """Bytes of K and V of one layer."""
        return 2 * self.vector * self.context * self.kv_heads * self.batch


@dataclass(frozen=True)
class Reuse:
    """MAC's axes. hit: share of (row, query head) units that reuse; lag: of all hits, 0: drawn for
    each from 1 to K - 1. access: the share of the context from which r was made, else None."""

    hit: float
    pattern: str
    lag: int
    K: int
    r: int
    ring: str
    tau: float = 0.45
    access: float | None = None

    def radius(self, d: int) -> float:
        """L2 match radius."""
        return math.sqrt(2 * d) * (1 - self.tau)


@dataclass(frozen=True)
class Point:
    """One method on one case. tiling: fields that differ from the kernels' own choice."""

    shape: Shape
    method: str
    reuse: Reuse | None = None  # None: full attention
    tiling: tuple[tuple[str, Any], ...] = ()
    chunk: int | None = None  # dims that the ring keeps together; None: the kernels' own choice


@dataclass(frozen=True)
class Plan:
    """Who hits, hit [B, Hq], and how far back, lag [B, Hq] (of misses: of no meaning)."""

    hit: Tensor
    lag: Tensor

    def starts(self, shape: Shape, r: int) -> Tensor:
        """[B, Hq] first key that a head reads of the prefix: E(t - lag), 0 for a miss."""
        return torch.where(self.hit, (shape.context - self.lag - r).clamp_min(0), 0)


def plan(shape: Shape, reuse: Reuse, seed: int) -> Plan:
    """The hits of a case: exactly the asked share, rounded to whole heads.

    Misses are the first of an order that the hit rate does not change, so at a higher rate a subset
    of the same heads misses. `contiguous`: a run over the heads of all rows, begun one head into a
    group, so that its ends cut groups in two; `independent`: a random order.
    """
    units = shape.batch * shape.q_heads
    misses = math.floor((1 - reuse.hit) * units + 0.5)
    draw = torch.Generator().manual_seed(seed)
    if reuse.pattern == "contiguous":
        groups = units // shape.group
        first = int(torch.randint(groups, (), generator=draw)) * shape.group + 1 % shape.group
        order = (first + torch.arange(units)) % units
    else:
        order = torch.randperm(units, generator=draw)
    hit = torch.ones(units, dtype=torch.bool)
    hit[order[:misses]] = False
    lag = torch.full((units,), reuse.lag)
    if reuse.lag == 0:
        lag = torch.randint(1, reuse.K, (units,), generator=draw)
    return Plan(hit.view(shape.batch, -1), lag.view(shape.batch, -1))


def kv_tokens(shape: Shape, reuse: Reuse, hits: Plan) -> Tensor:
    """[B, Hkv] tokens whose K and V a KV head must load: the union over its query heads."""
    starts = hits.starts(shape, reuse.r).view(shape.batch, shape.kv_heads, -1)
    return shape.context - starts.amin(-1)


@dataclass(frozen=True)
class Volume:
    """Bytes that a step must move. ring: the stored queries, all of them, whether or not a scan
    that rejects early reads them."""

    ring: int
    match: int  # ring + queries
    attend: int  # K and V + queries
    merge: int  # reused rows, new rows, output

    @property
    def total(self) -> int:
        return self.match + self.attend + self.merge


def mac_volume(shape: Shape, reuse: Reuse, hits: Plan) -> Volume:
    """Bytes of one MAC step, of every KV head the union of what its query heads read."""
    units = shape.batch * shape.q_heads
    ring = units * reuse.K * shape.vector
    queries = units * shape.vector
    reused = int(hits.hit.sum()) * (shape.vector + 4)  # a row and its lse
    stored = units * (2 * shape.vector + 4)  # query, row, lse
    cache = int(kv_tokens(shape, reuse, hits).sum()) * 2 * shape.vector
    return Volume(ring, ring + queries, cache + queries, reused + stored + queries)


def full_volume(shape: Shape) -> Volume:
    """Bytes of attention to everything: K, V, queries and output."""
    queries = shape.batch * shape.q_heads * shape.vector
    return Volume(0, 0, shape.cache_bytes + queries, queries)
