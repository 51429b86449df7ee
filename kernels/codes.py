"""Vectors that are kept in 2, 4 or 8 bits, as products take them.

From memory come words of 32 bits. A word is two halves, and an operation on it unpacks a code of
each: masked, a code is part of the mantissa of an fp16 number with a known exponent. A product
takes two halves from one register, so those of a word are two channels of a key. Tiles therefore
hold channels in another order (`key_order`), into which q, scales and exact vectors are brought.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from macbench.kernels.workspace import power

Parts = tuple[Tensor, Tensor, Tensor]  # codes, scale, low of one layer


def padded(channels: int, bits: int) -> tuple[int, int]:
    """Bytes of a vector, and what a tile takes: a power of two with 16 channels at least."""
    return channels * bits // 8, power(max(channels * bits // 8, 2 * bits))


def tile_of(q_heads: int) -> int:
    """Columns of a tile that holds a list's query heads."""
    assert q_heads <= 16, "query heads of a list share a tile of 16 columns"
    return 8 if q_heads <= 8 else 16


def units(codes: Tensor) -> Tensor:
    """Codes in words, or in bytes where vectors do not fill words."""
    return codes if codes.shape[-1] % 4 else codes.view(torch.int32)


@triton.jit
def words_of(codes, token, held, UNITS: tl.constexpr, DIMS: tl.constexpr, BITS: tl.constexpr):
    """One KV head's tokens [N] in units (words or bytes) -> words [N, DIMS * BITS / 32]."""
    EACH: tl.constexpr = 32 // codes.dtype.element_ty.primitive_bitwidth
    word = tl.arange(0, DIMS * BITS // 32)
    x = tl.zeros([token.shape[0], DIMS * BITS // 32], tl.int32)
    for i in tl.static_range(EACH):
        unit = word * EACH + i
        there = held[:, None] & (unit < UNITS)[None, :]
        x |= tl.load(codes + token[:, None] * UNITS + unit[None, :], there, 0).to(tl.int32) << 8 * i
    return x


@triton.jit
def halves(words):
    """Words [...] as fp16 [..., 2]."""
    return tl.join(words.to(tl.int16), (words >> 16).to(tl.int16)).to(tl.float16, bitcast=True)


@triton.jit
def _code(words, AT: tl.constexpr, BITS: tl.constexpr, SMALL: tl.constexpr):
    """Codes at bits [AT, AT + BITS) of both halves of words [...], fp16 [..., 2]: in the mantissa
    of 2^(10 - AT), whose bit AT counts ones. If SMALL, for products alone, times 2^-(14 + BITS):
    the upper bits of a subnormal mantissa, from which nothing is to be subtracted."""
    if SMALL:
        UPPER: tl.constexpr = ((1 << BITS) - 1 << 10 - BITS) * 0x10001
        return halves(words << 10 - BITS - AT & UPPER)
    else:
        MASK: tl.constexpr = ((1 << BITS) - 1 << AT) * 0x10001
        POWER: tl.constexpr = (25 - AT << 10) * 0x10001
        return halves(words & MASK | POWER) - (1 << 10 - AT)


@triton.jit
def codes_of(words, BITS: tl.constexpr, SMALL: tl.constexpr = False):
    """Words [N, W] -> fp16 [N, J, W, 2]: the j-th of the J = 16 / BITS codes of both halves."""
    x = tl.join(words, words >> 8)
    if BITS == 8:
        x = _code(x, 0, BITS, SMALL)
    elif BITS == 4:
        x = tl.join(_code(x, 0, BITS, SMALL), _code(x, 4, BITS, SMALL))
    else:
        even = tl.join(_code(x, 0, BITS, SMALL), _code(x, 4, BITS, SMALL))
        odd = tl.join(_code(x, 2, BITS, SMALL), _code(x, 6, BITS, SMALL))
        x = tl.join(even, odd)
    x = tl.reshape(x, [words.shape[0], words.shape[1], 2, 2, 8 // BITS])
    x = tl.permute(x, (0, 2, 4, 1, 3))
    return tl.reshape(x, [words.shape[0], 16 // BITS, words.shape[1], 2])


@triton.jit
def key_order(x, BITS: tl.constexpr):
    """[N, DIMS] as `codes_of` has it of the words of N keys."""
    x = tl.reshape(x, [x.shape[0], x.shape[1] * BITS // 32, 2, 16 // BITS])
    return tl.permute(x, (0, 3, 1, 2))


@triton.jit
def query_tile(
    q,
    list_,
    G: tl.constexpr,
    D: tl.constexpr,
    DIMS: tl.constexpr,
    BITS: tl.constexpr,
    Q: tl.constexpr,
    WIDE: tl.constexpr,
):
    """A list's query heads as [DIMS, Q], channels in `key_order`: in fp16, or in fp32."""
    lane, query = tl.arange(0, DIMS), tl.arange(0, Q)
    own = (query < G)[:, None] & (lane < D)[None, :]
    tile = tl.load(q + (list_ * G + query)[:, None] * D + lane[None, :], own, 0.0)
    tile = tl.trans(tl.reshape(key_order(tile, BITS), [Q, DIMS]))
    return tile if WIDE else tile.to(tl.float16)
