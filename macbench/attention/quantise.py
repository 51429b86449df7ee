"""Numbers in 2, 4 or 8 bits: codes between a group's minimum and maximum (asymmetric).

code = round((x - low) / scale), scale = (max - low) / (2^bits - 1); what is read back is
code * scale + low. Scale and low are fp16, 4 bytes a group, and codes are rounded against the
stored ones, so an error is at most half a scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from macbench.attention.base import Geometry
from macbench.errors import MacbenchError
from macbench.kernels.paged import wide

BITS = (2, 4, 8)
Tile = tuple[int, int]  # tokens and channels of a group


def check_bits(knob: str, value: int, allowed: tuple[int, ...] = BITS) -> None:
    if value not in allowed:
        raise MacbenchError(f"{knob}={value} must be one of {', '.join(map(str, allowed))}.")


def quantise(x: Tensor, bits: int, tile: Tile) -> tuple[Tensor, Tensor, Tensor]:
    """x [..., n, c] -> packed codes [..., n, c * bits / 8], scale and low [..., groups of n, of c].

    A group whose numbers are all equal has scale 0 and reads back as its low.
    """
    grouped = wide(x).unflatten(-1, (-1, tile[1])).unflatten(-3, (-1, tile[0]))
    least, most = grouped.amin((-3, -1), keepdim=True), grouped.amax((-3, -1), keepdim=True)
    low = least.half()
    scale = ((most - low.to(most.dtype)) / (2**bits - 1)).half()
    step = scale.to(grouped.dtype)
    step = step.masked_fill(step == 0, 1)
    codes = ((grouped - low.to(step.dtype)) / step).round().clamp(0, 2**bits - 1)
    codes = codes.to(torch.uint8).flatten(-4, -3).flatten(-2)
    return pack(codes, bits), scale.squeeze(-1).squeeze(-2), low.squeeze(-1).squeeze(-2)


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes [..., c] -> [..., c * bits / 8], the first in the lowest bits."""
    places = torch.arange(0, 8, bits, dtype=torch.uint8, device=codes.device)
    return (codes.unflatten(-1, (-1, 8 // bits)) << places).sum(-1, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int) -> Tensor:
    places = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    return ((packed[..., None] >> places) & (2**bits - 1)).flatten(-2)


@dataclass
class Packed:
    """Vectors of every position, for all layers, slots and KV heads of a method."""

    codes: Tensor  # [layers, slots, Hkv, T, c * bits / 8] uint8
    scale: Tensor  # [layers, slots, Hkv, T / tile[0], c / tile[1]]
    low: Tensor
    bits: int
    tile: Tile
    dtype: torch.dtype  # of what is read back

    @staticmethod
    def zeros(g: Geometry, slots: int, tokens: int, channels: int, bits: int, tile: Tile) -> Packed:
        """Room for `tokens` (a multiple of a group's) vectors of `channels` numbers."""
        lead = (g.layers, slots, g.kv_heads)
        codes = torch.zeros(*lead, tokens, channels * bits // 8, dtype=torch.uint8, device=g.device)
        groups = (*lead, tokens // tile[0], channels // tile[1])
        scale = torch.zeros(groups, dtype=torch.float16, device=g.device)
        exact = torch.promote_types(g.dtype, torch.float32)
        return Packed(codes, scale, torch.zeros_like(scale), bits, tile, exact)

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.codes, self.scale, self.low

    def layer(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """What the kernels read and write."""
        return self.codes[layer], self.scale[layer], self.low[layer]

    @property
    def bytes(self) -> int:
        return sum(x.numel() * x.itemsize for x in self.parts)

    def start(self, layer: int, slot: int, x: Tensor) -> None:
        """The first n positions of one slot, x [Hkv, n, c]."""
        self.place(layer, slot, quantise(x, self.bits, self.tile))

    def place(self, layer: int, slot: int, values: tuple[Tensor, Tensor, Tensor]) -> None:
        """The same of what `quantise` gave."""
        for part, value in zip(self.parts, values, strict=True):
            part[layer, slot, :, : value.shape[1]] = value

    def write(self, layer: int | slice, block: Tensor, x: Tensor) -> None:
        """Positions block * n to (block + 1) * n of every row: block [B], x [B, Hkv, n, c]; with
        layer=slice(None) for all layers, x [B, layers, Hkv, n, c]."""
        row = torch.arange(len(block), device=block.device)
        for part, value in zip(self.parts, quantise(x, self.bits, self.tile), strict=True):
            blocks = part[layer].unflatten(-2, (-1, value.shape[-2]))
            blocks[..., row, :, block, :, :] = value

    def read(self, layer: int, start: int, end: int) -> Tensor:
        """Positions start (the first of a group) to end of all rows, [B, Hkv, end - start, c]."""
        n = self.tile[0]
        groups = slice(start // n, -(-end // n))
        scale, low = (
            part[layer, :, :, groups].repeat_interleave(n, -2)[:, :, : end - start]
            for part in (self.scale, self.low)
        )
        return self._restored(self.codes[layer, :, :, start:end], scale, low)

    def gather(self, layer: int, tokens: Tensor) -> Tensor:
        """Positions [B, H, n] with H = Hkv or Hq, [B, H, n, c]."""
        rows, heads, _ = tokens.shape
        row = torch.arange(rows, device=tokens.device)[:, None, None]
        head = torch.arange(heads, device=tokens.device)[:, None]
        head = head // (heads // self.codes.shape[2])
        at = tokens // self.tile[0]
        scale, low = self.scale[layer][row, head, at], self.low[layer][row, head, at]
        return self._restored(self.codes[layer][row, head, tokens], scale, low)

    def _restored(self, codes: Tensor, scale: Tensor, low: Tensor) -> Tensor:
        numbers = unpack(codes, self.bits).to(self.dtype).unflatten(-1, (-1, self.tile[1]))
        numbers = numbers * scale[..., None].to(self.dtype) + low[..., None].to(self.dtype)
        return numbers.flatten(-2)
