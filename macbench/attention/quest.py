"""Quest (Tang et al., arXiv 2406.10774): pages whose key bounds promise the highest scores.

Per page of 16 tokens and KV head, the channel-wise minimum and maximum of the post-RoPE keys. Every
step scores each page by sum_c max(q_c min_c, q_c max_c), an upper bound of q.k over the page, and
attends exactly to the best pages; the newest page is always among them.

Read per KV head of a sparse layer: 2 d b bytes of bounds per page (one token's K and V) and the
tokens of the chosen pages, as a union over the group's query heads where each chooses for itself
(`shared=false`, as the authors do). The first `dense_layers` layers read everything. A budget is a
number of pages over all sparse layers; the first of them have one more where it does not divide by
their number. Differs from
the authors' code: KV heads are never repeated, and pages are chosen at decode steps only (they
also feed the end of the prompt through it: here `hold=question`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from macbench.attention.base import Lists, Method
from macbench.attention.budget import check_share
from macbench.attention.select import union
from macbench.kernels.paged import PAGE, wide

LEAST = 3  # pages, as in the authors' evaluation code


@dataclass
class Quest(Method):
    """budget: byte budget aimed at; the pages per list follow from it as if a group's heads agreed,
    so the achieved budget is higher where they do not (shared=false)."""

    name: ClassVar[str] = "quest"
    version: ClassVar[int] = 2  # 2: the remainder of a budget is handed out over layers
    budget: float = 0.2
    dense_layers: int = 2
    shared: bool = False

    def __post_init__(self) -> None:
        check_share("quest.budget", self.budget)

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
        sparse = sum(min(n, held) * PAGE - empty + held for n in pages[dense:])
        return (dense * tokens + sparse) / (geometry.layers * tokens)

    def allocate(self, geometry, slots, max_tokens):
        self.geometry = geometry
        pages = -(-max_tokens // PAGE)
        shape = (geometry.layers, slots, geometry.kv_heads, pages, geometry.head_dim)
        self.low = torch.zeros(shape, dtype=geometry.dtype, device=geometry.device)
        self.high = torch.zeros_like(self.low)
        self.kept = torch.ones(slots, dtype=torch.int64, device=geometry.device)
        self.fuller = torch.zeros_like(self.kept)  # layers before this one have a page more
        self.most = [1] * slots  # in any layer
        self.even = [True] * slots  # the same in all layers
        return 2 * self.low.numel() * self.low.itemsize // slots

    def begin(self, layer, slot, prompt, view):
        if layer == 0:
            pages = self.pages(self.geometry, prompt.original)
            if self.budget >= 1:
                pages = [self.low.shape[3]] * self.geometry.layers
            self.kept[slot], self.most[slot] = pages[-1], max(LEAST, *pages)
            self.even[slot] = pages[-1] == max(pages)
            self.fuller[slot] = 0 if self.even[slot] else len(pages) - pages.count(pages[-1])
        if layer < self.dense_layers:
            return
        low, high = prompt.once(
            ("page_bounds", layer), lambda: self._bounds(layer, slot, prompt, view)
        )
        self.low[layer, slot, :, : low.shape[1]] = low
        self.high[layer, slot, :, : high.shape[1]] = high

    @staticmethod
    def _bounds(layer, slot, prompt, view):
        keys, _ = view.prompt(layer, slot, prompt.length)  # [Hkv, N, d]
        missing = -prompt.length % PAGE
        pages = torch.nn.functional.pad(keys, (0, 0, 0, missing), value=torch.nan)
        pages = pages.unflatten(1, (-1, PAGE))
        low = pages.nan_to_num(torch.inf).amin(2)
        return low, pages.nan_to_num(-torch.inf).amax(2)

    def attend(self, layer, q_pre, q, view, trace):
        lens = view.lens[:, None]
        if layer < self.dense_layers:
            trace.read(layer, view, head_tokens=lens, kv_tokens=lens)
            return view.exact(layer, q)[0]
        self._update(layer, view)
        held = (lens + PAGE - 1) // PAGE  # [B, 1] pages that hold tokens
        size = -(-view.bound // PAGE)
        scores = self._scores(layer, q, size)  # [B, H, pages]
        page = torch.arange(size, device=q.device)
        scores = scores.masked_fill(page >= held[..., None], -torch.inf)
        scores = scores.masked_fill(page == held[..., None] - 1, torch.inf)
        chosen = scores.topk(min(max(self.most), size), dim=-1).indices
        kept = (self.kept + (self.fuller > layer))[:, None]
        counts = torch.minimum(kept, held).expand(chosen.shape[:2])

        kv_heads = self.geometry.kv_heads
        empty = held * PAGE - lens  # the newest page is always chosen and may not be full
        loaded = union(chosen, counts, size, kv_heads).sum(-1) * PAGE - empty
        own = counts[:, :1] * PAGE - empty
        bounds = held * self.geometry.token_bytes
        trace.read(layer, view, head_tokens=own, kv_tokens=loaded, meta_bytes=bounds)
        return view.exact(layer, q, pages=chosen, counts=counts)[0]

    def lists(self, lens):
        g = self.geometry
        if not all(self.even):
            return None
        return Lists.upto(self.most, lens, PAGE, g.kv_heads if self.shared else g.q_heads)

    def _update(self, layer, view):
        """Let the newest token's key into its page's bounds."""
        key = view.newest_key(layer)
        row = torch.arange(len(key), device=key.device)
        page, first = (view.lens - 1) // PAGE, ((view.lens - 1) % PAGE == 0)[:, None, None]
        low, high = self.low[layer, row, :, page], self.high[layer, row, :, page]
        self.low[layer, row, :, page] = torch.where(first, key, torch.minimum(low, key))
        self.high[layer, row, :, page] = torch.where(first, key, torch.maximum(high, key))

    def _scores(self, layer, q, size):
        """Bounds of q.k over each page [B, Hq, pages]; if shared, group sums [B, Hkv, pages]."""
        b, kv_heads, d = len(q), self.geometry.kv_heads, q.shape[-1]
        grouped = wide(q).view(b, kv_heads, -1, d)
        low = self.low[layer, :, :, :size].transpose(-1, -2)
        high = self.high[layer, :, :, :size].transpose(-1, -2)
        bound = grouped.clamp_min(0) @ wide(high) + grouped.clamp_max(0) @ wide(low)
        return bound.sum(2) if self.shared else bound.flatten(1, 2)
