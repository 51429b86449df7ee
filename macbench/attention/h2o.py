"""H2O (Zhang et al., arXiv 2306.14048): heavy hitters, by the attention gathered so far, and a
recent window.

A token's score is the sum of the probabilities that all queries since gave it (the prompt's causal
softmax summed down its columns, then every decode step's), averaged over the group of a KV head.
Half of C tokens are the most recent ones, half those of highest score; after each decode step the
token of lowest score outside the recent ones is dropped for good.

Read per KV head: C + 1 tokens and 4 bytes of score for each; C tokens with their scores are worth
budget * N tokens, frozen at the prompt's length N. Differs from the authors' code: KV heads are
never repeated; the prompt's column sums are exact at any length, block by block beside the prefill
(one or two more Q K^T of it) instead of from a matrix of N x N; ties keep the lower position.
normalise=true, not the authors', divides a score by the number of queries that could see the token:
sums favour early ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from macbench.attention.base import Lists, Method, Needs
from macbench.attention.budget import check_share
from macbench.attention.kept import Kept, lowest
from macbench.attention.observed import best, received
from macbench.attention.select import group_mean

SCORE = 4  # bytes


@dataclass
class H2O(Method):
    """budget: byte budget aimed at; of the tokens it is enough for, half are heavy, half recent."""

    name: ClassVar[str] = "h2o"
    version: ClassVar[int] = 2  # 2: the scores are part of the budget
    budget: float = 0.2
    normalise: bool = False

    def __post_init__(self) -> None:
        check_share("h2o.budget", self.budget)
        self.needs = Needs(observe=self.budget < 1)

    def size(self, geometry, length: int) -> int:
        """Tokens kept of a prompt of this length, their scores paid for."""
        if self.budget >= 1:
            return length
        return max(int(self.budget * length / self._each(geometry)), 2)

    def _each(self, geometry) -> float:
        """A token with its score, in tokens' worth of bytes."""
        return 1 + SCORE / geometry.token_bytes

    def floor(self, geometry, length):
        return min(1.0, 3 / length * self._each(geometry))

    def granule(self, geometry, length):
        return self._each(geometry) / length

    def predicted(self, geometry, length, tokens):
        if self.budget >= 1:
            return 1.0
        return min(self.size(geometry, length) + 1, tokens) / tokens * self._each(geometry)

    def allocate(self, geometry, slots, max_tokens):
        self.geometry = geometry
        most = min(self.size(geometry, max_tokens) + 1, max_tokens)
        self.kept = Kept(geometry, slots, geometry.kv_heads, most)
        self.most = torch.ones(slots, dtype=torch.int64, device=geometry.device)
        self.recent = torch.ones(slots, dtype=torch.int64, device=geometry.device)
        self.sums = {}  # of prompts, by layer and slot, until they begin
        if self.budget >= 1:
            return 0
        exact = torch.promote_types(geometry.dtype, torch.float32)
        shape = (geometry.layers, slots, geometry.kv_heads, most)
        self.scores = torch.zeros(shape, dtype=exact, device=geometry.device)
        return self.scores.numel() * self.scores.itemsize // slots

    def observe(self, layer, slot, q_pre, q, keys, start):
        sums = received(q, keys, self.geometry.scale, self.geometry.backend)
        sums = group_mean(sums[None], self.geometry.kv_heads)[0]
        if start and (layer, slot) in self.sums:
            sums[:, :start] += self.sums[layer, slot]
        self.sums[layer, slot] = sums

    def _ranks(self, scores, tokens, seen, recent):
        """What decides, of scores gathered by `tokens` after `seen` tokens; recent ones stay."""
        if self.normalise:
            scores = scores / (seen - tokens).clamp_min(1)
        return scores.masked_fill(tokens >= seen - recent, torch.inf)

    def begin(self, layer, slot, prompt, view):
        length, most = prompt.length, self.size(self.geometry, prompt.original)
        if self.budget >= 1:
            most = length + prompt.max_new
        tokens = torch.arange(length, device=view.lens.device)
        tokens = tokens.expand(self.geometry.kv_heads, -1)
        if self.budget < 1:
            own = self.sums.pop((layer, slot), None)
            scores = prompt.once(("received", layer), lambda: own)
            if most < length:
                tokens = best(self._ranks(scores, tokens, length, most // 2), most)
            self.scores[layer, slot, :, : tokens.shape[-1]] = scores.gather(-1, tokens)
        limit = min(most + 1, length + prompt.max_new)
        self.kept.start(layer, slot, tokens, tokens.shape[-1], limit)
        if layer == 0:
            self.most[slot], self.recent[slot] = most, most // 2

    def attend(self, layer, q_pre, q, view, trace):
        tokens, counts = self.kept.append(layer, view)
        out, lse = view.exact(layer, q, tokens=tokens, counts=counts)
        if self.budget < 1:
            paid = view.weights(layer, q, tokens, counts, lse)
            self._evict(layer, paid, view, tokens, counts)
        return out

    def _evict(self, layer, paid, view, tokens, counts):
        scores, group = self.scores[layer], self.geometry.group
        if self.geometry.backend != "torch":
            from macbench.kernels.kept import drop

            lists = self.kept.tokens[layer], self.kept.held[layer]
            rows = view.lens, self.most
            return drop(*lists, paid, *rows, scores, self.recent, group, self.normalise)
        scores.scatter_(-1, counts[..., None] - 1, 0)  # the newest token's
        gathered = scores[..., : tokens.shape[-1]]
        gathered += paid / group
        seen, recent = view.lens[:, None, None], self.recent[:, None, None]
        ranks = self._ranks(gathered, tokens, seen, recent)
        index = torch.arange(tokens.shape[-1], device=paid.device)
        ranks = ranks.masked_fill(index >= counts[..., None], torch.inf)
        self.kept.drop(layer, lowest(ranks, tokens), self.most, scores)

    def lists(self, lens):
        return Lists.upto(self.kept.limit, lens, 1, self.geometry.kv_heads)

    def settle(self, view, trace):
        kept = torch.minimum(self.most + 1, view.lens)[:, None]
        scores = SCORE * kept if self.budget < 1 else 0
        trace.read(slice(None), view, head_tokens=kept, kv_tokens=kept, meta_bytes=scores)

    def capacity(self, slot, tokens):
        return min(self.kept.limit[slot], tokens)
