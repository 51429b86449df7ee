"""Random tokens: the control that any selection method must beat at the same number of tokens.

Each KV head of each layer reads, at every step, the first `sink` and the last `recent` tokens and
uniformly random others, `tokens` * N in all. A draw depends on (sample, step, layer, head) alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from macbench.attention.base import Lists, Method
from macbench.attention.budget import check_least, check_share
from macbench.attention.rng import uniform
from macbench.attention.select import best


@dataclass
class RandomTokens(Method):
    """tokens: share of the prompt's tokens read at each step, sink and recent included."""

    name: ClassVar[str] = "random"
    control: ClassVar[bool] = True
    tokens: float = 0.2
    sink: int = 4
    recent: int = 64

    def __post_init__(self) -> None:
        check_share("random.tokens", self.tokens)
        check_least(self, 0, "sink", "recent")

    def floor(self, geometry, length):
        return min(1.0, max(self.sink + self.recent, 1) / length)

    def count(self, length: int) -> int:
        """Tokens read at every step after a prompt of `length`."""
        return max(int(self.tokens * length), self.sink + self.recent, 1)

    def predicted(self, geometry, length, tokens):
        return 1.0 if self.tokens >= 1 else min(self.count(length), tokens) / tokens

    def allocate(self, geometry, slots, max_tokens):
        self.geometry = geometry
        self.kept = torch.ones(slots, dtype=torch.int64, device=geometry.device)
        self.key = torch.zeros(slots, dtype=torch.int64, device=geometry.device)
        self.most = [1] * slots
        return 0

    def begin(self, layer, slot, prompt, view):
        self.most[slot] = self.count(prompt.original)
        if self.tokens >= 1:
            self.most[slot] = prompt.length + prompt.max_new
        if layer == 0:
            self.kept[slot], self.key[slot] = self.most[slot], prompt.key

    def attend(self, layer, q_pre, q, view, trace):
        draw, counts = self._draws(layer, view)
        heads, backend = self.geometry.kv_heads, self.geometry.backend
        tokens, _ = best(draw, counts, max(self.most), heads, backend)
        return view.exact(layer, q, tokens=tokens, counts=counts)[0]

    def _draws(self, layer, view):
        """A number for every token, [B, Hkv, N], and how many of the highest are read, [B, Hkv]."""
        heads = self.geometry.kv_heads
        if self.geometry.backend != "torch":
            from macbench.kernels.draws import draws

            rows = self.key, view.step, view.lens, self.kept
            return draws(*rows, layer, heads, view.bound, self.sink, self.recent)
        position = torch.arange(view.bound, device=view.lens.device)
        head = torch.arange(heads, device=view.lens.device)[:, None]
        sample, step = self.key[:, None, None], view.step[:, None, None]
        draw = uniform(sample, step, layer, head, position)
        lens = view.lens[:, None, None]
        always = (position < self.sink) | (position >= lens - self.recent)
        draw = draw.masked_fill(always, 2.0).masked_fill(position >= lens, -1.0)
        kept = torch.minimum(self.kept, view.lens)
        return draw, kept[:, None].expand(draw.shape[:2])

    def lists(self, lens):
        return Lists.upto(self.most, lens, 1, self.geometry.kv_heads)

    def settle(self, view, trace):
        kept = torch.minimum(self.kept, view.lens)[:, None]
        trace.read(slice(None), view, head_tokens=kept, kv_tokens=kept)
