"""The paged KV cache: one HND pool per layer, prompts in runs, forks by page table."""

from __future__ import annotations

import torch
from torch import Tensor

from macbench.attention.base import Geometry
from macbench.kernels.paged import PAGE


def pages_for(tokens: int) -> int:
    return -(-tokens // PAGE)


class PagedCache:
    """K and V pools `[pages, Hkv, 16, d]` per layer.

    Laid out for one block of samples: `slots` prompt runs, then one private run per fork (row)
    that holds the copy of the prompt's last, partly filled page and every decoded token. Prompt
    pages are written by the prefill only; a fork never writes one.
    """

    def __init__(self, geometry: Geometry, slots: int, rows: int, max_prompt: int, max_new: int):
        self.geometry = geometry
        self.prompt_pages = pages_for(max_prompt)
        self.tail_pages = pages_for(max_new) + 1
        self.pages = slots * self.prompt_pages + rows * self.tail_pages
        self.first_tail = slots * self.prompt_pages
        shape = (self.pages, geometry.kv_heads, PAGE, geometry.head_dim)
        # zeros: a masked key still enters a product with weight 0, so it must be finite
        pools = [
            torch.zeros(shape, dtype=geometry.dtype, device=geometry.device)
            for _ in range(2 * geometry.layers)
        ]
        self.k, self.v = pools[: geometry.layers], pools[geometry.layers :]
        width = self.prompt_pages + self.tail_pages
        self.table = torch.zeros(rows, width, dtype=torch.int64, device=geometry.device)

    @property
    def bytes(self) -> int:
        pool = self.k[0]
        return 2 * len(self.k) * pool.numel() * pool.itemsize

    def run(self, slot: int) -> slice:
        """Pages of a slot's prompt."""
        return slice(slot * self.prompt_pages, (slot + 1) * self.prompt_pages)

    def prompt(self, layer: int, slot: int, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a slot's first `length` prompt tokens, [Hkv, length, d] each."""

        def tokens(pool: Tensor) -> Tensor:
            pages = pool[self.run(slot)][: pages_for(length)]
            return pages.transpose(0, 1).flatten(1, 2)[:, :length]

        return tokens(self.k[layer]), tokens(self.v[layer])

    def write_prompt(self, layer: int, slot: int, start: int, k: Tensor, v: Tensor) -> None:
        """A prefill chunk: k, v [T, Hkv, d] at positions start, start + 1, …"""
        position = torch.arange(start, start + k.shape[0], device=k.device)
        self.write(layer, self.run(slot).start + position // PAGE, position % PAGE, k, v)

    def write(self, layer: int, pages: Tensor, offsets: Tensor, k: Tensor, v: Tensor) -> None:
        """One token each: k, v [N, Hkv, d] into physical pages [N] at offsets [N]."""
        if self.geometry.backend != "torch":
            from macbench.kernels.append import append

            append(self.k[layer], self.v[layer], pages, offsets, k, v)
        else:
            self.k[layer][pages, :, offsets] = k.to(self.geometry.dtype)
            self.v[layer][pages, :, offsets] = v.to(self.geometry.dtype)

    def fork(self, row: int, slot: int, length: int) -> None:
        """Give `row` the prompt of `slot`: share its full pages, copy the partly filled one."""
        full, rest = divmod(length, PAGE)
        run = self.run(slot).start
        tail = self.first_tail + row * self.tail_pages
        index = torch.arange(full, device=self.table.device)
        self.table[row, :full] = run + index
        private = torch.arange(self.tail_pages, device=self.table.device)
        self.table[row, full : full + self.tail_pages] = tail + private
        if rest:
            for pool in (*self.k, *self.v):
                pool[tail] = pool[run + full]
