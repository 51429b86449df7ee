"""Hashed numbers in Triton, and the random control's draws: one per token and KV head, one launch.

The numbers are those of `macbench.attention.rng.uniform` to the last bit, the torch reference.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TOKENS = 1024  # of a program
BITS = tl.constexpr(2**31 - 1)
ALWAYS, NEVER = tl.constexpr(2.0), tl.constexpr(-1.0)


@triton.jit
def _mix(x):
    x = ((x ^ (x >> 16)) * 0x45D9F3B) & BITS
    x = ((x ^ (x >> 15)) * 0x119DE1F3) & BITS
    return x ^ (x >> 16)


@triton.jit
def drawn(state, key):
    """The state, int64, of a draw with one more key; what is kept of either has 31 bits, so no
    product overflows."""
    key = tl.zeros([], tl.int64) + key
    return _mix((_mix(key & BITS) + state * 31 + 0x9E3779B) & BITS)


@triton.jit(do_not_specialize=["layer"])
def _draws(
    sample,  # [B]
    step,  # [B]
    lens,  # [B]
    kept,  # [B]
    draws,  # [B, HKV, size] out
    counts,  # [B, HKV] out
    layer,
    size,
    sink,
    recent,
    HKV: tl.constexpr,
    TOKENS: tl.constexpr,
):
    row, head = tl.program_id(1) // HKV, tl.program_id(1) % HKV
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    length = tl.load(lens + row)
    state = drawn(tl.zeros([], tl.int64), tl.load(sample + row))
    state = drawn(state, tl.load(step + row))
    state = drawn(state, layer)
    state = drawn(state, head)
    state = drawn(state, token)
    draw = (state >> 7).to(tl.float32) * (1.0 / (1 << 24))
    draw = tl.where((token < sink) | (token >= length - recent), ALWAYS, draw)
    draw = tl.where(token >= length, NEVER, draw)
    tl.store(draws + tl.program_id(1).to(tl.int64) * size + token, draw, token < size)
    if tl.program_id(0) == 0:
        tl.store(counts + tl.program_id(1), tl.minimum(tl.load(kept + row), length))


def draws(
    sample: Tensor,
    step: Tensor,
    lens: Tensor,
    kept: Tensor,
    layer: int,
    kv_heads: int,
    size: int,
    sink: int,
    recent: int,
) -> tuple[Tensor, Tensor]:
    """sample, step, lens, kept [B] int64 -> draws fp32 [B, Hkv, size] in [0, 1), 2 for the first
    `sink` and the last `recent` tokens and -1 behind lens; the lesser of kept and lens for every
    head, [B, Hkv]."""
    b = len(lens)
    drawn = torch.empty(b, kv_heads, size, dtype=torch.float32, device=lens.device)
    counts = torch.empty(b, kv_heads, dtype=torch.int64, device=lens.device)
    _draws[(triton.cdiv(size, TOKENS), b * kv_heads)](
        sample,
        step,
        lens,
        kept,
        drawn,
        counts,
        layer,
        size,
        sink,
        recent,
        HKV=kv_heads,
        TOKENS=TOKENS,
    )
    return drawn, counts
