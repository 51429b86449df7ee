"""MAC-Attention (arXiv 2604.00235): match, amend, complete.

Positions are 0-based; E(x) = max(x + 1 - r, 0) is the end of the prefix that the row of a query at
position x covers. Per layer and query head a ring holds the last K queries (before RoPE) with the
summary (o, lse) of their own attention over [0, E(x)). For the query at position t:

    match     p = nearest ring query in L2 (among equals, up to rounding, the oldest); a hit if
              closer than sqrt(2 d) (1 - tau): a larger tau is stricter  (paper 3.2, eq. 3)
    amend     a hit reuses row p and attends freshly to [E(p), E(t)); a miss to [0, E(t)).
              That is the new row: it is formed without subtraction      (paper 3.4)
    complete  the row merged with fresh attention to [E(t), t]           (paper 3.3, eq. 7)

Read per KV head: the ring, G (K d b + d b + 4) bytes, charged in full; and the tokens from the
earliest start of its query heads to t, so one missing head makes its whole group read everything.

Beyond the paper, each off by default: `refresh_mixed_groups`, `max_chain`, `sink`, tau per layer.

On a GPU the step runs in `macbench.kernels.mac`; the controls (`match` other than nearest) stay
here. What is below is the reference of both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from macbench.attention.base import Method, Needs
from macbench.attention.rng import uniform
from macbench.attention.summary import merge, select
from macbench.errors import MacbenchError, nearest

MATCHES = ("nearest", "previous", "random_lag", "random")
NEVER = 2**31 - 1
# Distances this close, as a share of the query's norm, are equal. In layer 0 a repeated token gives
# the same query up to the rounding of whatever matrix product it was computed in.
ROUNDING = 1e-5
DISTANCES = 16  # bins of the match distance, from 0 to the radius


@dataclass
class Mac(Method):
    """tau: threshold in [0, 1], or a list with one per layer. K: ring rows. r: band width.

    min_context: no match before this position (the authors' serving code uses 2048).
    sink: the first tokens, never part of a row, always attended freshly.
    max_chain: a hit that would be further than this from an exact row is a miss of its head.
    rotate: on a GPU, keep queries along the principal axes of the first prompt's; distances and
    decisions stay (up to the rounding of what is kept), the match reads less. The axes, d d 4 bytes
    per query head, are charged to every row, and the ring in full all the same.
    refresh_mixed_groups: where one head of a group misses, let every head of it attend exactly.

    Controls: amend=false sets r = 0. match_on="post_rope" compares rotated queries. match=
    "previous" reuses t - 1 without looking (exact at every `refresh_every`-th step);
    "random_lag" keeps MAC's hits but draws each lag from the lags accepted so far in that layer and
    head; "random" keeps the hits and draws the row uniformly.
    """

    name: ClassVar[str] = "mac"
    version: ClassVar[int] = 2  # 2: distances that differ by rounding are equal
    tau: float | list[float] = 0.45
    K: int = 1024
    r: int = 256
    amend: bool = True
    match: str = "nearest"
    match_on: str = "pre_rope"
    refresh_every: int = 0
    refresh_mixed_groups: bool = False
    max_chain: int | None = None
    sink: int = 0
    min_context: int = 0
    rotate: bool = False
    needs: Needs = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for tau in self.tau if isinstance(self.tau, list) else [self.tau]:
            if not 0 <= tau <= 1:
                raise MacbenchError(f"mac.tau={tau} must lie in [0, 1]; larger is stricter.")
        for knob, least in (("K", 1), ("r", 0), ("sink", 0), ("refresh_every", 0)):
            if getattr(self, knob) < least:
                raise MacbenchError(f"mac.{knob}={getattr(self, knob)} must be at least {least}.")
        if self.match not in MATCHES:
            raise MacbenchError(f"mac.match={self.match}: {nearest(self.match, list(MATCHES))}")
        if self.match_on not in ("pre_rope", "post_rope"):
            raise MacbenchError(f"mac.match_on={self.match_on}: choose pre_rope or post_rope.")
        self.needs = Needs(prompt_queries=self.K)
        self.band = self.r if self.amend else 0

    def check(self, geometry, length):
        if isinstance(self.tau, list) and len(self.tau) != geometry.layers:
            raise MacbenchError(
                f"mac.tau lists {len(self.tau)} values but the model has {geometry.layers} layers."
            )

    def ring_bytes(self, geometry) -> int:
        """Metadata a KV head reads at every step: its heads' queries, one summary each, axes."""
        d, size = geometry.head_dim, geometry.dtype.itemsize
        scanned = 0 if self.match == "previous" else self.K * d * size
        turn = d * d * 4 if self.rotate else 0
        return geometry.group * (scanned + d * size + 4 + turn)

    def floor(self, geometry, length):
        """If every head reused its newest row: the ring, the band and what came since."""
        fresh = min(self.band + 1 + self.sink, length)
        return (fresh + self.ring_bytes(geometry) / geometry.token_bytes) / length

    def radius(self, layer: int, head_dim: int) -> float:
        """L2 match radius sqrt(2 d) (1 - tau)."""
        tau = self.tau[layer] if isinstance(self.tau, list) else self.tau
        return math.sqrt(2 * head_dim) * (1 - tau)

    def covered(self, position: Tensor) -> Tensor:
        """E(x), the prefix end of the row of a query at `position`."""
        return (position + 1 - self.band).clamp_min(0)

    def allocate(self, geometry, slots, max_tokens):
        self.geometry = geometry
        self.fast = geometry.backend != "torch" and self.match == "nearest"
        rows = (geometry.layers, slots, geometry.q_heads, self.K)
        device, d = geometry.device, geometry.head_dim
        chunk = d  # dims of a query that lie together, [..., d / chunk, K, chunk]
        if self.fast:
            from macbench.kernels.mac import chunk_of

            chunk = chunk_of(d)
        self.queries = torch.zeros(
            *rows[:3], d // chunk, self.K, chunk, dtype=geometry.dtype, device=device
        )
        self.outputs = torch.zeros(*rows, d, dtype=geometry.dtype, device=device)
        exact = torch.promote_types(geometry.dtype, torch.float32)
        self.lse = torch.full(rows, -torch.inf, dtype=exact, device=device)
        self.chain = torch.zeros(rows, dtype=torch.int32, device=device)
        held = [self.queries, self.outputs, self.lse, self.chain]
        if self.match == "random_lag":
            self.lags = torch.zeros(*rows[:3], self.K, dtype=torch.int32, device=device)
            self.accepted = torch.zeros(rows[:3], dtype=torch.int64, device=device)
            held += [self.lags, self.accepted]
        self.key = torch.zeros(slots, dtype=torch.int64, device=device)
        radii = [self.radius(layer, d) for layer in range(geometry.layers)]
        self.radii = torch.tensor(radii, device=device)  # [layers]
        self.turn = d * d * 4 if self.rotate else 0  # bytes of axes per query head
        if self.fast:
            self.kernel = Kernel(self, slots)
            held += [ring.axes for ring in self.kernel.rings if ring.axes is not None]
        return sum(x.numel() * x.itemsize for x in held) // slots

    def begin(self, layer, slot, prompt, view):
        """Fill the ring with the last K prompt positions, each row computed without subtraction.

        With a sink, rows cover [min(sink, E), E) from the start (the authors' code leaves prompt
        rows empty then).
        """
        self.chain[layer, slot] = 0
        if self.match == "random_lag":
            self.accepted[layer, slot] = 0
        if layer == 0:
            self.key[slot] = prompt.key
        q = prompt.q[layer][-self.K :]
        n, start = len(q), prompt.length - len(q)

        def by_slot(x):  # [n, Hq, ...] -> [Hq, n, ...], position p at p % K
            return x.roll(start % self.K, 0).transpose(0, 1)

        def rows():
            position = torch.arange(start, prompt.length, device=q.device)
            out, lse = self._prompt_rows(layer, slot, q, position, prompt.length, view)
            return by_slot(out), by_slot(lse)

        def queries():
            return by_slot(prompt.q_pre[layer][-self.K :] if self.match_on == "pre_rope" else q)

        out, lse = prompt.once(("mac rows", layer, self.K, self.band, self.sink), rows)
        matched = prompt.once(("mac queries", layer, self.K, self.match_on), queries)
        if self.fast and self.rotate:
            matched = self.kernel.turned(layer, matched.transpose(0, 1)).transpose(0, 1)
        self._parts(layer)[slot][:, :n] = self._split(matched)
        self.outputs[layer, slot, :, :n] = out
        self.lse[layer, slot, :, :n] = lse
        self.lse[layer, slot, :, n:] = -torch.inf

    def _parts(self, layer: int) -> Tensor:
        """The layer's stored queries as [B, Hq, K, d / chunk, chunk]."""
        return self.queries[layer].transpose(2, 3)

    def _split(self, query: Tensor) -> Tensor:
        """[..., d] as [..., d / chunk, chunk] in the ring's dtype."""
        return query.unflatten(-1, self.queries.shape[3::2]).to(self.queries.dtype)

    def _prompt_rows(self, layer, slot, q, position, length, view):
        ends = self.covered(position)
        used = max(length - self.band, 0)  # the last row's prefix end
        if used == 0:
            empty = torch.full(q.shape[:2], -torch.inf, dtype=self.lse.dtype, device=q.device)
            return torch.zeros_like(q), empty
        return view.prompt_rows(layer, slot, q, used, ends.clamp_max(self.sink), ends)

    def attend(self, layer, q_pre, q, view, trace):
        t = (view.lens - 1)[:, None]  # [B, 1] position of this query
        matched = q_pre if self.match_on == "pre_rope" else q
        if self.fast:
            return self.kernel.step(layer, matched, q, view)
        p, distance, hit = self._decide(layer, matched, t, view)
        p = self._control(layer, p, t, hit, view)
        reused, depth = self._row(layer, p)

        end = self.covered(t).expand_as(p)
        start = torch.where(hit, self.covered(p), end.clamp_max(self.sink))
        fresh = view.exact(layer, q, starts=start, ends=end)
        row = select(hit, merge(reused, fresh), fresh)
        depth = torch.where(hit, depth + 1, 0)
        whole = row
        if self.band:
            whole = merge(whole, self._tail(layer, q, t, view))
        if self.sink:
            ends = start.clamp_max(self.sink)
            first = view.exact(layer, q, starts=torch.zeros_like(ends), ends=ends)
            whole = merge(whole, first)
        self._store(layer, t, matched, row, depth)  # after every row of this step was read
        self._report(layer, view, trace, t, start, hit, t - p, distance, depth)
        return whole[0]

    def settle(self, view, trace):
        if not self.fast:
            return
        t = (view.lens - 1)[:, None]
        hit, p, distance, depth = self.kernel.matched()  # [layers, B, Hq] each
        end = self.covered(t).expand_as(p)
        start = torch.where(hit, self.covered(p), end.clamp_max(self.sink))
        self._report(slice(None), view, trace, t, start, hit, t - p, distance, depth)

    def _decide(self, layer: int, matched: Tensor, t: Tensor, view) -> tuple[Tensor, ...]:
        """Which row each head may reuse: p, its L2 distance and hit, [B, Hq] each."""
        if self.match == "previous":
            p = (t - 1).clamp_min(0).expand(matched.shape[:2])
            distance = torch.zeros(p.shape, device=p.device)
            close = (t >= 1).expand_as(p)
            if self.refresh_every:
                close = close & ((view.step + 1) % self.refresh_every != 0)[:, None]
        else:
            p, distance = self._nearest(layer, matched, t)
            close = distance < self.radius(layer, matched.shape[-1])
        at = (p % self.K)[..., None]
        hit = close & self.lse[layer].gather(2, at).squeeze(-1).isfinite() & (t >= self.min_context)
        if self.max_chain is not None:
            hit = hit & (self.chain[layer].gather(2, at).squeeze(-1) < self.max_chain)
        if self.refresh_mixed_groups:
            hit = self._whole_groups(hit)
        return p, distance, hit

    def _nearest(self, layer: int, matched: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The closest of the queries at positions [max(t - K, 0), t); the oldest among equals."""
        q = matched.to(torch.promote_types(matched.dtype, torch.float32))
        q_parts = q.unflatten(-1, self.queries.shape[3::2])[:, :, None]
        apart = self._parts(layer).to(q.dtype) - q_parts
        distance = apart.square().sum(-1).sum(-1).sqrt()
        slot = torch.arange(self.K, device=t.device)
        position = t - 1 - (t - 1 - slot) % self.K  # [B, K]: newest x < t with x = slot mod K
        position = position[:, None]
        distance = distance.masked_fill(position < 0, torch.inf)
        least = distance.amin(-1, keepdim=True)
        equal = distance <= least + ROUNDING * q.norm(dim=-1, keepdim=True)
        p = position.masked_fill(~equal | (position < 0), NEVER).amin(-1)
        return p.clamp(0).minimum(t), least.squeeze(-1)

    def _whole_groups(self, hit: Tensor) -> Tensor:
        """hit [..., Hq], kept only where every query head of the group hits."""
        grouped = hit.unflatten(-1, (self.geometry.kv_heads, self.geometry.group))
        return grouped.all(-1, keepdim=True).expand_as(grouped).flatten(-2)

    def _control(self, layer: int, p: Tensor, t: Tensor, hit: Tensor, view) -> Tensor:
        """The row really used: p, or for the random controls another one that is valid."""
        if self.match not in ("random", "random_lag"):
            return p
        head = torch.arange(p.shape[1], device=p.device)
        draw = uniform(self.key[:, None], view.step[:, None], layer, head)
        oldest = (t - self.K).clamp_min(self.band + self.sink)  # older rows are gone or empty
        if self.match == "random":
            return torch.where(hit, oldest + (draw * (t - oldest)).long(), p)
        # the pool of lags: the newest K that were accepted, this one included
        accepted = self.accepted[layer]
        at = (accepted % self.K)[..., None]
        held = self.lags[layer].gather(2, at).squeeze(-1)
        self.lags[layer].scatter_(2, at, torch.where(hit, t - p, held).int()[..., None])
        accepted += hit
        pool = accepted.clamp(1, self.K)
        lag = self.lags[layer].gather(2, (draw * pool).long()[..., None]).squeeze(-1)
        return torch.where(hit, (t - lag).maximum(oldest), p)

    def _row(self, layer: int, p: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """The stored summary (o, lse) and chain depth of position p [B, Hq]."""
        at = (p % self.K)[..., None]
        out = self.outputs[layer].gather(
            2, at[..., None].expand(-1, -1, -1, self.geometry.head_dim)
        )
        lse = self.lse[layer].gather(2, at).squeeze(-1)
        return (out.squeeze(2).to(lse.dtype), lse), self.chain[layer].gather(2, at).squeeze(-1)

    def _tail(self, layer: int, q: Tensor, t: Tensor, view) -> tuple[Tensor, Tensor]:
        """Fresh attention over [E(t), t], at most r tokens."""
        start = self.covered(t)
        tokens = start + torch.arange(min(self.band, view.bound), device=t.device)
        heads = (len(t), self.geometry.kv_heads)
        tokens = tokens.minimum(t)[:, None].expand(*heads, -1)
        return view.exact(layer, q, tokens=tokens, counts=(t + 1 - start).expand(heads))

    def _store(
        self, layer: int, t: Tensor, query: Tensor, row: tuple[Tensor, Tensor], depth: Tensor
    ):
        at = (t % self.K).expand(query.shape[:2])[..., None]
        wide = at[..., None].expand(*at.shape, query.shape[-1])
        parts = self._split(query)[:, :, None]
        self._parts(layer).scatter_(2, at[..., None, None].expand(parts.shape), parts)
        self.outputs[layer].scatter_(2, wide, row[0][:, :, None].to(self.outputs.dtype))
        self.lse[layer].scatter_(2, at, row[1][..., None].to(self.lse.dtype))
        self.chain[layer].scatter_(2, at, depth[..., None].to(self.chain.dtype))

    def _report(self, layer, view, trace, t, start, hit, gap, distance, depth) -> None:
        geometry, seen = self.geometry, t + 1
        skipped = start.masked_fill(~hit, 0)
        groups = (geometry.kv_heads, geometry.group)
        grouped = skipped.unflatten(-1, groups).amin(-1)  # a miss: everything is read
        size = geometry.head_dim * geometry.dtype.itemsize
        scanned = (t >= self.min_context) * (0 if self.match == "previous" else self.K * size)
        trace.read(
            layer,
            view,
            head_tokens=seen - skipped + skipped.clamp_max(self.sink),
            kv_tokens=seen - grouped + grouped.clamp_max(self.sink),
            meta_bytes=geometry.group * (scanned + size + 4 + self.turn),
        )
        trace.add(layer, "hit", hit)
        trace.add(layer, "distance", distance.masked_fill(~hit, 0))
        trace.add(layer, "gap", gap.masked_fill(~hit, 0))
        trace.add(layer, "skip", skipped / seen)
        trace.add(layer, "depth", depth)
        trace.over_steps(layer, view, "hits", hit)
        bins = gap.clamp_min(1).log2().long()  # 1, 2 to 3, 4 to 7, …
        trace.tally(layer, view, "gap", bins, self.K.bit_length(), hit)
        share = distance / self.radii[layer][..., None, None] * DISTANCES
        trace.tally(layer, view, "distance", share.nan_to_num(0, 0, 0), DISTANCES, hit)
        whole = hit.unflatten(-1, groups).all(-1)
        trace.add(layer, "group_hit", whole, heads="kv")


class Kernel:
    """The same step on a GPU (`macbench.kernels.mac`), for all layers of one method."""

    def __init__(self, method: Mac, slots: int):
        from macbench.kernels import mac
        from macbench.kernels.workspace import Workspace, choose_tiling

        self.method, self.mac = method, mac
        g = method.geometry
        shape = (g.layers, slots, g.q_heads)
        taus = method.tau if isinstance(method.tau, list) else [method.tau] * g.layers
        self.taus = taus
        limits = [mac.threshold(tau, g.head_dim)[1] for tau in taus]
        self.limits = torch.tensor(limits, device=g.device)[:, None, None]
        best = self.limits.expand(shape).clone()
        self.picked = self.limits.expand(shape).clone()
        self.chain = torch.zeros(shape, dtype=torch.int32, device=g.device)
        tiling = choose_tiling(slots * g.kv_heads, g.head_dim, g.dtype, g.device)
        work = Workspace(slots, g.q_heads, g.kv_heads, g.head_dim, g.dtype, g.device, tiling)
        kept = zip(best, self.picked, self.chain, strict=True)
        self.works = [work.layer(*own) for own in kept]
        stored = zip(method.queries, method.outputs, method.lse, method.chain, strict=True)
        self.rings = [mac.Ring(*own) for own in stored]
        self.calibrated = [False] * g.layers
        if method.rotate:
            square = (g.q_heads, g.head_dim, g.head_dim)
            for ring in self.rings:
                ring.axes = torch.zeros(square, device=g.device)

    def turned(self, layer: int, queries: Tensor) -> Tensor:
        """queries [n, Hq, d] along the axes of the layer, which are those of the first ones."""
        axes = self.rings[layer].axes
        assert axes is not None
        if not self.calibrated[layer]:
            axes.copy_(self.mac.principal(queries))
            self.calibrated[layer] = True
        return self.mac.turned(queries, axes)

    def step(self, layer: int, matched: Tensor, q: Tensor, view) -> Tensor:
        m = self.method
        return self.mac.step(
            self.works[layer],
            self.rings[layer],
            matched.contiguous(),
            q.contiguous(),
            view.k[layer],
            view.v[layer],
            view.table,
            view.lens,
            m.geometry.scale,
            self.taus[layer],
            m.band,
            m.sink,
            m.min_context,
            m.max_chain,
            m.refresh_mixed_groups,
            view.live,
        )

    def matched(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of the last step: hit, position, L2 distance and chain depth, [layers, B, Hq] each."""
        m = self.method
        hit, p, distance = self.mac.decisions(self.picked, self.limits)
        if m.refresh_mixed_groups:
            hit = m._whole_groups(hit)
        return hit, p, distance, torch.where(hit, self.chain + 1, 0)
