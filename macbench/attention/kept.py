"""The tokens an eviction method keeps: a list per layer, slot and head, on the device.

Eviction is emulated: lists name tokens of the shared prompt's pages and of the row's own, and a
token that is dropped is named no longer. Positions stay the true ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from macbench.attention.base import Geometry


class Kept:
    """tokens [L, slots, H, most] and how many of them hold, held [L, slots, H].

    H is Hkv, or 1 where all heads of a layer keep the same tokens.
    """

    def __init__(self, geometry: Geometry, slots: int, heads: int, most: int):
        shape = (geometry.layers, slots, heads)
        self.tokens = torch.zeros(*shape, most, dtype=torch.int32, device=geometry.device)
        self.held = torch.ones(shape, dtype=torch.int64, device=geometry.device)
        self.backend = geometry.backend
        # the host's copy of the longest list, which shapes the lists without a read-back
        self.first = [[1] * slots for _ in range(geometry.layers)]
        self.limit = [1] * slots

    def start(self, layer: int, slot: int, tokens: Tensor, counts: Tensor | int, limit: int):
        """Of the prompt, the first counts [H] of tokens [H, n]; never more than `limit` in all."""
        self.tokens[layer, slot, :, : tokens.shape[-1]] = tokens
        self.held[layer, slot] = counts
        self.first[layer][slot], self.limit[slot] = tokens.shape[-1], limit

    def append(self, layer: int, view) -> tuple[Tensor, Tensor]:
        """The newest token joins every list -> tokens [B, H, n], counts [B, H].

        A row that is finished has no newest token: its list does not grow.
        """
        held, tokens = self.held[layer], self.tokens[layer]
        size = min(max(self.first[layer]) + view.grown, max(self.limit))
        if self.backend != "torch":
            from macbench.kernels.kept import append

            return append(tokens, held, view.lens, view.live, size)
        held.add_(view.live[:, None]).clamp_(max=tokens.shape[-1])
        newest = (view.lens - 1).to(tokens.dtype)[:, None, None]
        tokens.scatter_(-1, held[..., None] - 1, newest.expand(*held.shape, 1))
        return tokens[..., :size].long(), held.clamp_max(size)

    def drop(self, layer: int, worst: Tensor, limit: Tensor, *along: Tensor) -> None:
        """Lists of more than limit [B] tokens lose the entry worst [B, H]; the last one takes its
        place, there and in what is kept `along` [B, H, most]."""
        held, at = self.held[layer], worst[..., None]
        over = held > limit[:, None]
        for values in (self.tokens[layer], *along):
            last = values.gather(-1, held[..., None] - 1)
            values.scatter_(-1, at, torch.where(over[..., None], last, values.gather(-1, at)))
        held.sub_(over.long())


def lowest(scores: Tensor, tokens: Tensor) -> Tensor:
    """The entry of lowest score, [..., n] -> [...]; of equals, that of the highest position."""
    tied = scores == scores.amin(-1, keepdim=True)
    return torch.where(tied, tokens, -1).argmax(-1)
