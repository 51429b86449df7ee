"""Bounds of q.k over whole pages of keys, as Quest (arXiv 2406.10774) ranks pages.

Per page and KV head, the channel-wise minimum and maximum of the post-RoPE keys;
sum_c max(q_c min_c, q_c max_c) is then an upper bound of q.k over the page.
"""

from __future__ import annotations

import torch
from torch import Tensor

from macbench.attention.base import Geometry, Prompt
from macbench.kernels.paged import PAGE, wide


class PageBounds:
    """For all layers and slots of a method: low, high [layers, slots, Hkv, pages, d]."""

    def __init__(self, geometry: Geometry, slots: int, max_tokens: int):
        self.backend = geometry.backend
        self.pages = pages = -(-max_tokens // PAGE)
        shape = (geometry.layers, slots, geometry.kv_heads, pages, geometry.head_dim)
        self.low = torch.zeros(shape, dtype=geometry.dtype, device=geometry.device)
        self.high = torch.zeros_like(self.low)

    @property
    def bytes(self) -> int:
        return 2 * self.low.numel() * self.low.itemsize

    def start(self, layer: int, slot: int, prompt: Prompt, view) -> None:
        """The pages of a prompt."""

        def bounds():
            keys, _ = view.prompt(layer, slot, prompt.length)  # [Hkv, N, d]
            missing = -prompt.length % PAGE
            pages = torch.nn.functional.pad(keys, (0, 0, 0, missing), value=torch.nan)
            pages = pages.unflatten(1, (-1, PAGE))
            low = pages.nan_to_num(torch.inf).amin(2)
            return low, pages.nan_to_num(-torch.inf).amax(2)

        low, high = prompt.once(("page_bounds", layer), bounds)
        self.low[layer, slot, :, : low.shape[1]] = low
        self.high[layer, slot, :, : high.shape[1]] = high

    def scores(self, layer: int, q: Tensor, view, size: int, shared: bool) -> Tensor:
        """Bounds of q.k over each page [B, Hq, size], or if shared group sums [B, Hkv, size]; the
        newest page above all, pages behind it below. The newest key is let into them."""
        low, high = self.low[layer], self.high[layer]
        if self.backend != "torch":
            from macbench.kernels.quest import page_scores

            return page_scores(q, low, high, view.k[layer], view.table, view.lens, size, shared)
        self._update(low, high, layer, view)
        scores = bound(q, low[:, :, :size], high[:, :, :size])
        if shared:
            scores = scores.unflatten(1, (low.shape[1], -1)).sum(2)
        page = torch.arange(size, device=q.device)
        newest = (view.lens[:, None, None] - 1) // PAGE
        scores = scores.masked_fill(page > newest, -torch.inf)
        return scores.masked_fill(page == newest, torch.inf)

    @staticmethod
    def _update(low, high, layer, view):
        """Let the newest token's key into its page's bounds."""
        key = view.newest_key(layer)
        row = torch.arange(len(key), device=key.device)
        page, first = (view.lens - 1) // PAGE, ((view.lens - 1) % PAGE == 0)[:, None, None]
        least, most = low[row, :, page], high[row, :, page]
        low[row, :, page] = torch.where(first, key, torch.minimum(least, key))
        high[row, :, page] = torch.where(first, key, torch.maximum(most, key))


def held_pages(view) -> Tensor:
    """Pages that hold tokens, [B]."""
    return (view.lens + PAGE - 1) // PAGE


def bound(q: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """What no q.k of a page exceeds: q [B, Hq, d], bounds [B, Hkv, n, d] -> [B, Hq, n]."""
    grouped = wide(q).unflatten(1, (low.shape[1], -1))
    least, most = wide(low).transpose(-1, -2), wide(high).transpose(-1, -2)
    return (grouped.clamp_min(0) @ most + grouped.clamp_max(0) @ least).flatten(1, 2)
