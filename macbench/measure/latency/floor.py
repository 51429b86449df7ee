"""What a case costs at least on this card: its bytes at the read bandwidth, and its launches.

Both floors use what was measured in the same run. `floor` divides by the bandwidth of one large
read; `cold_floor` takes the time that a plain read kernel needs for just as many bytes with a cold
L2 cache, which for less than about 1 GB is more: no kernel is known to reach the former there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FURTHER = 1.0  # us for each kernel of a graph after the first, if it depends on the one before


@dataclass(frozen=True)
class Machine:
    """A card as measured in this run."""

    device: str
    bandwidth: float  # bytes per us of the best plain read kernel, over the most bytes
    read_bytes: int  # that many
    launch: float  # us of a graph that holds one empty kernel, as timed here
    cold: tuple[tuple[int, float], ...]  # (bytes, us): plain cold reads, launch included; ascending
    l2: int = 50 * 2**20  # bytes

    def floor(self, volume: int, kernels: int) -> float:
        """us of `volume` bytes at full bandwidth, and of so many launches."""
        return volume / self.bandwidth + self.launch + FURTHER * (kernels - 1)

    def cold_floor(self, volume: int, kernels: int) -> float:
        """The same with the bytes as a plain read kernel of this size reads them."""
        sizes, times = zip(*self.cold, strict=True)
        if volume > sizes[-1]:
            return volume / sizes[-1] * times[-1] + FURTHER * (kernels - 1)
        return float(np.interp(volume, sizes, times)) + FURTHER * (kernels - 1)
