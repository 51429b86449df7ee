"""StreamingLLM (Xiao et al., arXiv 2309.17453): the first tokens and a recent window.

Read per KV head: sink + W tokens; no metadata. W = budget * N - sink, frozen at the prompt's length
N as a memory budget is. Differs from the authors' code: the prefill is exact and shared with every
method (theirs evicts while it streams the prompt), and keys keep their true positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from macbench.attention.base import Lists, Method
from macbench.attention.budget import check_least, check_share


@dataclass
class StreamingLLM(Method):
    """budget: share of the prompt's tokens kept; sink: first tokens always kept."""

    name: ClassVar[str] = "streaming_llm"
    budget: float = 0.2
    sink: int = 4

    def __post_init__(self) -> None:
        check_share("streaming_llm.budget", self.budget)
        check_least(self, 0, "sink")

    def floor(self, geometry, length):
        return min(1.0, (self.sink + 1) / length)

    def tokens(self, length: int) -> int:
        """Tokens kept of a prompt of `length` and of what follows it."""
        return max(int(self.budget * length), self.sink + 1)

    def predicted(self, geometry, length, tokens):
        return 1.0 if self.budget >= 1 else min(self.tokens(length), tokens) / tokens

    def allocate(self, geometry, slots, max_tokens):
        self.geometry = geometry
        self.kept = torch.ones(slots, dtype=torch.int64, device=geometry.device)
        self.most = [0] * slots  # the host's copy: shapes the lists without a read-back
        return 0

    def begin(self, layer, slot, prompt, view):
        self.most[slot] = self.tokens(prompt.original)
        if self.budget >= 1:  # everything, decoded tokens too
            self.most[slot] = prompt.length + prompt.max_new
        if layer == 0:
            self.kept[slot] = self.most[slot]

    def attend(self, layer, q_pre, q, view, trace):
        if layer == 0:  # the same tokens in every layer and head
            kept = torch.minimum(self.kept, view.lens)
            index = torch.arange(max(self.most), device=q.device)
            recent = (view.lens - kept)[:, None] + index  # position of the index-th kept token …
            tokens = torch.where(index < self.sink, index, recent).clamp_min(0)  # … behind sinks
            tokens = torch.minimum(tokens, view.lens[:, None] - 1)
            heads = (len(kept), self.geometry.kv_heads)
            self.now = {
                "tokens": tokens[:, None].expand(*heads, -1).contiguous(),
                "counts": kept[:, None].expand(heads).contiguous(),
            }
        return view.exact(layer, q, **self.now)[0]

    def lists(self, lens):
        return Lists.upto(self.most, lens, 1, self.geometry.kv_heads)

    def settle(self, view, trace):
        kept = torch.minimum(self.kept, view.lens)[:, None]
        trace.read(slice(None), view, head_tokens=kept, kv_tokens=kept)

    def capacity(self, slot, tokens):
        return min(self.most[slot], tokens)
