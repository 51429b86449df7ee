"""RocketKV (Behnam et al., arXiv 2502.14051): evict once, then select among what is left.

Stage 1, after the exact prefill: SnapKV with a wide pooling kernel, one set per KV head, permanent.
Stage 2, every step, over the tokens that stayed and all generated ones, in chunks of their order:
of each chunk the channel-wise minimum and maximum of its keys is kept. The group's queries choose
the `r` channels of largest mean |q| and, by the sign of their sum, one of the two bounds; a chunk's
score is q times these bounds, the same for all its tokens. Softmax per query head with temperature
sqrt(d sum |q| over the channels / sum |q|), mean over the group, exact attention of the whole group
to the best k tokens (of equals, those that come first). Nothing is forced in.

All sizes follow from T = budget * N tokens and S = N + max_new: with c = S / T, stage 1 keeps
C = S / c^min(0.2 + 0.06 log2 c, 0.8) tokens (at least 2 max_new), max_new of which are room for the
answer; chunks of ceil(sqrt(C / T)) tokens (1 if that is beyond C / T), r = d chunk T / C and
k = T / 2 and what rounding the others leaves of T. Read per KV head of a sparse layer:
ceil(tokens / chunk) r b bytes of bounds, about T / 2 tokens' worth, and k tokens; each dense layer
reads everything. So T is read once the answer has filled its room, and max_new / 2C less of it at
the prompt: sizes depend on max_new, which is why there is no `predicted`.

Differs from the authors' code: what rounding leaves is handed out (there k is T / 2); bounds
persist instead of being recomputed at every step (as in their faster program); the prefill is exact
and no prompt token is decoded by the method (theirs decodes the last one); where max_new is small
the window stays whole; at budget=1 every layer is dense.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from macbench.attention.base import Lists, Method, Needs
from macbench.attention.budget import check_dense, check_least, check_share
from macbench.attention.observed import first, ranked
from macbench.attention.select import unroll
from macbench.errors import MacbenchError
from macbench.kernels.paged import wide

LEAST = 16  # tokens, as in the authors' code
LINE = 64  # chunks: 128 bytes in 16 bits, so that a channel's bounds begin where memory's lines do


@dataclass(frozen=True)
class Plan:
    """Sizes for one prompt."""

    kept: int  # prompt tokens that stay
    tokens: int  # attended in a step
    chunk: int
    channels: int


def plan(tokens: int, most: int, new: int, d: int) -> Plan:
    """For `tokens` tokens' worth of bytes a step, `most` in all of which `new` are generated."""
    ratio = max(1.0, most / tokens)
    alpha = min(0.2 + 0.06 * math.log2(ratio), 0.8)
    capacity = max(int(most / ratio**alpha), min(2 * new, most))
    left = max(1.0, capacity / tokens)
    chunk = math.ceil(math.sqrt(left))
    if chunk > left:
        chunk = 1
    channels = max(int(d * chunk / left), 1)
    bounds = math.ceil(math.ceil(capacity / chunk) * channels / (2 * d))  # in tokens
    return Plan(capacity - new, max(tokens // 2, tokens - bounds), chunk, channels)


@dataclass
class RocketKV(Method):
    """budget: byte budget aimed at; window: last prompt queries that choose in stage 1; kernel:
    neighbours that share a score there (odd)."""

    name: ClassVar[str] = "rocketkv"
    version: ClassVar[int] = 2  # 2: what rounding leaves of a budget is handed out
    budget: float = 0.2
    window: int = 32
    kernel: int = 63
    dense_layers: int = 0

    def __post_init__(self) -> None:
        check_share("rocketkv.budget", self.budget)
        check_least(self, 0, "dense_layers")
        if self.window < 1 or self.kernel < 1 or self.kernel % 2 == 0:
            raise MacbenchError(
                f"rocketkv.window={self.window} must be at least 1 and rocketkv.kernel="
                f"{self.kernel} an odd number."
            )
        self.needs = Needs(prompt_queries=self.window)

    def check(self, geometry, length):
        check_dense(self, geometry)

    def _dense(self, layers: int) -> float:
        return 1.0 if self.budget >= 1 else min(self.dense_layers, layers) / layers

    def floor(self, geometry, length):
        dense = min(self.dense_layers, geometry.layers) / geometry.layers
        return min(1.0, dense + (1 - dense) * LEAST / length)

    def tokens(self, geometry, length: int) -> int:
        """T, the tokens' worth of bytes that a sparse layer may read."""
        dense = self._dense(geometry.layers)
        share = (self.budget - dense) / (1 - dense) if dense < 1 else 0
        return max(int(share * length), LEAST)

    def allocate(self, geometry, slots, max_tokens):
        self.geometry = geometry
        layers, heads, d = geometry.layers, geometry.kv_heads, geometry.head_dim
        self.sparse = range(min(self.dense_layers, layers) if self.budget < 1 else layers, layers)
        # C tokens in chunks of sqrt(C / T) or, below 2 T, of one; the window may exceed its share
        tokens = self.tokens(geometry, max_tokens)
        chunks = max(2 * tokens, math.isqrt(max_tokens * tokens)) + self.window + 2
        chunks = -(-min(chunks, max_tokens) // LINE) * LINE if self.sparse else 0
        shape = (layers, slots, heads, 2 * d, chunks)  # the maxima of the channels, their minima
        self.bounds = torch.zeros(shape, dtype=geometry.dtype, device=geometry.device)
        size = max_tokens if self.sparse else 0
        self.kept = torch.zeros(
            layers, slots, heads, size, dtype=torch.int32, device=geometry.device
        )
        self.plans = [Plan(1, 1, 1, 1)] * slots
        self.lengths = [1] * slots
        # the device's copy: of each slot N, prompt tokens kept, k, chunk, r
        self.sizes = torch.ones(5, slots, dtype=torch.int64, device=geometry.device)
        return self.bounds.numel() * self.bounds.itemsize // slots

    def begin(self, layer, slot, prompt, view):
        if layer == 0:
            self._plan(slot, prompt)
        if layer not in self.sparse:
            return
        kept, chunk = self.plans[slot].kept, self.plans[slot].chunk
        keys, _ = view.prompt(layer, slot, prompt.length)  # [Hkv, N, d]
        tokens = self._survivors(layer, prompt, keys, kept)
        self.kept[layer, slot, :, :kept] = tokens
        keys = keys.gather(1, tokens[..., None].expand(-1, -1, keys.shape[-1]))
        keys = torch.nn.functional.pad(keys, (0, 0, 0, -kept % chunk), value=torch.nan)
        chunks = keys.unflatten(1, (-1, chunk))
        high = chunks.nan_to_num(-torch.inf).amax(2)
        low = chunks.nan_to_num(torch.inf).amin(2)
        both = torch.cat((high, low), -1).transpose(1, 2)
        self.bounds[layer, slot, :, :, : both.shape[-1]] = both

    def _plan(self, slot, prompt):
        """An answer that goes on keeps what it had generated."""
        most = prompt.length + prompt.max_new
        size = self.tokens(self.geometry, prompt.original)
        p = plan(size, most, most - prompt.original, self.geometry.head_dim)
        kept = min(max(p.kept, self.window) + prompt.decoded, prompt.length)
        p = self.plans[slot] = Plan(kept, p.tokens, p.chunk, p.channels)
        self.lengths[slot] = prompt.length
        sizes = [prompt.length, p.kept, p.tokens, p.chunk, p.channels]
        self.sizes[:, slot] = torch.tensor(sizes, device=self.sizes.device)

    def _survivors(self, layer, prompt, keys, kept):
        """Positions that stage 1 keeps, ascending, [Hkv, kept]."""
        if kept == prompt.length:
            return torch.arange(kept, device=keys.device).expand(len(keys), -1)
        vote = self.window, self.kernel, "max", "sum", prompt.decoded
        _, order = ranked(prompt, layer, lambda: keys, self.geometry, *vote)
        return first(order, kept)

    def attend(self, layer, q_pre, q, view, trace):
        if layer not in self.sparse:
            return view.exact(layer, q)[0]
        if layer == self.sparse.start:  # once a step, for all layers
            self.used = self._used(view)[:, None].expand(-1, self.geometry.kv_heads).contiguous()
        choose = self._chosen if self.geometry.backend == "torch" else self._chosen_on_kernels
        return view.exact(layer, q, tokens=choose(layer, q, view), counts=self.used)[0]

    def _held(self, view):
        """Tokens that were not evicted, [B]."""
        length, kept = self.sizes[:2]
        return kept + view.lens - length

    def _used(self, view):
        """Tokens that are attended, [B]."""
        return self.sizes[2].minimum(self._held(view))

    def _chosen(self, layer, q, view):
        """Positions [B, Hkv, n], of which the first `used` are attended."""
        length, kept, _, chunk, channels = self.sizes
        held = self._held(view)
        self._update(layer, view, held)
        number = torch.arange(self._chunks(view.grown), device=q.device)
        counts = (held[:, None] - number * chunk[:, None]).clamp_min(0).minimum(chunk[:, None])
        scores = self._scores(layer, q, counts, channels)  # [B, Hkv, chunks]
        order = scores.sort(dim=-1, descending=True, stable=True).indices
        lengths = counts[:, None].expand_as(order).gather(-1, order)

        most = max(p.tokens for p in self.plans)
        at = torch.arange(most, device=q.device).expand(*order.shape[:2], -1)
        place = unroll(order * chunk[:, None, None], lengths, at)
        old = self.kept[layer].gather(-1, place.clamp_max(self.kept.shape[-1] - 1)).long()
        kept, length = kept[:, None, None], length[:, None, None]
        return torch.where(place < kept, old, length + place - kept)

    def _chosen_on_kernels(self, layer, q, view):
        from macbench.kernels.rocket import positions, token_scores
        from macbench.kernels.select import select

        g = self.geometry
        chunks = self._chunks(view.grown)
        tokens = min(max(p.kept for p in self.plans) + view.grown, self.kept.shape[-1])
        scores = token_scores(
            q,
            self.bounds[layer],
            view.k[layer],
            view.table,
            view.lens,
            self.sizes,
            g.scale,
            chunks,
            tokens,
        )
        most = max(p.tokens for p in self.plans)
        places, _ = select(scores, self.used, most, g.kv_heads)
        return positions(places, self.kept[layer], self.sizes)

    def settle(self, view, trace):
        chunk, channels = self.sizes[3:, :, None]
        lens, held = view.lens[:, None], self._held(view)[:, None]
        bounds = (held + chunk - 1) // chunk * channels * self.bounds.itemsize
        layer = torch.arange(self.geometry.layers, device=lens.device)[:, None, None]
        dense = layer < self.sparse.start
        tokens = torch.where(dense, lens, self._used(view)[:, None])
        bounds = torch.where(dense, 0, bounds)
        trace.read(slice(None), view, head_tokens=tokens, kv_tokens=tokens, meta_bytes=bounds)

    def lists(self, lens):
        if self.sparse.start > 0:
            return None
        most = [p.tokens for p in self.plans]
        held = [
            p.kept + n - start for p, n, start in zip(self.plans, lens, self.lengths, strict=True)
        ]
        return Lists.upto(most, held, 1, self.geometry.kv_heads)

    def _chunks(self, grown: int) -> int:
        """Chunks of the row that has most of them, as far as the host knows."""
        most = max(-(-(p.kept + grown) // p.chunk) for p in self.plans)
        return min(most, self.bounds.shape[-1])

    def _update(self, layer, view, held):
        """Let the newest token's key into its chunk's bounds."""
        key = view.newest_key(layer)
        row = torch.arange(len(key), device=key.device)
        chunk = self.sizes[3]
        at, first = (held - 1) // chunk, ((held - 1) % chunk == 0)[:, None, None]
        high, low = self.bounds[layer, row, :, :, at].chunk(2, -1)
        high = torch.where(first, key, torch.maximum(high, key))
        low = torch.where(first, key, torch.minimum(low, key))
        self.bounds[layer, row, :, :, at] = torch.cat((high, low), -1)

    def _scores(self, layer, q, counts, channels):
        """Group mean of a token's probability in each chunk, [B, Hkv, chunks]; -1 of empty ones.

        counts [B, chunks]: tokens of each chunk.
        """
        g = self.geometry
        grouped = wide(q).unflatten(1, (g.kv_heads, g.group))  # [B, Hkv, G, d]
        size = grouped.abs()
        most = max(p.channels for p in self.plans)
        order = size.sum(2).sort(dim=-1, descending=True, stable=True).indices  # as the mean
        channel = order[..., :most]  # [B, Hkv, r]; of equals, the lower ones
        lower = grouped.sum(2).gather(-1, channel) <= 0
        rows = (channel + g.head_dim * lower)[..., None].expand(-1, -1, -1, counts.shape[-1])
        bounds = self.bounds[layer, ..., : counts.shape[-1]].gather(2, rows)
        used = torch.arange(most, device=q.device) < channels[:, None, None, None]
        part = grouped.gather(-1, channel[:, :, None].expand(-1, -1, g.group, -1)) * used
        tiny = torch.finfo(size.dtype).tiny
        share = (part.abs().sum(-1) / size.sum(-1).clamp_min(tiny)).clamp_min(tiny)
        logits = part @ wide(bounds) * (g.scale / share.sqrt())[..., None]
        counts = counts[:, None, None]
        logits = logits.masked_fill(counts == 0, -torch.inf)
        lse = (logits + counts.clamp_min(1).to(logits.dtype).log()).logsumexp(-1, keepdim=True)
        return (logits - lse).exp().mean(2).masked_fill(counts[:, 0] == 0, -1.0)

    def capacity(self, slot, tokens):
        share = self._dense(self.geometry.layers)
        kept = min(self.plans[slot].kept + tokens - self.lengths[slot], tokens)
        return share * tokens + (1 - share) * kept
