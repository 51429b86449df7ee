"""PyramidKV (Cai et al., arXiv 2406.02069): SnapKV with more tokens in low layers.

With base = C - window, layers select from `max` in the first, in equal steps down, beside the
window: min = base // beta, max = 2 base - min, step = (max - min) // (L - 1). Where max exceeds the
N - window tokens there are, it is those, and min = 2 base - max; where N < 2 base, all select base.
Whole steps make the mean larger than C by up to (L - 1) / 2 tokens (at C = 1311, window 8 and 32
layers, it is 1324.5), so C is the largest whose mean is within budget * N.

Read per KV head of layer l: C_l + g tokens. All else is SnapKV's, `ada` and `recompress` included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from macbench.attention.snapkv import SnapKV
from macbench.errors import MacbenchError


@dataclass
class PyramidKV(SnapKV):
    """beta: how much smaller than the mean the last layer's selection is; 1 is SnapKV."""

    name: ClassVar[str] = "pyramidkv"
    version: ClassVar[int] = 2  # 2: what whole steps add is part of the budget
    window: int = 8
    beta: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta < 1:
            raise MacbenchError(f"{self.name}.beta={self.beta}: use 1 (no pyramid) or more.")

    def granule(self, geometry, length):
        """A step more or less of C moves the first layer by two tokens, and often all of them."""
        return 2 / length

    def sizes(self, layers, length):
        asked = super().sizes(layers, length)
        for capacity in range(asked[0], self.window, -1):
            found = self.pyramid(layers, length, capacity)
            if sum(found) <= sum(asked):
                break
        return found

    def pyramid(self, layers: int, length: int, capacity: int) -> list[int]:
        """The authors' sizes for C = capacity."""
        base = capacity - self.window
        if capacity >= length or length < 2 * base or layers == 1:
            return [capacity] * layers
        least = base // self.beta
        most = 2 * base - least
        if most >= length - self.window:
            most = length - self.window
            least = 2 * base - most
        step = (most - least) // (layers - 1)
        return [most - layer * step + self.window for layer in range(layers)]
