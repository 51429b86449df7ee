"""Twilight's estimate: logits over keys that are kept in few bits, in Triton.

A code is exact in 16 bits, so q.k = scale * (q.code) + low * sum(q) needs no unpacked key. Torch
reference: `macbench.attention.twilight.Twilight._logits`. Codes: `kernels.codes`; what is written:
`kernels.pack`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from macbench.kernels.codes import Parts, codes_of, padded, query_tile, tile_of, units, words_of
from macbench.kernels.paged import PAGE

TOKENS, TOKENS_WIDE = 256, 64  # of a program; of its products in fp32


@triton.jit
def _logits(
    q,  # [B, H * G, D]
    codes,  # [slots, HKV, room, UNITS]
    scale,  # [slots, HKV, room]
    low,
    lens,  # [B]
    pages,  # [B, H, most] pages whose tokens are looked at
    counts,  # [B, H] how many of them
    scores,  # [B, H * G, size] out
    factor,
    room,
    most,
    size,
    H: tl.constexpr,  # lists per row, HKV or one per query head
    HKV: tl.constexpr,
    G: tl.constexpr,  # query heads of a list
    D: tl.constexpr,
    DIMS: tl.constexpr,
    UNITS: tl.constexpr,
    BITS: tl.constexpr,
    LISTED: tl.constexpr,
    PAGE: tl.constexpr,
    TOKENS: tl.constexpr,
    Q: tl.constexpr,
    WIDE: tl.constexpr,
):
    """q.k = scale * (q.code) + low * sum(q): a code is exact in 16 bits, so the product is."""
    list_ = tl.program_id(1)
    row, head = list_ // H, list_ % H * HKV // H
    place = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    length = tl.load(lens + row).to(tl.int32)
    if LISTED:
        named = (place < size) & (place // PAGE < tl.load(counts + list_).to(tl.int32))
        page = tl.load(pages + list_.to(tl.int64) * most + place // PAGE, named, 0)
        token = page.to(tl.int32) * PAGE + place % PAGE
        held = named & (token < length)
    else:
        token = place
        held = (place < size) & (place < length)
    query = tl.arange(0, Q)
    tile = query_tile(q, list_, G, D, DIMS, BITS, Q, WIDE)
    first = (row * HKV + head).to(tl.int64) * room
    words = words_of(codes + first * UNITS, token, held, UNITS, DIMS, BITS)
    keys = tl.reshape(codes_of(words, BITS, True), [TOKENS, DIMS]).to(tile.dtype)
    score = tl.dot(keys, tile, input_precision="ieee")
    step = tl.load(scale + first + token, held, 0.0).to(tl.float32) * (factor * (1 << 14 + BITS))
    least = tl.load(low + first + token, held, 0.0).to(tl.float32) * factor
    total = tl.sum(tile.to(tl.float32), 0)
    score = score * step[:, None] + total[None, :] * least[:, None]
    score = tl.where(held[:, None], score, float("-inf"))
    out = (list_ * G + query)[None, :].to(tl.int64) * size + place[:, None]
    tl.store(scores + out, score, (query < G)[None, :] & (place < size)[:, None])


def logits(
    q: Tensor,
    keys: Parts,
    bits: int,
    lens: Tensor,
    factor: float,
    size: int,
    pages: Tensor | None = None,
    counts: Tensor | None = None,
) -> Tensor:
    """q [B, Hq, d] over packed keys [B, Hkv, T, d] with one scale per token -> factor * q.k.

    Of the first `size` tokens, fp32 [B, Hq, size]; or of the tokens on the first counts [B, H] of
    pages [B, H, n], H = Hkv or Hq, [B, Hq, n * 16]. -inf from lens [B] on and behind the counts.
    """
    b, q_heads, d = q.shape
    codes, scale, low = units(keys[0]), *keys[1:]
    kv_heads, room = codes.shape[1:3]
    assert scale.shape[2:] == (room, 1), "one scale per token"
    heads, most = kv_heads, 0
    if pages is not None:
        heads, most = pages.shape[1:]
        size = most * PAGE
    scores = torch.empty(b, q_heads, size, dtype=torch.float32, device=q.device)
    is_wide = q.dtype == torch.float32
    tokens = TOKENS_WIDE if is_wide else TOKENS
    _logits[(triton.cdiv(size, tokens), b * heads)](
        q.contiguous(),
        codes,
        scale,
        low,
        lens,
        lens if pages is None else pages.contiguous(),
        lens if counts is None else counts.contiguous(),
        scores,
        factor,
        room,
        most,
        size,
        H=heads,
        HKV=kv_heads,
        G=q_heads // heads,
        D=d,
        DIMS=padded(d, bits)[1] * 8 // bits,
        UNITS=codes.shape[-1],
        BITS=bits,
        LISTED=pages is not None,
        PAGE=PAGE,
        TOKENS=tokens,
        Q=tile_of(q_heads // heads),
        WIDE=is_wide,
        num_warps=8 if is_wide else 4,
    )
    return scores
