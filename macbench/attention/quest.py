"""Quest (Tang et al., arXiv 2406.10774): pages whose key bounds promise the highest scores.

Per page of 16 tokens and KV head, the channel-wise minimum and maximum of the post-RoPE keys. Every
step scores each page by sum_c max(q_c min_c, q_c max_c), an upper bound of q.k over the page, and
attends exactly to the best pages; the newest page is always among them.

Read per KV head of a sparse layer: 2 d b bytes of bounds per page (one token's K and V) and the
tokens of the chosen pages, as a union over the group's query heads where each chooses for itself
(`shared=false`, as the authors do). The first `dense_layers` layers read everything. Differs from
the authors' code: KV heads are never repeated, and pages are chosen at decode steps only (they
also feed the end of the prompt through it: here `hold=question`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from macbench.attention.base import Lists, Method
from macbench.attention.budget import check_share
from macbench.attention.pages import PageBounds, held_pages
from macbench.attention.select import best
from macbench.kernels.paged import PAGE

LEAST = 3  # pages, as in the authors' evaluation code


@dataclass
class Quest(Method):
    """budget: byte budget aimed at; the pages per list follow from it as if a group's heads agreed,
    so the achieved budget is higher where they do not (shared=false)."""

    name: ClassVar[str] = "quest"
    budget: float = 0.2
    dense_layers: int = 2
    shared: bool = False

    def __post_init__(self) -> None:
        check_share("quest.budget", self.budget)

    def _dense(self, geometry) -> float:
        return min(self.dense_layers, geometry.layers) / geometry.layers

    def floor(self, geometry, length):
        dense = self._dense(geometry)
        return min(1.0, dense + (1 - dense) * (1 / PAGE + LEAST * PAGE / length))

    def pages(self, geometry, length: int) -> int:
        """Pages per list that give `budget` at this context length."""
        dense = self._dense(geometry)
        if dense == 1:
            return LEAST
        share = (self.budget - dense) / (1 - dense) - 1 / PAGE
        return max(LEAST, round(share * length / PAGE))

    def allocate(self, geometry, slots, max_tokens):
        self.geometry = geometry
        self.bounds = PageBounds(geometry, slots, max_tokens)
        self.kept = torch.ones(slots, dtype=torch.int64, device=geometry.device)
        self.most = [1] * slots
        shape = (geometry.layers, slots, geometry.kv_heads)
        loaded = torch.zeros(shape, dtype=torch.int64, device=geometry.device)
        self.now = {"loaded": loaded}  # of the step that is running
        return self.bounds.bytes // slots

    def begin(self, layer, slot, prompt, view):
        if layer == 0:
            self.most[slot] = self.pages(self.geometry, prompt.original)
            if self.budget >= 1:
                self.most[slot] = self.bounds.pages
            self.kept[slot] = self.most[slot]
        if layer < self.dense_layers:
            return
        self.bounds.start(layer, slot, prompt, view)

    def attend(self, layer, q_pre, q, view, trace):
        if layer < self.dense_layers:
            return view.exact(layer, q)[0]
        size, kv_heads = -(-view.bound // PAGE), self.geometry.kv_heads
        scores = self.bounds.scores(layer, q, view, size, self.shared)  # [B, H, pages]
        if layer == self.dense_layers:
            counts = torch.minimum(self.kept, held_pages(view))[:, None]
            self.now["counts"] = counts.expand(scores.shape[:2]).contiguous()  # of every layer
        counts, backend = self.now["counts"], self.geometry.backend
        chosen, self.now["loaded"][layer] = best(scores, counts, max(self.most), kv_heads, backend)
        return view.exact(layer, q, pages=chosen, counts=counts)[0]

    def settle(self, view, trace):
        lens, held = view.lens[:, None], held_pages(view)[:, None]
        empty = held * PAGE - lens  # the newest page is always chosen and may not be full
        layer = torch.arange(self.geometry.layers, device=lens.device)[:, None, None]
        dense = layer < self.dense_layers
        own = torch.minimum(self.kept[:, None], held) * PAGE - empty
        trace.read(
            slice(None),
            view,
            head_tokens=torch.where(dense, lens, own),
            kv_tokens=torch.where(dense, lens, self.now["loaded"] * PAGE - empty),
            meta_bytes=torch.where(dense, 0, held * self.geometry.token_bytes),
        )

    def lists(self, lens):
        g = self.geometry
        return Lists.upto(self.most, lens, PAGE, g.kv_heads if self.shared else g.q_heads)
