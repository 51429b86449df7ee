"""Double Sparsity (Yang et al., arXiv 2408.07092): top tokens by a partial product of few channels.

Per KV head the r = d / group_factor channels that matter most; of every key these channels are kept
again, quantised to `bits` with one scale and minimum per token (16: as they are). Every step ranks
all tokens by q.k over these channels and attends exactly to the best T.

Read per KV head of a sparse layer: r bits / 8 + 4 bytes of labels per cached token (16 bits: r b)
and the T tokens, as a union over the group's query heads where each chooses for itself
(shared=false, as the authors do; with shared=true one list by the group's mean probability). T
follows from the budget as if heads agreed. The first `dense_layers` layers read everything. Differs
from the authors' code: channels are not calibrated offline but chosen from the prompt, by the mean
of |q_c k_c| over its last 128 queries and all its keys, summed over the group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from macbench.attention.base import Lists, Method, Needs
from macbench.attention.budget import check_dense, check_least, check_share
from macbench.attention.quantise import BITS, Packed, check_bits, quantise
from macbench.attention.select import best, shared_probability
from macbench.errors import MacbenchError
from macbench.kernels import paged
from macbench.kernels.paged import wide

QUERIES = 128
LEAST = 16  # tokens
CHUNK = 8192  # labels that are restored at once


@dataclass
class DoubleSparsity(Method):
    """budget: byte budget aimed at; group_factor: channels of a head for one that is kept."""

    name: ClassVar[str] = "double_sparsity"
    budget: float = 0.2
    group_factor: int = 2
    bits: int = 2
    dense_layers: int = 2
    shared: bool = False

    def __post_init__(self) -> None:
        check_share("double_sparsity.budget", self.budget)
        check_least(self, 0, "dense_layers")
        check_bits("double_sparsity.bits", self.bits, (*BITS, 16))
        self.needs = Needs(prompt_queries=QUERIES)

    def check(self, geometry, length):
        check_dense(self, geometry)
        d, factor = geometry.head_dim, self.group_factor
        if factor < 1 or d % factor or d // factor * self.bits % 8:
            raise MacbenchError(
                f"double_sparsity.group_factor={factor} must divide the head's {d} channels into "
                f"a number whose {self.bits}-bit codes fill whole bytes."
            )

    def _label_bytes(self, geometry) -> int:
        """Of one token in one KV head."""
        channels = geometry.head_dim // self.group_factor
        whole = self.bits == 16
        return channels * geometry.dtype.itemsize if whole else channels * self.bits // 8 + 4

    def _dense(self, geometry) -> float:
        return min(self.dense_layers, geometry.layers) / geometry.layers

    def floor(self, geometry, length):
        dense = self._dense(geometry)
        sparse = self._label_bytes(geometry) / geometry.token_bytes + LEAST / length
        return min(1.0, dense + (1 - dense) * sparse)

    def granule(self, geometry, length):
        return (1 - self._dense(geometry)) / length

    def predicted(self, geometry, length, tokens):
        """Where a group's heads agree, as with `shared`; else no less."""
        dense = self._dense(geometry)
        kept = tokens if self.budget >= 1 else min(self.tokens(geometry, length), tokens)
        sparse = self._label_bytes(geometry) / geometry.token_bytes + kept / tokens
        return dense + (1 - dense) * sparse

    def tokens(self, geometry, length: int) -> int:
        """T that gives `budget` at this context length."""
        dense = self._dense(geometry)
        if dense == 1:
            return LEAST
        share = (self.budget - dense) / (1 - dense)
        share -= self._label_bytes(geometry) / geometry.token_bytes
        return max(LEAST, round(share * length))

    def allocate(self, geometry, slots, max_tokens):
        self.geometry = geometry
        layers, heads = geometry.layers, geometry.kv_heads
        r, device = geometry.head_dim // self.group_factor, geometry.device
        self.channels = torch.zeros(layers, slots, heads, r, dtype=torch.int64, device=device)
        self.kept = torch.ones(slots, dtype=torch.int64, device=device)
        self.most = [1] * slots
        self.loaded = [self.kept] * layers  # of this step, tokens that each KV head loads
        held = self.channels.numel() * self.channels.itemsize
        if self.bits < 16:
            self.labels = Packed.zeros(geometry, slots, max_tokens, r, self.bits, (1, r))
            return (held + self.labels.bytes) // slots
        shape = (layers, slots, heads, max_tokens, r)
        self.plain = torch.zeros(shape, dtype=geometry.dtype, device=device)
        return (held + self.plain.numel() * self.plain.itemsize) // slots

    def begin(self, layer, slot, prompt, view):
        if layer == 0:
            self.most[slot] = self.tokens(self.geometry, prompt.original)
            if self.budget >= 1:
                self.most[slot] = prompt.length + prompt.max_new
            self.kept[slot] = self.most[slot]
        if layer < self.dense_layers:
            return
        r = self.channels.shape[-1]

        def made():
            keys, _ = view.prompt(layer, slot, prompt.length)  # [Hkv, N, d]
            q = wide(prompt.q[layer][-QUERIES:]).abs().mean(0).view(len(keys), -1, keys.shape[-1])
            weight = q.sum(1) * wide(keys).abs().mean(1)
            channels = weight.topk(r, dim=-1).indices
            labels = keys.gather(-1, channels[:, None].expand(-1, keys.shape[1], -1))
            return channels, quantise(labels, self.bits, (1, r)) if self.bits < 16 else labels

        self.channels[layer, slot], labels = prompt.once(("labels", layer, r, self.bits), made)
        if self.bits < 16:
            self.labels.place(layer, slot, labels)
        else:
            self.plain[layer, slot, :, : prompt.length] = labels

    def attend(self, layer, q_pre, q, view, trace):
        if layer < self.dense_layers:
            return view.exact(layer, q)[0]
        scores = self._scores(layer, q, view)
        kv_heads, backend = self.geometry.kv_heads, self.geometry.backend
        if self.shared:
            scores = shared_probability(scores, view.lens, kv_heads, backend)
        counts = torch.minimum(self.kept, view.lens)[:, None].expand(scores.shape[:2])
        chosen, self.loaded[layer] = best(scores, counts, max(self.most), kv_heads, backend)
        return view.exact(layer, q, tokens=chosen, counts=counts)[0]

    def settle(self, view, trace):
        lens, kept = view.lens[:, None], torch.minimum(self.kept, view.lens)[:, None]
        dense = self.dense_layers
        trace.read(slice(dense), view, head_tokens=lens, kv_tokens=lens)
        if dense < self.geometry.layers:
            loaded, meta = torch.stack(self.loaded[dense:]), lens * self._label_bytes(self.geometry)
            sparse = slice(dense, None)
            trace.read(sparse, view, head_tokens=kept, kv_tokens=loaded, meta_bytes=meta)

    def lists(self, lens):
        g = self.geometry
        return Lists.upto(self.most, lens, 1, g.kv_heads if self.shared else g.q_heads)

    def _scores(self, layer, q, view):
        """Partial logits of every token, the newest's label kept first; [B, Hq, N], -inf beyond."""
        if self.geometry.backend != "torch":
            from macbench.kernels.labels import label_scores

            whole = self.bits == 16
            labels = self.plain[layer] if whole else [part[layer] for part in self.labels.parts]
            cache = view.k[layer], view.table, view.lens
            kept = self.channels[layer], labels, self.bits
            return label_scores(q, *kept, *cache, self.geometry.scale, view.bound)
        self._append(layer, view)
        scores = self._logits(layer, q, view.bound)
        position = torch.arange(view.bound, device=q.device)
        return scores.masked_fill(position >= view.lens[:, None, None], -torch.inf)

    def _append(self, layer, view):
        """Keep the newest token's label."""
        at = view.lens - 1
        label = view.newest_key(layer).gather(-1, self.channels[layer])
        if self.bits < 16:
            self.labels.write(layer, at, label[:, :, None])
        else:
            self.plain[layer, torch.arange(len(at), device=at.device), :, at] = label

    def _logits(self, layer, q, size):
        """Partial logits of every token, [B, Hq, size]."""
        g = self.geometry
        channels = self.channels[layer].repeat_interleave(g.group, 1)
        part = q.gather(-1, channels)
        logits = []
        for at in range(0, size, CHUNK):
            end = min(at + CHUNK, size)
            if self.bits < 16:
                labels = self.labels.read(layer, at, end)
            else:
                labels = self.plain[layer, :, :, at:end]
            logits.append(paged.logits(part, labels, g.scale).flatten(1, 2))
        return torch.cat(logits, -1)
