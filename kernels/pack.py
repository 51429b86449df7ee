"""Tokens of the paged cache into packed vectors (2, 4 or 8 bits), in Triton.

Torch reference: `macbench.attention.quantise.quantise`, whose codes on a CPU these are, bit by bit.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from macbench.kernels.codes import Parts, padded
from macbench.kernels.paged import PAGE
from macbench.kernels.workspace import power

ROUNDS = tl.constexpr(1.5 * 2**23)  # added to a small fp32 and taken away, rounds half to even


@triton.jit
def scale_and_low(least, most, BITS: tl.constexpr):
    """A group's minimum and maximum -> scale and low, fp16."""
    low = least.to(tl.float16)
    span = most - low.to(tl.float32)
    return tl.div_rn(span, tl.zeros_like(span) + ((1 << BITS) - 1)).to(tl.float16), low


@triton.jit
def code_of(x, scale, low, BITS: tl.constexpr):
    """x in terms of the stored scale and low, int32."""
    step = scale.to(tl.float32)
    step = tl.where(step == 0.0, 1.0, step)
    code = (tl.div_rn(x - low.to(tl.float32), step) + ROUNDS) - ROUNDS
    return tl.minimum(tl.maximum(code, 0.0), (1 << BITS) - 1).to(tl.int32)


@triton.jit
def _token(
    pool,  # [pages, HKV, PAGE, D]
    table,  # [B, M]
    lens,  # [B]
    codes,  # [slots, HKV, room, BYTES] out
    scale,  # [slots, HKV, room, D / TILE] out
    low,
    behind,
    room,
    M,
    HKV: tl.constexpr,
    D: tl.constexpr,
    BYTES: tl.constexpr,
    BYTESP: tl.constexpr,
    BITS: tl.constexpr,
    TILE: tl.constexpr,
    TILEP: tl.constexpr,
    GROUPS: tl.constexpr,  # D / TILE, padded
    PAGE: tl.constexpr,
):
    """A program packs one token of one KV head, in groups of TILE channels."""
    list_ = tl.program_id(0)
    row, head = list_ // HKV, list_ % HKV
    position = tl.load(lens + row).to(tl.int32) - 1 - behind
    if position >= 0:
        page = tl.load(table + row * M + position // PAGE).to(tl.int64)
        vector = pool + ((page * HKV + head) * PAGE + position % PAGE) * D
        group, within = tl.arange(0, GROUPS), tl.arange(0, TILEP)
        real = (group < D // TILE)[:, None] & (within < TILE)[None, :]
        at = group[:, None] * TILE + within[None, :]
        x = tl.load(vector + at, real, 0.0).to(tl.float32)
        least = tl.min(tl.where(real, x, float("inf")), 1)
        most = tl.max(tl.where(real, x, float("-inf")), 1)
        steps, lows = scale_and_low(least, most, BITS)
        here = list_.to(tl.int64) * room + position
        scale += here * (D // TILE)
        low += here * (D // TILE)
        tl.store(scale + group, steps, group < D // TILE)
        tl.store(low + group, lows, group < D // TILE)
        tl.debug_barrier()  # read again by channel

        PER: tl.constexpr = 8 // BITS
        byte, place = tl.arange(0, BYTESP), tl.arange(0, PER)
        channel = byte[:, None] * PER + place[None, :]
        real = channel < D
        x = tl.load(vector + channel, real, 0.0).to(tl.float32)
        steps = tl.load(scale + channel // TILE, real, 0.0)
        lows = tl.load(low + channel // TILE, real, 0.0)
        packed = tl.sum(code_of(x, steps, lows, BITS) << (place * BITS)[None, :], 1)
        tl.store(codes + here * BYTES + byte, packed.to(tl.uint8), byte < BYTES)


@triton.jit
def _block(
    pool,  # [pages, HKV, PAGE, D]
    table,  # [B, M]
    lens,  # [B]
    codes,  # [slots, HKV, room, BYTES] out
    scale,  # [slots, HKV, room / TILE, D] out
    low,
    block,
    room,
    M,
    HKV: tl.constexpr,
    D: tl.constexpr,
    BYTES: tl.constexpr,
    BYTESP: tl.constexpr,
    BITS: tl.constexpr,
    TILE: tl.constexpr,
    TILEP: tl.constexpr,
    PAGE: tl.constexpr,
):
    """A program packs TILE tokens of the newest block of one KV head, once the block is full."""
    list_ = tl.program_id(1)
    row, head = list_ // HKV, list_ % HKV
    length = tl.load(lens + row).to(tl.int32)
    if (length > 0) & (length % block == 0):
        PER: tl.constexpr = 8 // BITS
        start = length - block + tl.program_id(0) * TILE
        index, byte, place = tl.arange(0, TILEP), tl.arange(0, BYTESP), tl.arange(0, PER)
        token = start + index
        page = tl.load(table + row * M + token // PAGE, index < TILE, 0).to(tl.int64)
        vector = ((page * HKV + head) * PAGE + token % PAGE) * D
        channel = byte[:, None] * PER + place[None, :]
        real = (index < TILE)[:, None, None] & (channel < D)[None, :, :]
        x = tl.load(pool + vector[:, None, None] + channel[None, :, :], real, 0.0).to(tl.float32)
        least = tl.min(tl.where(real, x, float("inf")), 0)
        most = tl.max(tl.where(real, x, float("-inf")), 0)
        steps, lows = scale_and_low(least, most, BITS)
        here = list_.to(tl.int64) * room + start
        at = here // TILE * D + channel
        tl.store(scale + at, steps, channel < D)
        tl.store(low + at, lows, channel < D)
        code = code_of(x, steps[None, :, :], lows[None, :, :], BITS)
        packed = tl.sum(code << (place * BITS)[None, None, :], 2)
        at = (here + index)[:, None] * BYTES + byte[None, :]
        real = (index < TILE)[:, None] & (byte < BYTES)[None, :]
        tl.store(codes + at, packed.to(tl.uint8), real)


def token(
    pool: Tensor, table: Tensor, lens: Tensor, into: Parts, bits: int, behind: int = 0
) -> None:
    """Each row's token at lens - 1 - behind (none before 0), scales shared by channels."""
    codes, scale, low = into
    kv_heads, room = codes.shape[1:3]
    d = pool.shape[-1]
    width, padding = padded(d, bits)
    tile = d // scale.shape[3]
    _token[(len(lens) * kv_heads,)](
        pool,
        table,
        lens,
        codes,
        scale,
        low,
        behind,
        room,
        table.stride(0),
        HKV=kv_heads,
        D=d,
        BYTES=width,
        BYTESP=padding,
        BITS=bits,
        TILE=tile,
        TILEP=power(tile),
        GROUPS=power(d // tile),
        PAGE=PAGE,
        num_warps=1,
    )


def block(pool: Tensor, table: Tensor, lens: Tensor, into: Parts, bits: int, size: int) -> None:
    """The newest `size` tokens of rows whose lens they divide, scales shared by tokens."""
    codes, scale, low = into
    kv_heads, room = codes.shape[1:3]
    d = pool.shape[-1]
    width, padding = padded(d, bits)
    tile = room // scale.shape[2]
    _block[(size // tile, len(lens) * kv_heads)](
        pool,
        table,
        lens,
        codes,
        scale,
        low,
        size,
        room,
        table.stride(0),
        HKV=kv_heads,
        D=d,
        BYTES=width,
        BYTESP=padding,
        BITS=bits,
        TILE=tile,
        TILEP=power(tile),
        PAGE=PAGE,
    )
