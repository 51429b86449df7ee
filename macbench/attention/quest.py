"""Quest (Tang et al., arXiv 2406.10774): pages whose key bounds promise the highest scores.

Per page of 16 tokens and KV head, the channel-wise minimum and maximum of the post-RoPE keys. Every
step scores each page by sum_c max(q_c min_c, q_c max_c), an upper bound of q.k over the page, and
attends exactly to the best pages; the newest page is always among them.

Read per KV head of a sparse layer: 2 d b bytes of bounds per page (one token's K and V; none where
every page is chosen anyway) and the tokens of the chosen pages, as a union over the group's query
heads where each chooses for itself (`shared=false`, as the authors do). The first `dense_layers`
layers read everything. A budget is a number of pages over all sparse layers; the first of them have
one more where it does not divide by their number. Differs from the authors' code: KV heads are
never repeated, and pages are chosen at decode steps only (they also feed the end of the prompt
through it: here `hold=question`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from macbench.attention.base import Lists, Method
from macbench.attention.budget import check_dense, check_least, check_share
from macbench.attention.pages import PageBounds, held
from macbench.attention.select import best
from macbench.kernels.paged import PAGE

LEAST = 3  # pages, as in the authors' evaluation code


@dataclass
class Quest(Method):
    """budget: byte budget aimed at; the pages per list follow from it as if a group's heads agreed,
    so the achieved budget is higher where they do not (shared=false)."""

    name: ClassVar[str] = "quest"
    # 2: the remainder of a budget is handed out over layers; 3: no bounds where nothing is chosen
    version: ClassVar[int] = 3
    budget: float = 0.2
    dense_layers: int = 2
    shared: bool = False

    def __post_init__(self) -> None:
        check_share("quest.budget", self.budget)
        check_least(self, 0, "dense_layers")

    def check(self, geometry, length):
        check_dense(self, geometry)

    def floor(self, geometry, length):
        least = self._share(geometry, length, [LEAST] * geometry.layers)
        return min(1.0, least)

    def granule(self, geometry, length):
        return PAGE / (geometry.layers * length)

    def pages(self, geometry, length: int) -> list[int]:
        """Pages per list of every layer that come nearest to `budget` at this prompt length."""
        dense = min(self.dense_layers, geometry.layers)
        sparse, held = geometry.layers - dense, -(-length // PAGE)
        # in tokens: all layers' share, less the dense layers and the bounds; the newest page is
        # counted whole in `total`, and what it lacks is not read
        left = self.budget * geometry.layers * length - dense * length - sparse * held
        total = round((left + sparse * (held * PAGE - length)) / PAGE)
        each, more = divmod(max(total, LEAST * sparse), sparse) if sparse else (LEAST, 0)
        return [0] * dense + [each + 1] * more + [each] * (sparse - more)

    def predicted(self, geometry, length, tokens):
        """Where a group's heads agree, as with `shared`; else no less."""
        if self.budget >= 1:
            return self._share(geometry, tokens, [tokens] * geometry.layers)
        return self._share(geometry, tokens, self.pages(geometry, length))

    def _share(self, geometry, tokens: int, pages: list[int]) -> float:
        """Byte budget of a step over so many tokens with so many pages per list."""
        dense, held = min(self.dense_layers, geometry.layers), -(-tokens // PAGE)
        empty = held * PAGE - tokens
        sparse = sum(tokens if n >= held else n * PAGE - empty + held for n in pages[dense:])
        return (dense * tokens + sparse) / (geometry.layers * tokens)

    def allocate(self, geometry, slots, max_tokens):
        self.geometry = geometry
        self.bounds = PageBounds(geometry, slots, max_tokens)
        self.kept = torch.ones(slots, dtype=torch.int64, device=geometry.device)
        self.fuller = torch.zeros_like(self.kept)  # layers before this one have a page more
        self.most = [1] * slots  # in any layer
        self.even = [True] * slots  # the same in all layers
        shape = (geometry.layers, slots, geometry.kv_heads)
        loaded = torch.zeros(shape, dtype=torch.int64, device=geometry.device)
        self.now = {"loaded": loaded}  # pages, in the step that is running
        return self.bounds.bytes // slots

    def begin(self, layer, slot, prompt, view):
        if layer == 0:
            pages = self.pages(self.geometry, prompt.original)
            if self.budget >= 1:
                pages = [self.bounds.pages] * self.geometry.layers
            self.kept[slot], self.most[slot] = pages[-1], max(LEAST, *pages)
            self.even[slot] = pages[-1] == max(pages)
            self.fuller[slot] = 0 if self.even[slot] else len(pages) - pages.count(pages[-1])
        if layer < self.dense_layers:
            return
        self.bounds.start(layer, slot, prompt, view)

    def attend(self, layer, q_pre, q, view, trace):
        if layer < self.dense_layers:
            return view.exact(layer, q)[0]
        scores = self.bounds.scores(layer, q, view, self.shared)  # [B, H, pages]
        if layer == self.dense_layers:  # once a step, for all layers
            counts = self._counts(view)[..., None]
            self.now["counts"] = counts.expand(*counts.shape[:2], scores.shape[1]).contiguous()
        g, counts = self.geometry, self.now["counts"][layer]
        chosen, loaded = best(scores, counts, max(self.most), g.kv_heads, g.backend)
        self.now["loaded"][layer] = loaded
        return view.exact(layer, q, pages=chosen, counts=counts)[0]

    def _counts(self, view):
        """Pages of a list, [layers, B]."""
        layer = torch.arange(self.geometry.layers, device=view.lens.device)[:, None]
        return torch.minimum(self.kept + (self.fuller > layer), held(view))

    def settle(self, view, trace):
        lens, pages = view.lens[:, None], held(view)[:, None]
        empty = pages * PAGE - lens  # the newest page is always chosen and may not be full
        layer = torch.arange(self.geometry.layers, device=lens.device)[:, None, None]
        dense = layer < self.dense_layers
        counts = self._counts(view)[..., None]
        bounds = torch.where(counts < pages, pages * self.geometry.token_bytes, 0)
        trace.read(
            slice(None),
            view,
            head_tokens=torch.where(dense, lens, counts * PAGE - empty),
            kv_tokens=torch.where(dense, lens, self.now["loaded"] * PAGE - empty),
            meta_bytes=torch.where(dense, 0, bounds),
        )

    def lists(self, lens):
        g = self.geometry
        if not all(self.even):
            return None
        return Lists.upto(self.most, lens, PAGE, g.kv_heads if self.shared else g.q_heads)
