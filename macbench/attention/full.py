"""Full attention: exact, over every cached key. The reference of every comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from macbench.attention.base import Method
from macbench.attention.summary import merge
from macbench.errors import MacbenchError


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

    def attend(self, layer, q_pre, q, view, trace):
        lens = view.lens[:, None]
        trace.read(layer, view, head_tokens=lens, kv_tokens=lens)
        if self.passes == 1:
            return view.exact(layer, q)[0]
        every = lens.expand(q.shape[:2])
        middle = every // 2
        left = view.exact(layer, q, starts=torch.zeros_like(middle), ends=middle)
        right = view.exact(layer, q, starts=middle, ends=every)
        return merge(left, right)[0]

    def witness(self, totals):
        return totals["kv_tokens"] == totals["context_kv"]
