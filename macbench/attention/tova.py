"""TOVA (Oren et al., arXiv 2401.06104): drop the token that the current query attends to least.

After the exact prefill the C tokens with the highest probability under the prompt's last query are
kept; every decode step attends to them and its own token, then drops the one of lowest probability
in that step, possibly its own. Probabilities are averaged over all query heads of the layer, over
kept tokens only: one set per layer (per_kv_head=true, not the authors': one per KV head).

Read per KV head: C + 1 tokens, C = budget * N, frozen at the prompt's length N; no metadata, since
probabilities are the step's own. Differs from the authors' code: the prefill evicts once, at its
end; ties drop the higher position.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from macbench.attention.base import Lists, Method, Needs
from macbench.attention.budget import check_share
from macbench.attention.kept import Kept, lowest
from macbench.attention.observed import first, ordered, received


@dataclass
class TOVA(Method):
    """budget: share of the prompt's tokens kept."""

    name: ClassVar[str] = "tova"
    budget: float = 0.2
    per_kv_head: bool = False

    def __post_init__(self) -> None:
        check_share("tova.budget", self.budget)
        self.needs = Needs(prompt_queries=1)

    def floor(self, geometry, length):
        return min(1.0, 2 / length)

    def predicted(self, geometry, length, tokens):
        most = max(int(self.budget * length), 1)
        return 1.0 if self.budget >= 1 else min(most + 1, tokens) / tokens

    def allocate(self, geometry, slots, max_tokens):
        self.geometry = geometry
        heads = geometry.kv_heads if self.per_kv_head else 1
        self.kept = Kept(geometry, slots, heads, max_tokens)
        self.most = torch.ones(slots, dtype=torch.int64, device=geometry.device)
        return 0

    def _shared(self, scores):
        """[..., Hq, n] -> summed over the heads that share a set, [..., H, n]."""
        if self.per_kv_head:
            return scores.unflatten(-2, (self.geometry.kv_heads, -1)).sum(-2)
        return self.geometry.all_reduce(scores.sum(-2, keepdim=True))

    def begin(self, layer, slot, prompt, view):
        most = max(int(self.budget * prompt.original), 1)
        if self.budget >= 1:
            most = prompt.length + prompt.max_new
        if most >= prompt.length:
            tokens = torch.arange(prompt.length, device=view.lens.device)
            tokens = tokens.expand(self.kept.tokens.shape[2], -1)
        else:

            def order():
                keys, _ = view.prompt(layer, slot, prompt.length)
                q, g = prompt.q[layer][-1:], self.geometry
                return ordered(self._shared(received(q, keys, g.scale, g.backend)))

            shared = prompt.once(("last query", layer, self.per_kv_head), order)
            tokens = first(shared, most)
        limit = min(most + 1, prompt.length + prompt.max_new)
        self.kept.start(layer, slot, tokens, tokens.shape[-1], limit)
        if layer == 0:
            self.most[slot] = most

    def attend(self, layer, q_pre, q, view, trace):
        tokens, counts = self.kept.append(layer, view)
        heads = self.geometry.kv_heads
        lists, held = tokens.expand(-1, heads, -1), counts.expand(-1, heads)
        out, lse = view.exact(layer, q, tokens=lists, counts=held)
        if self.budget < 1:
            paid = view.weights(layer, q, tokens, counts, lse)
            if not self.per_kv_head:
                paid = self.geometry.all_reduce(paid)
            self._evict(layer, paid, view, tokens, counts)
        return out

    def _evict(self, layer, paid, view, tokens, counts):
        if self.geometry.backend != "torch":
            from macbench.kernels.kept import drop

            lists = self.kept.tokens[layer], self.kept.held[layer]
            return drop(*lists, paid, view.lens, self.most)
        index = torch.arange(tokens.shape[-1], device=paid.device)
        scores = paid.masked_fill(index >= counts[..., None], torch.inf)
        self.kept.drop(layer, lowest(scores, tokens), self.most)

    def lists(self, lens):
        return Lists.upto(self.kept.limit, lens, 1, self.geometry.kv_heads)

    def settle(self, view, trace):
        kept = torch.minimum(self.most + 1, view.lens)[:, None]
        trace.read(slice(None), view, head_tokens=kept, kv_tokens=kept)

    def capacity(self, slot, tokens):
        return min(self.kept.limit[slot], tokens)
