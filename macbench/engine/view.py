"""What a method sees of the cache in a decode step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from macbench.attention.base import Lists
from macbench.engine import backend
from macbench.engine.cache import PagedCache, pages_for
from macbench.kernels import paged


@dataclass
class View:
    """Rows of one method (one per slot) over the shared cache.

    table [B, M] page numbers, lens [B] tokens in the cache including this step's, step [B] decode
    steps done before this one, live [B] False for finished rows, which stay as padding. Made at the
    fork: row i is then the prompt of slot i, whose full pages are read where they lie.
    """

    cache: PagedCache
    table: Tensor
    lens: Tensor
    step: Tensor
    live: Tensor
    bound: int  # no row holds more tokens than this (known to the host, no read-back)
    grown: int = 0  # tokens fed since the fork, at most

    def __post_init__(self) -> None:
        self.kernels = backend.make(self.cache.geometry, len(self.lens))
        self.longest = self.bound  # at the fork
        self.shared = self.lens // paged.PAGE  # [B] full pages of the prompt
        whole, used = self.cache.prompt_pages, self.bound // paged.PAGE
        self.run = whole if 2 * used > whole else used  # a part of every run has to be copied

    def reach(self, steps: int, most: int) -> None:
        """From now on shapes hold for `steps` tokens since the fork, and for `most` in all."""
        self.grown, self.bound = steps, min(self.longest + steps, most)

    def lying(self, pool: Tensor) -> Tensor:
        """The prompts' pages where they lie, [B, run, Hkv, 16, d]; row i's full ones come first."""
        slots, whole = len(self.lens), self.cache.prompt_pages
        return pool[: slots * whole].unflatten(0, (slots, whole))[:, : self.run]

    def plan(self, lens: list[int], lists: Lists | None = None) -> None:
        """Before a step: its lens, as far as the host knows (a finished row's may be less), and
        the method's lists."""
        if self.kernels is not None:
            self.kernels.plan(self.table, lens, lists)

    @property
    def tail(self) -> int:
        """Pages that hold all tokens behind the full pages of the prompt."""
        return pages_for(paged.PAGE - 1 + self.grown)

    @property
    def k(self) -> list[Tensor]:
        return self.cache.k

    @property
    def v(self) -> list[Tensor]:
        return self.cache.v

    def prompt(self, layer: int, slot: int, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a slot's first `length` prompt tokens, [Hkv, length, d] each."""
        return self.cache.prompt(layer, slot, length)

    def prompt_rows(
        self, layer: int, slot: int, q: Tensor, length: int, starts: Tensor, ends: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Summaries of queries q [n, Hq, d] over their own ranges [starts, ends) ([n] each) of a
        slot's first `length` prompt tokens -> o [n, Hq, d], lse [n, Hq]."""
        scale = self.cache.geometry.scale
        if self.kernels is None:
            k, v = self.prompt(layer, slot, length)
            return paged.prefix_rows(q, k, v, starts, ends, scale)
        from macbench.kernels.prefix_rows import prefix_rows

        run = self.cache.run(slot)
        k, v = self.k[layer][run], self.v[layer][run]
        return prefix_rows(q, k, v, length, starts, ends, scale)

    def newest_key(self, layer: int) -> Tensor:
        """The key of this step's token, [B, Hkv, d]."""
        at = self.lens - 1
        page = self.table.gather(1, (at // paged.PAGE)[:, None]).squeeze(1)
        return self.k[layer][page, :, at % paged.PAGE]

    def logits(self, layer: int, q: Tensor) -> Tensor:
        """Scaled logits of q [B, Hq, d] over every cached key, [B, Hq, N], -inf beyond `lens`.

        For controls that look at every key; a method must not call it.
        """
        scale, size = self.cache.geometry.scale, paged.PAGE
        if self.kernels is not None:
            from macbench.kernels.logits import logits

            return logits(q, self.k[layer], self.table, self.lens, scale, self.bound)
        kv_heads = self.cache.geometry.kv_heads
        rows = paged.tail_rows(self.table, self.shared, self.tail, kv_heads)
        tail = paged.logits(q, paged.take(self.k[layer], rows, size), scale).flatten(1, 2)
        lying = paged.lying_logits(q, self.lying(self.k[layer]), scale).flatten(1, 2)
        scores = torch.nn.functional.pad(lying, (0, size * self.tail))
        at = size * self.shared[:, None] + torch.arange(size * self.tail, device=q.device)
        scores.scatter_(2, at[:, None].expand(-1, scores.shape[1], -1), tail)
        position = torch.arange(scores.shape[-1], device=q.device)
        return scores.masked_fill(position >= self.lens[:, None, None], -torch.inf)

    def keys(self, layer: int, tokens: Tensor) -> Tensor:
        """Keys at the listed positions [B, Hkv, n] -> [B, Hkv, n, d]."""
        return paged.take_tokens(self.k[layer], self.table, tokens)

    def weights(self, layer: int, q: Tensor, tokens: Tensor, counts: Tensor, lse: Tensor) -> Tensor:
        """Probabilities of `exact` over the first counts [B, H] of tokens [B, H, n], for methods
        that evict by them: summed over the query heads that share a list, [B, H, n], 0 beyond.

        lse [B, Hq] as `exact` gave it; H is Hkv, or 1 where all heads share a list.
        """
        scale, heads = self.cache.geometry.scale, self.cache.geometry.kv_heads
        if self.kernels is not None:
            from macbench.kernels.weights import weights

            return weights(q, self.k[layer], self.table, tokens, counts, lse, scale)
        keys = self.keys(layer, tokens.expand(-1, heads, -1))
        paid = (paged.logits(q, keys, scale).flatten(1, 2) - lse[..., None]).exp()
        listed = torch.arange(tokens.shape[2], device=q.device) < counts[..., None]
        return paid.unflatten(1, (tokens.shape[1], -1)).sum(2) * listed

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
        if self.kernels is not None and starts is None and ends is None:
            lists, piece = (pages, paged.PAGE) if tokens is None else (tokens, 1)
            rows = self.table, self.lens, self.live
            return self.kernels.over(q, k, v, *rows, lists, counts, piece)
        if tokens is not None:
            assert counts is not None
            return paged.attend_tokens(q, k, v, self.table, tokens, counts, scale)
        if pages is not None:
            assert counts is not None
            return paged.attend_pages(q, k, v, self.table, pages, counts, self.lens, scale)
        heads = q.shape[:2]
        low = torch.zeros_like(self.lens)[:, None].expand(heads) if starts is None else starts
        high = self.lens[:, None].expand(heads) if ends is None else ends
        lying = self.lying(k), self.lying(v)
        return paged.attend_range(
            q, k, v, self.table, low, high, lying, self.shared, self.tail, scale
        )
