"""Double Sparsity's scores in one Triton launch: the newest key's label is kept, then every label
is multiplied with the query's few channels.

The torch reference is in `macbench.attention.double_sparsity`, that of the codes in
`macbench.attention.quantise`. Codes are whole numbers, exact in any type, so a product over packed
labels is scale * (q . codes) + low * (sum of q).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from macbench.kernels.paged import PAGE

TOKENS = 64  # of a program
MAGIC = tl.constexpr(12582912.0)  # 1.5 * 2^23: added and taken off, it rounds halves to even


@triton.jit
def _labels(
    q,  # [B, HKV * G, D]
    channels,  # [B, HKV, R]
    labels,  # [B, HKV, room, R], or codes [B, HKV, room, R * BITS / 8]: in and out
    scale,  # [B, HKV, room] of codes: in and out
    low,
    k_pool,  # [pages, HKV, PAGE, D]
    table,  # [B, M]
    lens,  # [B]
    scores,  # [B, HKV * G, size] out
    factor,
    room,
    size,
    M,
    HKV: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    R: tl.constexpr,
    LANES: tl.constexpr,  # R to the next power of two
    PAGE: tl.constexpr,
    TOKENS: tl.constexpr,
    BITS: tl.constexpr,  # 0: labels as they are
    WIDE: tl.constexpr,
):
    group = tl.program_id(1).to(tl.int64)
    row, head = group // HKV, group % HKV
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    lane, query = tl.arange(0, LANES), tl.arange(0, 16)
    length = tl.load(lens + row).to(tl.int32)
    newest = length - 1
    held = token < length
    here = (newest >= tl.program_id(0) * TOKENS) & (newest < (tl.program_id(0) + 1) * TOKENS)
    width = tl.where(here, R, 0)  # channels of the newest key, where this program has it
    channel = tl.load(channels + group * R + lane, lane < R, 0)
    own = (query < G)[:, None] & (lane < R)[None, :]
    tile = tl.load(q + (group * G + query)[:, None] * D + channel[None, :], own, 0.0)
    page = tl.load(table + row * M + newest // PAGE, here, 0).to(tl.int64)
    place = ((page * HKV + head) * PAGE + newest % PAGE) * D
    key = tl.load(k_pool + place + channel, lane < width, 0.0)
    real = held[:, None] & (lane < R)[None, :]
    fresh = token == newest
    if BITS == 0:
        at = (group * room + token)[:, None] * R + lane[None, :]
        label = tl.load(labels + at, real, 0.0)
        label = tl.where(fresh[:, None], key[None, :], label)
        tl.store(labels + group * room * R + newest * R + lane, key, lane < width)
    else:
        EACH: tl.constexpr = 8 // BITS  # codes of a byte
        MOST: tl.constexpr = (1 << BITS) - 1
        at = (group * room + token)[:, None] * (R // EACH) + (lane // EACH)[None, :]
        code = (tl.load(labels + at, real, 0).to(tl.int32) >> (lane % EACH * BITS)[None, :]) & MOST
        span = tl.load(scale + group * room + token, held, 0.0).to(tl.float32)
        base = tl.load(low + group * room + token, held, 0.0).to(tl.float32)
        exact = key.to(tl.float32)
        least = tl.min(tl.where(lane < R, exact, float("inf")))
        most = tl.max(tl.where(lane < R, exact, float("-inf")))
        least = least.to(tl.float16)
        step = tl.div_rn(most - least.to(tl.float32), MOST * 1.0).to(tl.float16)
        divisor = tl.where(step == 0.0, 1.0, step.to(tl.float32))
        number = tl.div_rn(exact - least.to(tl.float32), divisor + tl.zeros([LANES], tl.float32))
        number = tl.minimum(tl.maximum((number + MAGIC) - MAGIC, 0.0), MOST * 1.0).to(tl.int32)
        number = tl.where(lane < R, number, 0)
        shifted = tl.reshape(number << (lane % EACH * BITS), [LANES // EACH, EACH])
        byte = tl.arange(0, LANES // EACH)
        there = labels + (group * room + newest) * (R // EACH) + byte
        tl.store(there, tl.sum(shifted, 1).to(tl.uint8), byte < width // EACH)
        tl.store(scale + group * room + newest, step, here)
        tl.store(low + group * room + newest, least, here)
        code = tl.where(fresh[:, None], number[None, :], code)
        span = tl.where(fresh, step.to(tl.float32), span)
        base = tl.where(fresh, least.to(tl.float32), base)
        label = code.to(tile.dtype)
    if WIDE:
        score = tl.dot(tile, tl.trans(label), input_precision="ieee")
    else:
        score = tl.dot(tile, tl.trans(label))
    if BITS > 0:
        score = score * span[None, :] + tl.sum(tile.to(tl.float32), 1)[:, None] * base[None, :]
    score = tl.where(held[None, :], score * factor, float("-inf"))
    out = (group * G + query)[:, None] * size + token[None, :]
    tl.store(scores + out, score, (query < G)[:, None] & (token < size)[None, :])


def label_scores(
    q: Tensor,
    channels: Tensor,
    labels: Tensor | tuple[Tensor, Tensor, Tensor],
    bits: int,
    k_pool: Tensor,
    table: Tensor,
    lens: Tensor,
    scale: float,
    size: int,
) -> Tensor:
    """q [B, Hq, d] over channels [B, Hkv, r] of the first lens [B] keys -> partial logits, fp32
    [B, Hq, size], -inf behind.

    labels, updated in place with the key at lens - 1: [B, Hkv, room, r] at 16 bits, else codes
    [B, Hkv, room, r * bits / 8], scale and low [B, Hkv, room, 1].
    """
    b, q_heads, d = q.shape
    kv_heads, r = channels.shape[1:]
    assert q_heads // kv_heads <= 16, "query heads of a KV head share a tile of 16 rows"
    codes, span, low = (labels, labels, labels) if isinstance(labels, Tensor) else labels
    assert codes.is_contiguous() and span.is_contiguous() and low.is_contiguous()
    scores = torch.empty(b, q_heads, size, dtype=torch.float32, device=q.device)
    _labels[(triton.cdiv(size, TOKENS), b * kv_heads)](
        q.contiguous(),
        channels,
        codes,
        span,
        low,
        k_pool,
        table,
        lens,
        scores,
        scale,
        codes.shape[2],
        size,
        table.stride(0),
        HKV=kv_heads,
        G=q_heads // kv_heads,
        D=d,
        R=r,
        LANES=max(16, triton.next_power_of_2(r)),
        PAGE=PAGE,
        TOKENS=TOKENS,
        BITS=0 if bits == 16 else bits,
        WIDE=q.dtype == torch.float32,
    )
    return scores
