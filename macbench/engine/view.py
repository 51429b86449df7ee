"""What a method sees of the cache in a decode step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from macbench.engine.cache import PagedCache, pages_for
from macbench.kernels import paged


@dataclass
class View:
    """Rows of one method (one per slot) over the shared cache.

    table [B, M] page numbers, lens [B] tokens in the cache including this step's, step [B] decode
    steps done before this one, live [B] False for finished rows, which stay as padding.
    """

    cache: PagedCache
    table: Tensor
    lens: Tensor
    step: Tensor
    live: Tensor
    bound: int  # no row holds more tokens than this (known to the host, no read-back)

    @property
    def k(self) -> list[Tensor]:
        return self.cache.k

    @property
    def v(self) -> list[Tensor]:
        return self.cache.v

    def prompt(self, layer: int, slot: int, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a slot's first `length` prompt tokens, [Hkv, length, d] each."""
        return self.cache.prompt(layer, slot, length)

    def newest_key(self, layer: int) -> Tensor:
        """The key of this step's token, [B, Hkv, d]."""
        at = self.lens - 1
        page = self.table.gather(1, (at // paged.PAGE)[:, None]).squeeze(1)
        return self.k[layer][page, :, at % paged.PAGE]

    def logits(self, layer: int, q: Tensor) -> Tensor:
        """Scaled logits of q [B, Hq, d] over every cached key, [B, Hq, N], -inf beyond `lens`.

        For controls that look at every key; a method must not call it.
        """
        b, kv_heads = len(self.table), self.cache.geometry.kv_heads
        pages = torch.arange(pages_for(self.bound), device=q.device)
        rows = paged.page_rows(self.table, pages.expand(b, kv_heads, -1), kv_heads)
        keys = paged.take(self.k[layer], rows, paged.PAGE)
        scores = paged.logits(q, keys, self.cache.geometry.scale).flatten(1, 2)
        position = torch.arange(scores.shape[-1], device=q.device)
        return scores.masked_fill(position >= self.lens[:, None, None], -torch.inf)

    def exact(
        self,
        layer: int,
        q: Tensor,
        starts: Tensor | None = None,
        ends: Tensor | None = None,
        pages: Tensor | None = None,
        tokens: Tensor | None = None,
        counts: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Exact attention of q [B, Hq, d] over a chosen set of cached keys -> o, lse (fp32).

        Either the range [starts, ends) of each query head ([B, Hq]; default all keys), or the first
        counts [B, H] of a list of pages [B, H, n] or of tokens [B, H, n], where H is Hkv (one list
        for a group) or Hq (one per query head).
        """
        k, v, scale = self.k[layer], self.v[layer], self.cache.geometry.scale
        if tokens is not None:
            assert counts is not None
            return paged.attend_tokens(q, k, v, self.table, tokens, counts, scale)
        if pages is not None:
            assert counts is not None
            return paged.attend_pages(q, k, v, self.table, pages, counts, self.lens, scale)
        heads = q.shape[:2]
        low = torch.zeros_like(self.lens)[:, None].expand(heads) if starts is None else starts
        high = self.lens[:, None].expand(heads) if ends is None else ends
        return paged.attend_range(q, k, v, self.table, low, high, pages_for(self.bound), scale)
