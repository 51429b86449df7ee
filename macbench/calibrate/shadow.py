"""What MAC would read: its ring in shadow under full attention, and budgets for every tau from it.

For every step, layer, head and ring size the distance and position of the nearest query. Which row
is nearest does not depend on tau, so the budget of every tau follows: a KV head saves what the row
that covers least would, if every query head of its group is closer than the radius, and nothing if
one is not. What this leaves out: under MAC itself answers and queries drift.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from macbench.attention import Geometry, Method, Needs
from macbench.attention.mac import NEVER, ROUNDING, Mac
from macbench.kernels.paged import wide

RINGS = (64, 128, 256, 512, 1024)
GRID = 100_000  # taus between 0 and 1


@dataclass
class Recorded:
    """What a block's dense decode showed. distance, position: [layers, slots, steps, Hq, rings] of
    the nearest query; seen [slots, steps]: tokens in the cache, 0 where the row had ended."""

    rings: list[int]
    distance: Tensor
    position: Tensor
    seen: Tensor


class Shadow(Method):
    """Full attention that records what MAC's match would find, for several ring sizes at once."""

    name = "shadow"

    def __init__(self, mac: Mac, rings: Sequence[int], steps: int):
        self.rings, self.steps, self.match_on = sorted(rings), steps, mac.match_on
        self.size = max(rings)
        self.needs = Needs(prompt_queries=self.size)

    def allocate(self, geometry, slots, max_tokens):
        self.geometry = geometry
        heads, d, device = geometry.q_heads, geometry.head_dim, geometry.device
        ring = (geometry.layers, slots, heads, self.size, d)
        self.queries = torch.zeros(ring, dtype=geometry.dtype, device=device)
        shape = (geometry.layers, slots, self.steps, heads, len(self.rings))
        self.distance = torch.zeros(shape, device=device)
        self.position = torch.zeros(shape, dtype=torch.int32, device=device)
        self.seen = torch.zeros(slots, self.steps, dtype=torch.int64, device=device)
        self.row = torch.arange(slots, device=device)
        return 0

    def begin(self, layer, slot, prompt, view):
        if layer == 0:
            self.seen[slot] = 0
        kept = prompt.q_pre if self.match_on == "pre_rope" else prompt.q
        queries = kept[layer][-self.size :]
        position = torch.arange(prompt.length - len(queries), prompt.length, device=queries.device)
        at = position % self.size
        self.queries[layer, slot, :, at] = queries.transpose(0, 1).to(self.queries.dtype)

    def attend(self, layer, q_pre, q, view, trace):
        matched = q_pre if self.match_on == "pre_rope" else q
        t, step = view.lens - 1, view.step.clamp_max(self.steps - 1)
        distance, position = self._nearest(layer, matched, t)
        live = view.live[:, None, None]
        for kept, new in ((self.distance[layer], distance), (self.position[layer], position)):
            kept[self.row, step] = torch.where(live, new.to(kept.dtype), kept[self.row, step])
        if layer == 0:
            self.seen[self.row, step] = torch.where(view.live, view.lens, self.seen[self.row, step])
        self.queries[layer, self.row, :, t % self.size] = matched.to(self.queries.dtype)
        return view.exact(layer, q)[0]

    def _nearest(self, layer, matched, t):
        """For every ring size the least distance and the oldest position that has it (up to
        rounding), as in `Mac`: [B, Hq, rings] each."""
        query = wide(matched)
        apart = (wide(self.queries[layer]) - query[:, :, None]).square().sum(-1).sqrt()
        slot = torch.arange(self.size, device=t.device)
        t = t[:, None]
        place = (t - 1 - (t - 1 - slot) % self.size)[:, None]  # newest x < t with x = slot mod size
        slack = ROUNDING * query.norm(dim=-1, keepdim=True)
        found = []
        for ring in self.rings:
            held = (place >= 0) & (place >= t[..., None] - ring)
            distance = apart.masked_fill(~held, torch.inf)
            least = distance.amin(-1, keepdim=True)
            equal = held & (distance <= least + slack)
            oldest = place.masked_fill(~equal, NEVER).amin(-1).clamp(0).minimum(t)
            found.append((least.squeeze(-1), oldest))
        return tuple(torch.stack(each, -1) for each in zip(*found, strict=True))

    def recorded(self) -> Recorded:
        return Recorded(self.rings, self.distance.cpu(), self.position.cpu(), self.seen.cpu())

    def settle(self, view, trace):
        lens = view.lens[:, None]
        trace.read(slice(None), view, head_tokens=lens, kv_tokens=lens)


def bisect(holds: Callable[[float], bool]) -> float:
    """The largest x in [0, 1], to GRID parts, at which a condition holds that ends at some x."""
    low, high = 0, GRID + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle / GRID) else (low, middle)
    return low / GRID


