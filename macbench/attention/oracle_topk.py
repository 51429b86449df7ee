"""Oracle top-k: exact attention over the keys with the highest true scores. A bound, not a method.

It looks at every key to choose `tokens` * N of them, so its honest byte budget is (S + U) / 2S: K
of all to score, then V of the U chosen. Softmax is renormalised over the chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from macbench.attention.base import Lists, Method
from macbench.attention.budget import check_share
from macbench.attention.select import best, shared_probability


@dataclass
class OracleTopK(Method):
    """tokens: share of the prompt's tokens attended; shared: one set per KV head (its group's mean
    attention probability) instead of one per query head, whose union is charged."""

    name: ClassVar[str] = "oracle_topk"
    control: ClassVar[bool] = True
    tokens: float = 0.2
    shared: bool = True

    def __post_init__(self) -> None:
        check_share("oracle_topk.tokens", self.tokens)

    def count(self, length: int) -> int:
        """Tokens of a list after a prompt of `length`."""
        return max(int(self.tokens * length), 1)

    def predicted(self, geometry, length, tokens):
        """If `shared`; else no less: `tokens` is a share of tokens, and every key is read, too."""
        kept = tokens if self.tokens >= 1 else min(self.count(length), tokens)
        return (tokens + kept) / 2 / tokens

    def allocate(self, geometry, slots, max_tokens):
        self.geometry = geometry
        self.kept = torch.ones(slots, dtype=torch.int64, device=geometry.device)
        self.most = [1] * slots
        self.loaded = [self.kept] * geometry.layers  # of this step, tokens that each KV head loads
        return 0

    def begin(self, layer, slot, prompt, view):
        self.most[slot] = self.count(prompt.original)
        if self.tokens >= 1:
            self.most[slot] = prompt.length + prompt.max_new
        if layer == 0:
            self.kept[slot] = self.most[slot]

    def attend(self, layer, q_pre, q, view, trace):
        kv_heads, backend = self.geometry.kv_heads, self.geometry.backend
        kept = torch.minimum(self.kept, view.lens)
        scores = view.logits(layer, q)
        if self.shared:
            scores = shared_probability(scores, view.lens, kv_heads, backend)
        counts = kept[:, None].expand(scores.shape[:2])
        chosen, self.loaded[layer] = best(scores, counts, max(self.most), kv_heads, backend)
        return view.exact(layer, q, tokens=chosen, counts=counts)[0]

    def settle(self, view, trace):
        kept = torch.minimum(self.kept, view.lens)[:, None]
        read = (view.lens[:, None] + torch.stack(self.loaded)) / 2
        trace.read(slice(None), view, head_tokens=kept, kv_tokens=read)

    def lists(self, lens):
        g = self.geometry
        return Lists.upto(self.most, lens, 1, g.kv_heads if self.shared else g.q_heads)

    def witness(self, totals):
        return totals["head_tokens"] < totals["context_head"]
