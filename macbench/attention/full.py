"""Full attention: exact, over every cached key. The reference of every comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from macbench.attention.base import Method
from macbench.attention.summary import merge
from macbench.errors import MacbenchError
from macbench.kernels.paged import PAGE


def halves(tokens: int) -> tuple[range, range]:
    """The pages of so many tokens in two parts, neither empty (a page may hold no token)."""
    pages = -(-tokens // PAGE)
    middle = max(pages // 2, 1)
    return range(middle), range(middle, max(pages, middle + 1))


@dataclass
class Full(Method):
    """passes=1 attends in one pass; passes=2 attends over two halves and merges their summaries.

    Both are exact. The share of samples on which their outputs differ is the noise floor of every
    comparison: a difference below it says nothing about a method.
    """

    name: ClassVar[str] = "full"
    passes: int = 1

    def __post_init__(self) -> None:
        if self.passes not in (1, 2):
            raise MacbenchError(f"full.passes={self.passes}: choose 1 or 2.")

    def predicted(self, geometry, length, tokens):
        return 1.0

    def attend(self, layer, q_pre, q, view, trace):
        if self.passes == 1:
            return view.exact(layer, q)[0]
        left, right = (self._pages(layer, q, view, part) for part in halves(view.bound))
        return merge(left, right)[0]

    def settle(self, view, trace):
        lens = view.lens[:, None]
        trace.read(slice(None), view, head_tokens=lens, kv_tokens=lens)

    def _pages(self, layer, q, view, part):
        pages = torch.arange(part.start, part.stop, device=q.device)
        pages = pages.expand(len(q), self.geometry.kv_heads, -1)
        counts = torch.full_like(pages[..., 0], len(part))
        return view.exact(layer, q, pages=pages, counts=counts)

    def witness(self, totals):
        return totals["kv_tokens"] == totals["context_kv"]