@dataclass(frozen=True)
class Curve:
    """Byte budget against tau, of one layer or of all, with one ring size.

    worst [n], rising: of every KV head and step the distance of its group's farthest head; saved
    [n]: the share of full attention's tokens not read where it is within the radius, summed up.
    fixed: share read whatever is matched: 1 and the ring.
    """

    worst: NDArray
    saved: NDArray
    fixed: float
    head_dim: int

    @staticmethod
    def of(worst: NDArray, saved: NDArray, fixed: float, head_dim: int) -> Curve:
        """From the pairs in any order."""
        order = np.argsort(worst, kind="stable")
        return Curve(worst[order], np.cumsum(saved[order]), fixed, head_dim)

    def at(self, tau: float) -> float:
        """Predicted byte budget."""
        radius = (2 * self.head_dim) ** 0.5 * (1 - tau)
        hits = int(np.searchsorted(self.worst, radius, side="left"))
        return self.fixed - (float(self.saved[hits - 1]) if hits else 0.0)

    def solve(self, budget: float) -> float:
        """The strictest tau that reads no more than `budget`; 0 where none does."""
        return bisect(lambda tau: self.at(tau) <= budget)


def curves(
    tasks: Sequence[Sequence[Recorded]], mac: Mac, ring: int, geometry: Geometry
) -> list[Curve]:
    """A curve per layer from every task's recorded blocks, for `mac` with this ring size. Tasks
    weigh the same, however many steps they take, as in the tables."""
    return [
        mean([_curve(blocks, mac, ring, geometry, layer) for blocks in tasks])
        for layer in range(geometry.layers)
    ]


def _curve(
    blocks: Sequence[Recorded], mac: Mac, ring: int, geometry: Geometry, layer: int
) -> Curve:
    number = blocks[0].rings.index(ring)
    groups = (geometry.kv_heads, geometry.group)
    bytes_ = replace(mac, K=ring).ring_bytes(geometry)
    scanned = geometry.group * ring * geometry.head_dim * geometry.dtype.itemsize
    worst, saved, seen = [], [], []
    for block in blocks:
        held = block.seen > 0
        tokens = block.seen[held][:, None]  # [steps, 1]
        distance = block.distance[layer][held][..., number]
        end = mac.covered(block.position[layer][held][..., number].long())
        usable = (end > mac.sink) & (tokens - 1 >= mac.min_context)
        distance = distance.masked_fill(~usable, torch.inf)
        worst.append(distance.unflatten(-1, groups).amax(-1))
        saved.append((end - mac.sink).clamp_min(0).unflatten(-1, groups).amin(-1))
        seen.append(tokens)
    context = torch.cat(seen).flatten()
    idle = int((context <= mac.min_context).sum())  # steps that do not look at the ring
    meta = (len(context) * bytes_ - idle * scanned) / geometry.token_bytes
    total = float(context.sum())
    farthest, skipped = (torch.cat(x).flatten().double().numpy() for x in (worst, saved))
    share = skipped / (total * geometry.kv_heads)
    return Curve.of(farthest, share, 1 + meta / total, geometry.head_dim)


def mean(parts: Sequence[Curve]) -> Curve:
    """Of tasks, or of layers, under one tau."""
    worst = np.concatenate([curve.worst for curve in parts])
    saved = np.concatenate([np.diff(curve.saved, prepend=0.0) for curve in parts]) / len(parts)
    fixed = sum(curve.fixed for curve in parts) / len(parts)
    return Curve.of(worst, saved, fixed, parts[0].head_dim)


@dataclass(frozen=True)
class Choice:
    """A ring size and the tau that goes with it."""

    ring: int
    tau: float | list[float]  # one, or one per layer
    predicted: float
    strictness: float  # mean tau


def choose(by_ring: dict[int, list[Curve]], budget: float, per: str) -> list[Choice]:
    """The rings that can read so little, the one with the strictest tau first.

    per="layer": all layers read one and the same share, but those whose least is more.
    """
    found = []
    for ring, layers in by_ring.items():
        if mean(layers).at(0) > budget:
            continue
        if per == "global":
            tau = mean(layers).solve(budget)
            found.append(Choice(ring, tau, mean(layers).at(tau), tau))
            continue

        def read(level: float, layers: list[Curve] = layers) -> float:
            return sum(layer.at(layer.solve(level)) for layer in layers) / len(layers)

        level = bisect(lambda level: read(level) <= budget)
        taus = [layer.solve(level) for layer in layers]
        found.append(Choice(ring, taus, read(level), sum(taus) / len(taus)))
    return sorted(found, key=lambda choice: (-choice.strictness, choice.ring))
