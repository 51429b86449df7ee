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
        self.kv_heads = geometry.kv_heads
        pages = -(-max_tokens // PAGE)
        shape = (geometry.layers, slots, geometry.kv_heads, pages, geometry.head_dim)
        self.low = torch.zeros(shape, dtype=geometry.dtype, device=geometry.device)
        self.high = torch.zeros_like(self.low)
        self.pages = pages

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

    def update(self, layer: int, view) -> None:
        """Let the newest token's key into its page's bounds."""
        key = view.newest_key(layer)
        row = torch.arange(len(key), device=key.device)
        page, first = (view.lens - 1) // PAGE, ((view.lens - 1) % PAGE == 0)[:, None, None]
        low, high = self.low[layer, row, :, page], self.high[layer, row, :, page]
        self.low[layer, row, :, page] = torch.where(first, key, torch.minimum(low, key))
        self.high[layer, row, :, page] = torch.where(first, key, torch.maximum(high, key))

    def scores(self, layer: int, q: Tensor, size: int, shared: bool) -> Tensor:
        """Bounds of q.k over each page [B, Hq, pages]; if shared, group sums [B, Hkv, pages]."""
        grouped = wide(q).unflatten(1, (self.kv_heads, -1))
        low = self.low[layer, :, :, :size].transpose(-1, -2)
        high = self.high[layer, :, :, :size].transpose(-1, -2)
        bound = grouped.clamp_min(0) @ wide(high) + grouped.clamp_max(0) @ wide(low)
        return bound.sum(2) if shared else bound.flatten(1, 2)

    def best(self, layer: int, q: Tensor, view, most: int, shared: bool) -> tuple[Tensor, Tensor]:
        """The `most` best pages [B, H, n], of which the newest page is always the first, and how
        many hold tokens [B, 1]: what is listed behind as many is no page."""
        held = (view.lens[:, None] + PAGE - 1) // PAGE
        size = -(-view.bound // PAGE)
        scores = self.scores(layer, q, size, shared)
        page = torch.arange(size, device=q.device)
        scores = scores.masked_fill(page >= held[..., None], -torch.inf)
        scores = scores.masked_fill(page == held[..., None] - 1, torch.inf)
        return scores.topk(min(most, size), dim=-1).indices, held
