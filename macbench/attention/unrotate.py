"""Cached keys turned back to position 0.

A model gives no more than `rotate(x, positions, regimes)`; which channels it turns together and by
how much is read off what it does to a few vectors, so any layout of pairs and channels that are not
turned are undone alike. Where a model scales cos and sin (yarn, longrope), a key at position 0 has
that scale, too, and keeps it: logits need it of the query and of the key.
"""

from __future__ import annotations

import torch
from torch import Tensor

from macbench.attention.base import Geometry
from macbench.kernels.paged import wide


class Unrotate:
    def __init__(self, geometry: Geometry):
        d, self.rotate = geometry.head_dim, geometry.rotate
        exact = torch.promote_types(geometry.dtype, torch.float32)
        unit = torch.eye(d, dtype=exact, device=geometry.device)
        turned = self.rotate(unit[None], torch.ones(1, dtype=torch.int64, device=unit.device))[0]
        aside = (turned * (1 - unit)).abs()  # [d, d]: where a unit vector goes, beside itself
        channel = torch.arange(d, device=unit.device)
        self.partner = torch.where(aside.amax(-1) > 0, aside.argmax(-1), channel)
        self.first = channel.minimum(self.partner)
        self.second = channel.maximum(self.partner)
        self.probe = (channel <= self.partner).to(exact)  # the first of every pair, which goes …
        self.sign = torch.where(channel < self.partner, 1, -1) * (channel != self.partner)

    def turn(self, positions: Tensor, regimes: Tensor) -> tuple[Tensor, Tensor]:
        """What rotates to positions [n] in regimes [n]: cos and sin [n, d] for which x goes to
        cos * x - sin * x[partner]."""
        turned = self.rotate(self.probe.expand(len(positions), 1, -1), positions, regimes)[:, 0]
        return turned[:, self.first], turned[:, self.second] * self.sign  # … to cos of it and sin

    def __call__(self, x: Tensor, positions: Tensor, regimes: Tensor) -> Tensor:
        """x [..., n, d], rotated at positions that broadcast to [..., n] in regimes that broadcast
        to those -> as rotated to position 0 (fp32)."""
        regime = regimes.expand(positions.shape).flatten()
        turn = self.turn(positions.flatten(), regime)
        cos, sin = (part.view(*positions.shape, -1) for part in turn)
        x = wide(x)
        return (cos * x + sin * x[..., self.partner]) / (cos.square() + sin.square()).sqrt()
